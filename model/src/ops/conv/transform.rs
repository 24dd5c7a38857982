//! The three transforms of Winograd's F(4×4, 3×3) with the interpolation points 0, ±1, ±2, ∞ (Lavin & Gray 2016, §4.2):
//! `Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A`, on sixteen channels at a time.

use super::lanes::Lanes;

/// Side of an input tile.
pub(super) const TILE: usize = 6;
/// Side of an output tile.
pub(super) const STEP: usize = 4;
/// Products of a tile.
pub(super) const POINTS: usize = TILE * TILE;

/// `Bᵀd` of one column.
#[inline(always)]
unsafe fn input_column<L: Lanes>(d: [L; 6]) -> [L; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let (two, four, five) = (L::splat(2.0), L::splat(4.0), L::splat(5.0));
        let minus = |factor: L, a: L, b: L| b.sub(factor.mul(a));
        let even = minus(four, d[2], d[4]);
        let odd = minus(four, d[1], d[3]);
        let near = d[4].sub(d[2]);
        let far = d[3].sub(d[1]).mul(two);
        [
            d[0].multiply_add(four, minus(five, d[2], d[4])),
            even.add(odd),
            even.sub(odd),
            near.add(far),
            near.sub(far),
            d[1].multiply_add(four, minus(five, d[3], d[5])),
        ]
    }
}

/// `Gg` of one column.
#[inline(always)]
unsafe fn weight_column<L: Lanes>(g: [L; 3]) -> [L; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let ends = g[0].add(g[2]).mul(L::splat(-1.0 / 6.0));
        let middle = g[1].mul(L::splat(1.0 / 6.0));
        let outer = g[0].multiply_add(L::splat(1.0 / 24.0), g[2].mul(L::splat(1.0 / 6.0)));
        let inner = g[1].mul(L::splat(1.0 / 12.0));
        [
            g[0].mul(L::splat(0.25)),
            ends.sub(middle),
            ends.add(middle),
            outer.add(inner),
            outer.sub(inner),
            g[2],
        ]
    }
}

/// `Aᵀm` of one column.
#[inline(always)]
unsafe fn output_column<L: Lanes>(m: [L; 6]) -> [L; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (near, near_odd) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (far, far_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(near).add(far),
            far_odd.multiply_add(L::splat(2.0), near_odd),
            far.multiply_add(L::splat(4.0), near),
            far_odd.multiply_add(L::splat(8.0), near_odd).add(m[5]),
        ]
    }
}

/// Transforms a tile whose rows are `row_stride` and pixels sixteen values apart; the results are `point_stride` apart.
///
/// # Safety
/// The pointers must be valid for all of them.
#[inline(always)]
pub(super) unsafe fn input<L: Lanes>(tile: *const f32, row_stride: usize, to: *mut f32, point_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [[L::splat(0.0); TILE]; TILE];
        for (x, column) in columns.iter_mut().enumerate() {
            let mut values = [L::splat(0.0); TILE];
            for (y, value) in values.iter_mut().enumerate() {
                *value = L::load(tile.add(y * row_stride + x * 16));
            }
            *column = input_column(values);
        }
        for y in 0..TILE {
            let row = input_column(columns.map(|column| column[y]));
            for (x, value) in row.into_iter().enumerate() {
                value.store(to.add((y * TILE + x) * point_stride));
            }
        }
    }
}

/// Transforms the nine taps of one input channel for sixteen output channels; taps are sixteen values apart.
///
/// # Safety
/// The pointers must be valid for all taps and points.
#[inline(always)]
pub(super) unsafe fn weight<L: Lanes>(taps: *const f32, to: *mut f32, point_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [[L::splat(0.0); TILE]; 3];
        for (x, column) in columns.iter_mut().enumerate() {
            *column = weight_column([0, 1, 2].map(|y| L::load(taps.add((y * 3 + x) * 16))));
        }
        for y in 0..TILE {
            let row = weight_column(columns.map(|column| column[y]));
            for (x, value) in row.into_iter().enumerate() {
                value.store(to.add((y * TILE + x) * point_stride));
            }
        }
    }
}

/// Transforms the points of a tile, `point_stride` values apart, into its output pixels.
///
/// # Safety
/// The pointer must be valid for all points.
#[inline(always)]
pub(super) unsafe fn output<L: Lanes>(points: *const f32, point_stride: usize) -> [[L; STEP]; STEP] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [[L::splat(0.0); STEP]; TILE];
        for (x, column) in columns.iter_mut().enumerate() {
            let mut values = [L::splat(0.0); TILE];
            for (y, value) in values.iter_mut().enumerate() {
                *value = L::load(points.add((y * TILE + x) * point_stride));
            }
            *column = output_column(values);
        }
        let mut rows = [[L::splat(0.0); STEP]; STEP];
        for (y, row) in rows.iter_mut().enumerate() {
            *row = output_column(columns.map(|column| column[y]));
        }
        rows
    }
}
