//! The innermost loop: one small tile of the product, held in vector registers.
//!
//! A kernel multiplies up to `mr` rows of A with up to `nr` columns of B, each packed or where it lies. Every value of the
//! tile is one chain of multiply-adds over `k`, in order, whatever the tile's size: a result never depends on how the
//! product was cut into tiles, nor on what was packed.

use std::sync::OnceLock;

/// The largest tile of any kernel, in values: where incomplete columns are computed before they are copied out.
pub(super) const LARGEST_TILE: usize = 8 * 48;

/// The arguments of one tile: `C[rows, vectors · lanes] (+)= A · B`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows computed, 1 to `mr`.
    pub rows: usize,
    /// Vectors of columns computed, 1 to `nr / lanes`.
    pub vectors: usize,
    /// Length of the sum.
    pub k: usize,
    /// A's first value.
    pub a: *const f32,
    /// Distances of A's rows and of its values along `k`; `(1, mr)` in a packed panel.
    pub a_strides: (usize, usize),
    /// B's first value; the columns of one `k` lie side by side.
    pub b: *const f32,
    /// Distance of B's values along `k`; `vectors · lanes` in a packed panel.
    pub b_stride: usize,
    /// First value of the tile.
    pub c: *mut f32,
    /// Distance of the tile's rows.
    pub row_stride: usize,
    /// Whether to add to the tile or to overwrite it.
    pub accumulate: bool,
}

/// A micro-kernel for one instruction set.
pub(crate) struct Kernel {
    pub(super) name: &'static str,
    /// Rows of a tile.
    pub(super) mr: usize,
    /// Columns of a tile.
    pub(super) nr: usize,
    /// Values of a vector register.
    pub(super) lanes: usize,
    /// Computes a tile. Only called on a CPU that has the kernel's instruction set.
    pub(super) tile: unsafe fn(Tile),
    /// Whether 8×8 transpositions may use AVX.
    pub(super) avx: bool,
}

impl Kernel {
    /// The fastest kernel of this CPU.
    pub(crate) fn best() -> &'static Kernel {
        static BEST: OnceLock<&'static Kernel> = OnceLock::new();
        BEST.get_or_init(|| Self::available()[0])
    }

    /// Every kernel this CPU can run, the fastest first.
    pub(crate) fn available() -> Vec<&'static Kernel> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                kernels.push(&avx512::KERNEL);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kernels.push(&avx2::KERNEL);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            kernels.push(&neon::KERNEL);
        }
        kernels.push(&portable::KERNEL);
        kernels
    }
}

