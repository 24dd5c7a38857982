//! Runs plain loops with the widest vector unit the processor has.

/// Work made of loops that the compiler can vectorise. `call` must be `#[inline(always)]`, and so must everything it
/// calls in its loops: only what is inlined is compiled for the vector unit.
pub(crate) use pulp::NullaryFnOnce as VectorWork;

/// Runs `work` compiled for the vector unit found at run time.
///
/// The compiler may not reorder or fuse floating-point operations, so the result is the same on every unit.
pub(crate) fn vectorized<W: VectorWork>(work: W) -> W::Output {
    pulp::Arch::new().dispatch(work)
}
