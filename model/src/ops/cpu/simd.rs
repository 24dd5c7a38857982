//! Compiling one loop for several instruction sets and choosing at run time.

/// The instruction sets an elementwise loop is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What the target has at the least.
    Portable,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, DQ, VL and BW, as in every CPU since Skylake-SP.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The highest level of this CPU.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = FORCED.get() {
        return level;
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Portable
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Every level of this CPU, the highest first.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => vec![Level::Avx512, Level::Avx2, Level::Portable],
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => vec![Level::Avx2, Level::Portable],
        Level::Portable => vec![Level::Portable],
    }
}

/// Runs `work`, on one thread, with the loops of a level that this CPU has.
#[cfg(test)]
pub(crate) fn at_level<R: Send>(level: Level, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .start_handler(move |_| FORCED.set(Some(level)))
        .build();
    pool.expect("a pool of one thread").install(work)
}

/// `a · b + c`, fused where `FUSED` says that this is one instruction (elsewhere it would call the C library).
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED || cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// Defines a function whose body is compiled once for each [`Level`]; `FUSED` is a constant of the body that says whether
/// fused multiply-add is one instruction.
macro_rules! for_each_level {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(unused_mut, clippy::too_many_arguments)]
            fn body<const FUSED: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    body::<true>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    body::<true>($($argument),*)
                }
                match $crate::ops::cpu::simd::level() {
                    // SAFETY: `level` found these instruction sets on this CPU.
                    $crate::ops::cpu::simd::Level::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::ops::cpu::simd::Level::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::ops::cpu::simd::Level::Portable => {}
                }
            }
            body::<false>($($argument),*)
        }
    )*};
}
pub(crate) use for_each_level;
