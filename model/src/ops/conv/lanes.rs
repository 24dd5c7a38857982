//! Sixteen f32 lanes in the widest registers of this CPU, and the choice among them at run time.
//!
//! A [`Kernel`] is written once, generic over [`Lanes`]; [`dispatch`] compiles it for AVX-512, for AVX2 with FMA and for
//! the target's own instruction set, and runs the best one this CPU has. Everything a kernel calls must be
//! `#[inline(always)]`, so that it is compiled with the instruction set of the entry it is inlined into.

use super::super::cpu::simd::{self, Level};
use super::product::{multiply_tiles, Product};

/// Arithmetic on sixteen values.
///
/// Every function is `unsafe` for the same two reasons: the CPU must have the instruction set (kernels are only run by
/// [`dispatch`], which asks it), and pointers must be valid for sixteen values.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Lanes: Copy {
    /// Rows of a tile of the matrix kernel; with [`Lanes::TILE_COLUMNS`] it fills the registers.
    const TILE_ROWS: usize;
    /// Columns of a tile, in blocks of sixteen.
    const TILE_COLUMNS: usize;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self · factor + addend`.
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self;
    /// Asks for the cache line at an address, which need not exist, before it is read.
    unsafe fn prefetch(from: *const f32);
    /// [`multiply_tiles`] compiled for these lanes, once for all its callers.
    unsafe fn multiply(product: &Product<'_>);
    /// `2^n`, where `n` is the integer in the low bits of the mantissa.
    unsafe fn power_of_two(self) -> Self;

    /// `e^self` with a relative error below 2e-7, for arguments cut to [-87, 88].
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // 1.5·2^23: adding it leaves the nearest integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        // SAFETY: the caller's promise, for the whole body.
        unsafe {
            let x = self.min(Self::splat(88.0)).max(Self::splat(-87.0));
            let shifted = x.multiply_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(ROUND));
            let whole = shifted.sub(Self::splat(ROUND));
            // ln 2 in two parts, so that the product with `whole` is exact enough.
            let rest = whole.multiply_add(Self::splat(-0.693_359_4), x);
            let rest = whole.multiply_add(Self::splat(2.121_944_4e-4), rest);
            let mut sum = Self::splat(1.987_569_1e-4);
            for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                sum = sum.multiply_add(rest, Self::splat(coefficient));
            }
            let mantissa = sum.multiply_add(rest.mul(rest), rest.add(Self::splat(1.0)));
            mantissa.mul(shifted.power_of_two())
        }
    }

    /// `x / (1 + e^-x)`.
    #[inline(always)]
    unsafe fn silu(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let one = Self::splat(1.0);
            self.div(one.add(Self::splat(0.0).sub(self).exp()))
        }
    }
}

/// A piece of work compiled once for each instruction set.
pub(super) trait Kernel {
    /// # Safety
    /// The CPU must have the instruction set of `L`; the rest is the implementation's to say.
    unsafe fn run<L: Lanes>(self);
}

/// Runs a kernel with the widest lanes of this CPU.
///
/// # Safety
/// What the kernel asks for, except the instruction set.
pub(super) unsafe fn dispatch<K: Kernel>(kernel: K) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
        unsafe fn avx512<K: Kernel>(kernel: K) {
            // SAFETY: the caller's promise.
            unsafe { kernel.run::<x86::Avx512>() }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<K: Kernel>(kernel: K) {
            // SAFETY: the caller's promise.
            unsafe { kernel.run::<x86::Avx2>() }
        }
        match level() {
            // SAFETY: `level` found the instruction set; the rest is the caller's promise.
            Level::Avx512 => return unsafe { avx512(kernel) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2(kernel) },
            Level::Portable => {}
        }
    }
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Portable>() }
}

/// The highest level of this CPU, or of the test that forces a lower one.
fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = tests::forced() {
        return level;
    }
    simd::level()
}

/// Sixteen values in an array: whatever the compiler makes of it.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 16]);

macro_rules! lanewise {
    ($($name:ident($a:ident $(, $b:ident)*) $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self $(, $b: Self)*) -> Self {
            let mut result = self;
            for lane in 0..16 {
                let $a = self.0[lane];
                $(let $b = $b.0[lane];)*
                result.0[lane] = $body;
            }
            result
        }
    )*};
}

impl Lanes for Portable {
    const TILE_ROWS: usize = 2;
    const TILE_COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 16]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 16]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 16])
    }
    /// Nothing: there is no portable way to ask.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}
    unsafe fn multiply(product: &Product<'_>) {
        // SAFETY: the caller's promise.
        unsafe { multiply_tiles::<Self>(product) }
    }
    lanewise! {
        add(a, other) a + other;
        sub(a, other) a - other;
        mul(a, other) a * other;
        div(a, other) a / other;
        max(a, other) if a > other { a } else { other };
        min(a, other) if a < other { a } else { other };
        multiply_add(a, factor, addend) a * factor + addend;
        power_of_two(a) f32::from_bits(a.to_bits().wrapping_add(127) << 23);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{multiply_tiles, Lanes, Product};

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    macro_rules! avx512 {
        ($($name:ident($($argument:ident),*) $intrinsic:ident;)*) => {$(
            #[inline(always)]
            unsafe fn $name(self $(, $argument: Self)*) -> Self {
                // SAFETY: the caller promises the instruction set.
                Self(unsafe { $intrinsic(self.0 $(, $argument.0)*) })
            }
        )*};
    }

    macro_rules! avx2 {
        ($($name:ident($($argument:ident),*) $intrinsic:ident;)*) => {$(
            #[inline(always)]
            unsafe fn $name(self $(, $argument: Self)*) -> Self {
                // SAFETY: the caller promises the instruction set.
                unsafe {
                    Self($intrinsic(self.0 $(, $argument.0)*), $intrinsic(self.1 $(, $argument.1)*))
                }
            }
        )*};
    }

    impl Lanes for Avx512 {
        const TILE_ROWS: usize = 14;
        const TILE_COLUMNS: usize = 2;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn prefetch(from: *const f32) {
            // SAFETY: a hint that touches nothing; the caller promises the instruction set.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
        #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
        unsafe fn multiply(product: &Product<'_>) {
            // SAFETY: the caller's promise.
            unsafe { multiply_tiles::<Self>(product) }
        }
        avx512! {
            add(other) _mm512_add_ps;
            sub(other) _mm512_sub_ps;
            mul(other) _mm512_mul_ps;
            div(other) _mm512_div_ps;
            max(other) _mm512_max_ps;
            min(other) _mm512_min_ps;
            multiply_add(factor, addend) _mm512_fmadd_ps;
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let biased = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
            }
        }
    }

    impl Lanes for Avx2 {
        const TILE_ROWS: usize = 6;
        const TILE_COLUMNS: usize = 1;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's promise.
            let half = unsafe { _mm256_set1_ps(value) };
            Self(half, half)
        }
        #[inline(always)]
        unsafe fn prefetch(from: *const f32) {
            // SAFETY: a hint that touches nothing; the caller promises the instruction set.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn multiply(product: &Product<'_>) {
            // SAFETY: the caller's promise.
            unsafe { multiply_tiles::<Self>(product) }
        }
        avx2! {
            add(other) _mm256_add_ps;
            sub(other) _mm256_sub_ps;
            mul(other) _mm256_mul_ps;
            div(other) _mm256_div_ps;
            max(other) _mm256_max_ps;
            min(other) _mm256_min_ps;
            multiply_add(factor, addend) _mm256_fmadd_ps;
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let bias = _mm256_set1_epi32(127);
                let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(self.0), bias));
                let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(self.1), bias));
                Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use super::*;

    thread_local! {
        static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    pub(in super::super) fn forced() -> Option<Level> {
        FORCED.get()
    }

    /// Runs `work` once with every level this CPU has, on one thread.
    pub(in super::super) fn at_every_level(work: impl Fn() + Sync) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let best = level();
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend((best != Level::Portable).then_some(Level::Avx2));
            levels.extend((best == Level::Avx512).then_some(Level::Avx512));
        }
        for level in levels {
            pool.install(|| {
                FORCED.set(Some(level));
                work();
                FORCED.set(None);
            });
        }
    }

    struct Silu<'a>(&'a mut [f32]);

    impl Kernel for Silu<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for sixteen in self.0.chunks_exact_mut(16) {
                // SAFETY: chunks of sixteen values.
                unsafe { L::load(sixteen.as_ptr()).silu().store(sixteen.as_mut_ptr()) };
            }
        }
    }

    #[test]
    fn silu_is_exact_to_a_few_units_at_every_level() {
        at_every_level(|| {
            let inputs: Vec<f32> = (-1600..1600).map(|i| i as f32 * 0.0625).collect();
            let mut outputs = inputs.clone();
            // SAFETY: the length is a multiple of sixteen.
            unsafe { dispatch(Silu(&mut outputs)) };
            for (&x, &y) in inputs.iter().zip(&outputs) {
                let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
                assert!(
                    (f64::from(y) - exact).abs() <= 4e-7 * exact.abs() + 1e-35,
                    "silu({x}) = {y}, expected {exact}"
                );
            }
        });
    }
}
