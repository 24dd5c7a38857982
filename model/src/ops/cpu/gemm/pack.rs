//! Copying a matrix into the order in which a kernel reads it.
//!
//! A panel holds `width` rows of A (or columns of B: the same thing for the transposed view) and stores, for each `k`, the
//! `width` values next to each other. Missing rows of the last panel are zeros.

use super::matrix::MatrixRef;

/// Values of a cache line.
const CACHE_LINE: usize = 16;

/// Packs rows `row..row + count` of `matrix`, columns `k..k + target.len() / width`, into one panel.
pub(super) fn pack_panel(
    target: &mut [f32],
    width: usize,
    matrix: &MatrixRef<'_>,
    row: usize,
    count: usize,
    k: usize,
    avx: bool,
) {
    debug_assert!(count <= width && target.len().is_multiple_of(width));
    if target.is_empty() || count == 0 {
        return;
    }
    let (source, (row_stride, column_stride)) = (matrix.from(row, k), matrix.strides());
    if row_stride == 1 {
        copy_rows(target, width, source, column_stride, count);
    } else if column_stride == 1 {
        transpose(target, width, source, row_stride, count, avx);
    } else {
        unreachable!("a matrix view has unit stride along one of its axes");
    }
}

/// How many neighbouring panels of `width` are packed together: where the values of one `k` lie side by side, a cache line
/// is read once for all panels that need it.
pub(super) fn panels_together(matrix: &MatrixRef<'_>, width: usize) -> usize {
    if matrix.strides().0 == 1 && width < CACHE_LINE {
        CACHE_LINE.div_ceil(width)
    } else {
        1
    }
}

/// Packs neighbouring panels, each completely filled, of a matrix whose values of one `k` lie side by side; says whether
/// there is a loop for panels of this width.
pub(super) fn pack_whole_panels(
    target: &mut [f32],
    width: usize,
    matrix: &MatrixRef<'_>,
    row: usize,
    k: usize,
    length: usize,
) -> bool {
    let (source, (row_stride, stride)) = (matrix.from(row, k), matrix.strides());
    if row_stride != 1 {
        return false;
    }
    match (width, target.len() / (width * length)) {
        (4, 4) => copy_panels::<4, 4>(target, length, source, stride),
        (6, 3) => copy_panels::<6, 3>(target, length, source, stride),
        (8, 2) => copy_panels::<8, 2>(target, length, source, stride),
        (12, 2) => copy_panels::<12, 2>(target, length, source, stride),
        (16, 1) => copy_panels::<16, 1>(target, length, source, stride),
        (48, 1) => copy_panels::<48, 1>(target, length, source, stride),
        _ => return false,
    }
    true
}

/// Constant sizes make every copy a few vector moves.
fn copy_panels<const WIDTH: usize, const PANELS: usize>(
    target: &mut [f32],
    length: usize,
    source: &[f32],
    stride: usize,
) {
    for k in 0..length {
        let values = &source[k * stride..][..PANELS * WIDTH];
        for panel in 0..PANELS {
            target[(panel * length + k) * WIDTH..][..WIDTH].copy_from_slice(&values[panel * WIDTH..][..WIDTH]);
        }
    }
}

/// The values of one `k` already lie side by side.
fn copy_rows(target: &mut [f32], width: usize, source: &[f32], stride: usize, count: usize) {
    for (k, group) in target.chunks_exact_mut(width).enumerate() {
        let (values, padding) = group.split_at_mut(count);
        values.copy_from_slice(&source[k * stride..k * stride + count]);
        padding.fill(0.0);
    }
}

/// The values of one row lie side by side: blocks of 8×8 are turned over.
fn transpose(target: &mut [f32], width: usize, source: &[f32], stride: usize, count: usize, avx: bool) {
    let length = target.len() / width;
    let whole = if avx { length / 8 * 8 } else { 0 };
    for first in (0..width).step_by(8) {
        let columns = (width - first).min(8);
        let rows = count.saturating_sub(first).min(8);
        if rows == 0 {
            for k in 0..length {
                target[k * width + first..][..columns].fill(0.0);
            }
            continue;
        }
        if whole > 0 {
            let values = &source[first * stride..][..(rows - 1) * stride + whole];
            let groups = &mut target[first..][..(whole - 1) * width + columns];
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `avx` is only true for kernels of CPUs with AVX, and both slices were just cut to what is read
            // and written.
            unsafe {
                transpose_blocks(
                    (values.as_ptr(), stride),
                    rows,
                    (groups.as_mut_ptr(), width),
                    columns,
                    whole,
                );
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (values, groups);
        }
        for k in whole..length {
            let group = &mut target[k * width + first..][..columns];
            let (values, padding) = group.split_at_mut(rows);
            for (row, value) in values.iter_mut().enumerate() {
                *value = source[(first + row) * stride + k];
            }
            padding.fill(0.0);
        }
    }
}

/// Turns `rows` rows of `length` values, a multiple of 8, into `length` rows of `columns` values; values of missing rows are
/// zero.
///
/// # Safety
/// The CPU has AVX; `rows` and `columns` are 1 to 8; `source` holds `rows` rows of `length` values at its distance, and
/// `length` rows of `columns` values may be written at `target` and its distance.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn transpose_blocks(
    source: (*const f32, usize),
    rows: usize,
    target: (*mut f32, usize),
    columns: usize,
    length: usize,
) {
    // Whole blocks of the kernels' panels have a loop of constants, without a question inside.
    // SAFETY: passed on from this function's own contract.
    unsafe {
        match (rows, columns) {
            (8, 8) => loop_over_blocks::<8>(source, rows, target, columns, length),
            (6, 6) => loop_over_blocks::<6>(source, rows, target, columns, length),
            _ => loop_over_blocks::<0>(source, rows, target, columns, length),
        }
    }
}