/// Writes out a kernel for one vector type.
macro_rules! kernel {
    (
        $(#[$target:meta])*
        name: $name:literal, vector: $vector:ty, lanes: $lanes:literal, avx: $avx:literal,
        rows: [$($row:literal)*] of $mr:literal, vectors: [$($count:literal)*] of $most:literal,
        zero: $zero:expr, load: $load:path, store: $store:path, splat: $splat:path, add: $add:path,
        multiply_add: $multiply_add:path
    ) => {
        use super::{Kernel, Tile};

        pub(in super::super) static KERNEL: Kernel = Kernel {
            name: $name,
            mr: $mr,
            nr: $most * $lanes,
            lanes: $lanes,
            tile: by_vectors,
            avx: $avx,
        };

        /// # Safety
        /// The CPU has the kernel's instruction set, and `tile` is what [`tile`] asks for.
        unsafe fn by_vectors(arguments: Tile) {
            // SAFETY: passed on from this function's own contract.
            unsafe {
                match (arguments.vectors, arguments.a_strides == (1, $mr)) {
                    $(
                        ($count, true) => by_rows::<$count, true>(arguments),
                        ($count, false) => by_rows::<$count, false>(arguments),
                    )*
                    (other, _) => unreachable!("a tile of {other} vectors"),
                }
            }
        }

        /// # Safety
        /// As [`by_vectors`].
        $(#[$target])*
        unsafe fn by_rows<const VECTORS: usize, const A_PACKED: bool>(arguments: Tile) {
            // SAFETY: passed on from this function's own contract.
            unsafe {
                match arguments.rows {
                    $($row => tile::<$row, VECTORS, A_PACKED>(arguments),)*
                    other => unreachable!("a tile of {other} rows"),
                }
            }
        }

        /// # Safety
        /// The CPU has the kernel's instruction set; from `a` on, `ROWS` by `k` values at distances `a_strides` may be
        /// read, from `b` on, `k` groups of `VECTORS · lanes` values `b_stride` apart; with `A_PACKED`, `a_strides` are
        /// those of a packed panel; `c` is valid for writing (and reading when accumulating) `ROWS` rows of
        /// `VECTORS · lanes` values, `row_stride` apart, which nobody else touches meanwhile.
        $(#[$target])*
        #[inline]
        unsafe fn tile<const ROWS: usize, const VECTORS: usize, const A_PACKED: bool>(arguments: Tile) {
            let Tile { k, mut a, a_strides, mut b, b_stride, c, row_stride, accumulate, .. } = arguments;
            let (a_row, a_step) = if A_PACKED { (1, $mr) } else { a_strides };
            let mut sum = [[$zero; VECTORS]; ROWS];
            // SAFETY: what is read lies within the `k` steps promised for `a` and `b` (the pointers leave them only after
            // the last), and every access to `c` is within the tile.
            unsafe {
                for _ in 0..k {
                    let mut column = [$zero; VECTORS];
                    for (vector, column) in column.iter_mut().enumerate() {
                        *column = $load(b.add(vector * $lanes));
                    }
                    for (row, sum) in sum.iter_mut().enumerate() {
                        let factor = $splat(*a.add(row * a_row));
                        for (sum, column) in sum.iter_mut().zip(column) {
                            *sum = $multiply_add(factor, column, *sum);
                        }
                    }
                    a = a.wrapping_add(a_step);
                    b = b.wrapping_add(b_stride);
                }
                for (row, sum) in sum.iter().enumerate() {
                    for (vector, &sum) in sum.iter().enumerate() {
                        let target = c.add(row * row_stride + vector * $lanes);
                        $store(target, if accumulate { $add($load(target), sum) } else { sum });
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    // 24 of the 32 registers hold the tile; a column of B is loaded once for 8 rows.
    kernel! {
        #[target_feature(enable = "avx512f")]
        name: "avx512", vector: __m512, lanes: 16, avx: true,
        rows: [1 2 3 4 5 6 7 8] of 8, vectors: [1 2 3] of 3,
        zero: _mm512_setzero_ps(), load: _mm512_loadu_ps, store: _mm512_storeu_ps, splat: _mm512_set1_ps,
        add: _mm512_add_ps, multiply_add: _mm512_fmadd_ps
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    // 12 of the 16 registers hold the tile, 2 a group of B, and 2 are left for values of A. With 4 rows of 3 vectors not
    // one would be left over, and the compiler moves the tile to memory and back: less than half as fast.
    kernel! {
        #[target_feature(enable = "avx2,fma")]
        name: "avx2", vector: __m256, lanes: 8, avx: true,
        rows: [1 2 3 4 5 6] of 6, vectors: [1 2] of 2,
        zero: _mm256_setzero_ps(), load: _mm256_loadu_ps, store: _mm256_storeu_ps, splat: _mm256_set1_ps,
        add: _mm256_add_ps, multiply_add: _mm256_fmadd_ps
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    // 24 of the 32 registers hold the tile, as with AVX-512.
    kernel! {
        #[target_feature(enable = "neon")]
        name: "neon", vector: float32x4_t, lanes: 4, avx: false,
        rows: [1 2 3 4 5 6 7 8] of 8, vectors: [1 2 3] of 3,
        zero: vdupq_n_f32(0.0), load: vld1q_f32, store: vst1q_f32, splat: vdupq_n_f32,
        add: vaddq_f32, multiply_add: multiply_add
    }

    /// The sum is the first operand of the instruction.
    #[target_feature(enable = "neon")]
    #[inline]
    fn multiply_add(factor: float32x4_t, column: float32x4_t, sum: float32x4_t) -> float32x4_t {
        vfmaq_f32(sum, factor, column)
    }
}

/// Plain arrays that the compiler turns into the vectors of the target (SSE2 on x86-64).
mod portable {
    type Vector = [f32; LANES];
    const LANES: usize = 4;

    unsafe fn load(source: *const f32) -> Vector {
        // SAFETY: the caller's pointer is valid for `LANES` values; an array of f32 needs no more alignment than f32.
        unsafe { source.cast::<Vector>().read() }
    }

    unsafe fn store(target: *mut f32, vector: Vector) {
        // SAFETY: as in `load`.
        unsafe { target.cast::<Vector>().write(vector) }
    }

    fn splat(value: f32) -> Vector {
        [value; LANES]
    }

    fn add(left: Vector, right: Vector) -> Vector {
        std::array::from_fn(|lane| left[lane] + right[lane])
    }

    /// Fused where that is one instruction of the target; elsewhere it would be a call into the C library.
    fn multiply_add(factor: Vector, column: Vector, sum: Vector) -> Vector {
        std::array::from_fn(|lane| {
            if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                factor[lane].mul_add(column[lane], sum[lane])
            } else {
                factor[lane] * column[lane] + sum[lane]
            }
        })
    }

    kernel! {
        name: "portable", vector: Vector, lanes: 4, avx: false,
        rows: [1 2 3 4] of 4, vectors: [1 2] of 2,
        zero: [0.0; LANES], load: load, store: store, splat: splat, add: add, multiply_add: multiply_add
    }
}
