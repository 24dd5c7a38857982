//! Improved precision and recall (Kynkäänniemi et al. 2019): how much of one set lies inside the other's manifold, a
//! manifold being the balls around its points that reach to their third nearest neighbours.

use super::Features;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

/// Which neighbour's distance is the radius of a point's ball.
pub const NEIGHBOURS: usize = 3;

/// Points whose distances to [`COLUMNS`] others are in memory at once, per thread.
const ROWS: usize = 128;
const COLUMNS: usize = 1024;

/// Both shares, in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of generated points inside any real ball.
    pub precision: f64,
    /// Share of real points inside any generated ball.
    pub recall: f64,
}

/// Pairs of points [`precision_recall`] looks at.
pub fn manifold_pairs(real: usize, generated: usize) -> u64 {
    let (real, generated) = (real as u64, generated as u64);
    real * real + generated * generated + 2 * real * generated
}

/// Precision and recall with radii to the third nearest other point; `None` when a set has fewer than four points.
/// Takes time in proportion to [`manifold_pairs`]; `watch` hears of the pairs that were looked at since it heard last.
///
/// # Errors
/// That of `watch`, which ends the work.
pub fn precision_recall<T: Copy + Into<f64> + Sync, E: Send>(
    real: &Features<T>,
    generated: &Features<T>,
    watch: &(impl Fn(u64) -> Result<(), E> + Sync),
) -> Result<Option<PrecisionRecall>, E> {
    if real.len() <= NEIGHBOURS || generated.len() <= NEIGHBOURS {
        return Ok(None);
    }
    Ok(Some(PrecisionRecall {
        precision: share_inside(generated, real, &squared_radii(real, watch)?, watch)?,
        recall: share_inside(real, generated, &squared_radii(generated, watch)?, watch)?,
    }))
}

/// Squared distance of every point to its third nearest other point.
fn squared_radii<T: Copy + Into<f64> + Sync, E: Send>(
    points: &Features<T>,
    watch: &(impl Fn(u64) -> Result<(), E> + Sync),
) -> Result<Vec<f64>, E> {
    let radii = over_rows(
        points,
        points,
        |rows| vec![[f64::INFINITY; NEIGHBOURS]; rows],
        |nearest, row, column, distance| {
            let nearest = &mut nearest[row.offset];
            if row.index != column && distance < nearest[NEIGHBOURS - 1] {
                nearest[NEIGHBOURS - 1] = distance;
                nearest.sort_unstable_by(f64::total_cmp);
            }
        },
        watch,
    )?;
    Ok(radii.into_iter().map(|nearest| nearest[NEIGHBOURS - 1]).collect())
}

/// Share of `points` that lie inside any ball.
fn share_inside<T: Copy + Into<f64> + Sync, E: Send>(
    points: &Features<T>,
    centres: &Features<T>,
    squared_radii: &[f64],
    watch: &(impl Fn(u64) -> Result<(), E> + Sync),
) -> Result<f64, E> {
    let inside = over_rows(
        points,
        centres,
        |rows| vec![false; rows],
        |inside, row, column, distance| {
            inside[row.offset] |= distance <= squared_radii[column];
        },
        watch,
    )?;
    Ok(inside.iter().filter(|&&inside| inside).count() as f64 / points.len() as f64)
}

/// A point of the block of rows a thread works on.
struct Row {
    offset: usize,
    index: usize,
}

/// Calls `visit` with the squared distance of every pair; a value a row is collected in `start(rows)`.
fn over_rows<T: Copy + Into<f64> + Sync, R: Send, E: Send>(
    points: &Features<T>,
    others: &Features<T>,
    start: impl Fn(usize) -> Vec<R> + Sync,
    visit: impl Fn(&mut [R], Row, usize, f64) + Sync,
    watch: &(impl Fn(u64) -> Result<(), E> + Sync),
) -> Result<Vec<R>, E> {
    let squares = |features: &Features<T>| -> Vec<f64> {
        let square = |row: usize| features.row(row).iter().map(|&v| v.into() * v.into()).sum();
        (0..features.len()).into_par_iter().map(square).collect()
    };
    let (row_squares, column_squares) = (squares(points), squares(others));
    let blocks: Vec<usize> = (0..points.len()).step_by(ROWS).collect();
    let results = blocks.into_par_iter().map(|first| {
        let rows = first..points.len().min(first + ROWS);
        let left = points.columns(rows.clone());
        let mut result = start(rows.len());
        for first_column in (0..others.len()).step_by(COLUMNS) {
            let columns = first_column..others.len().min(first_column + COLUMNS);
            let right = others.columns(columns.clone());
            let mut products = Mat::zeros(rows.len(), columns.len());
            matmul(&mut products, Accum::Replace, left.transpose(), &right, 1.0, Par::Seq);
            for column in columns {
                for index in rows.clone() {
                    let offset = index - first;
                    let product = products[(offset, column - first_column)];
                    let distance = row_squares[index] + column_squares[column] - 2.0 * product;
                    visit(&mut result, Row { offset, index }, column, distance.max(0.0));
                }
            }
        }
        watch(rows.len() as u64 * others.len() as u64)?;
        Ok(result)
    });
    let results: Vec<Vec<R>> = results.collect::<Result<_, E>>()?;
    Ok(results.into_iter().flatten().collect())
}