/// # Safety
/// As [`transpose_blocks`]; `rows` and `columns` are `WHOLE` unless that is 0.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn loop_over_blocks<const WHOLE: usize>(
    source: (*const f32, usize),
    rows: usize,
    target: (*mut f32, usize),
    columns: usize,
    length: usize,
) {
    for k in (0..length).step_by(8) {
        // SAFETY: the 8 values from `k` on lie within the rows, and the 8 rows from `k` on within the target.
        unsafe {
            let (source, target) = ((source.0.add(k), source.1), (target.0.add(k * target.1), target.1));
            transpose_block::<WHOLE>(source, rows, target, columns);
        }
    }
}

/// Turns `rows` rows of 8 values into 8 rows of `columns` values; values of missing rows are zero.
///
/// # Safety
/// The CPU has AVX; `rows` and `columns` are 1 to 8, and both are `WHOLE` unless that is 0; `source` holds `rows` rows of 8
/// values `stride` apart, and 8 rows of `columns` values `target_stride` apart may be written at `target`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[inline]
unsafe fn transpose_block<const WHOLE: usize>(
    (source, stride): (*const f32, usize),
    rows: usize,
    (target, target_stride): (*mut f32, usize),
    columns: usize,
) {
    use std::arch::x86_64::*;
    let (rows, columns) = if WHOLE > 0 { (WHOLE, WHOLE) } else { (rows, columns) };
    // SAFETY: the loads and stores stay within the rows promised by the caller.
    unsafe {
        let mut r = [_mm256_setzero_ps(); 8];
        for (row, values) in r.iter_mut().enumerate().take(rows) {
            *values = _mm256_loadu_ps(source.add(row * stride));
        }
        // Pairs of values, then quarters, then halves change places.
        let p = [
            _mm256_unpacklo_ps(r[0], r[1]),
            _mm256_unpackhi_ps(r[0], r[1]),
            _mm256_unpacklo_ps(r[2], r[3]),
            _mm256_unpackhi_ps(r[2], r[3]),
            _mm256_unpacklo_ps(r[4], r[5]),
            _mm256_unpackhi_ps(r[4], r[5]),
            _mm256_unpacklo_ps(r[6], r[7]),
            _mm256_unpackhi_ps(r[6], r[7]),
        ];
        let q = [
            _mm256_shuffle_ps::<0x44>(p[0], p[2]),
            _mm256_shuffle_ps::<0xee>(p[0], p[2]),
            _mm256_shuffle_ps::<0x44>(p[1], p[3]),
            _mm256_shuffle_ps::<0xee>(p[1], p[3]),
            _mm256_shuffle_ps::<0x44>(p[4], p[6]),
            _mm256_shuffle_ps::<0xee>(p[4], p[6]),
            _mm256_shuffle_ps::<0x44>(p[5], p[7]),
            _mm256_shuffle_ps::<0xee>(p[5], p[7]),
        ];
        for k in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(q[k], q[k + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(q[k], q[k + 4]);
            store_first(target.add(k * target_stride), low, columns);
            store_first(target.add((k + 4) * target_stride), high, columns);
        }
    }
}

/// Stores the first `count` values of a vector.
///
/// # Safety
/// The CPU has AVX and `count` values, at most 8, may be written at `target`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[inline]
unsafe fn store_first(target: *mut f32, vector: std::arch::x86_64::__m256, count: usize) {
    use std::arch::x86_64::*;
    // SAFETY: exactly `count` values are written.
    unsafe {
        match count {
            8 => _mm256_storeu_ps(target, vector),
            4 => _mm_storeu_ps(target, _mm256_castps256_ps128(vector)),
            6 => {
                _mm_storeu_ps(target, _mm256_castps256_ps128(vector));
                let rest = _mm_castps_si128(_mm256_extractf128_ps::<1>(vector));
                _mm_storeu_si64(target.add(4).cast(), rest);
            }
            _ => {
                let mut values = [0.0; 8];
                _mm256_storeu_ps(values.as_mut_ptr(), vector);
                target.copy_from_nonoverlapping(values.as_ptr(), count);
            }
        }
    }
}
