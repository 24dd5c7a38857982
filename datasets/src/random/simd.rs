//! Runs plain loops with the widest vector unit the processor has.

/// Runs `body` compiled for the vector unit found at run time.
///
/// The compiler vectorises the loops that are inlined into `body`; it may not reorder or fuse floating-point
/// operations, so the result is the same on every unit.
#[inline(always)]
pub(crate) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}
