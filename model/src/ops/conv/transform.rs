//! The three transforms of Winograd's F(4×4, 3×3), `Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A` (Lavin & Gray 2016, §4.2), on sixteen
//! channels at a time.
//!
//! The interpolation points are 0, ±2/3, ±3/2, ∞. The usual 0, ±1, ±2, ∞ need fewer multiplications, but over 512
//! channels their largest f32 error is five times that of these points (6.0e-5 and 1.1e-5 of the output's deviation).

use super::lanes::Lanes;

/// Side of an input tile.
pub(super) const TILE: usize = 6;
/// Side of an output tile.
pub(super) const STEP: usize = 4;
/// Products of a tile.
pub(super) const POINTS: usize = TILE * TILE;

/// The inner points ±`A` and the outer points ±`B`; their product is 1.
const A: f32 = 2.0 / 3.0;
const B: f32 = 3.0 / 2.0;

/// `Bᵀd` of one column.
#[inline(always)]
unsafe fn input_column<L: Lanes>(d: [L; 6]) -> [L; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let minus = |factor: f32, a: L, b: L| b.sub(a.mul(L::splat(factor)));
        let inner_even = minus(B * B, d[2], d[4]);
        let inner_odd = minus(B, d[1], d[3].mul(L::splat(A)));
        let outer_even = minus(A * A, d[2], d[4]);
        let outer_odd = minus(A, d[1], d[3].mul(L::splat(B)));
        [
            minus(A * A + B * B, d[2], d[0].add(d[4])),
            inner_even.add(inner_odd),
            inner_even.sub(inner_odd),
            outer_even.add(outer_odd),
            outer_even.sub(outer_odd),
            minus(A * A + B * B, d[3], d[1].add(d[5])),
        ]
    }
}

/// `Gg` of one column.
#[inline(always)]
unsafe fn weight_column<L: Lanes>(g: [L; 3]) -> [L; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        const INNER: f32 = 1.0 / (2.0 * A * A * (A * A - B * B));
        const OUTER: f32 = 1.0 / (2.0 * B * B * (B * B - A * A));
        let inner_even = g[2].multiply_add(L::splat(A * A), g[0]).mul(L::splat(INNER));
        let inner_odd = g[1].mul(L::splat(A * INNER));
        let outer_even = g[2].multiply_add(L::splat(B * B), g[0]).mul(L::splat(OUTER));
        let outer_odd = g[1].mul(L::splat(B * OUTER));
        [
            g[0],
            inner_even.add(inner_odd),
            inner_even.sub(inner_odd),
            outer_even.add(outer_odd),
            outer_even.sub(outer_odd),
            g[2],
        ]
    }
}

/// `Aᵀm` of one column.
#[inline(always)]
unsafe fn output_column<L: Lanes>(m: [L; 6]) -> [L; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (inner_even, inner_odd) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (outer_even, outer_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
        let weigh = |inner: L, inner_factor: f32, outer: L, outer_factor: f32| {
            inner.multiply_add(L::splat(inner_factor), outer.mul(L::splat(outer_factor)))
        };
        [
            m[0].add(inner_even).add(outer_even),
            weigh(inner_odd, A, outer_odd, B),
            weigh(inner_even, A * A, outer_even, B * B),
            weigh(inner_odd, A * A * A, outer_odd, B * B * B).add(m[5]),
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
