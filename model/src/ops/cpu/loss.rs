//! The losses (network spec §4), summed in f64 over blocks of fixed size.

use super::parallel::{for_each_chunk, map_tasks, rows_per_task, ELEMENTS_PER_TASK};
use super::rows::dot;

/// Below this norm a vector has no direction: its cosine is counted as 0.
const SMALLEST_NORM: f32 = 1e-8;

/// `factor·x - y`, with one factor for every sample (a single one serves all).
#[derive(Clone, Copy, Debug)]
pub struct ScaledDifference<'a> {
    /// One factor for each `len / factors` consecutive values.
    pub factors: &'a [f32],
}

impl ScaledDifference<'_> {
    fn per_sample(&self, len: usize) -> usize {
        (len / self.factors.len().max(1)).max(1)
    }

    /// Mean of the squares.
    pub fn mean_square(&self, x: &[f32], y: &[f32]) -> f64 {
        assert_eq!(x.len(), y.len(), "prediction and target have one size");
        let per_sample = self.per_sample(x.len());
        let parts = map_tasks(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
            let range = task * ELEMENTS_PER_TASK..x.len().min((task + 1) * ELEMENTS_PER_TASK);
            let square = |index: usize| {
                let difference = self.factors[index / per_sample] * x[index] - y[index];
                f64::from(difference) * f64::from(difference)
            };
            range.map(square).sum::<f64>()
        });
        parts.into_iter().sum::<f64>() / x.len() as f64
    }

    /// Adds the gradient of the mean times `dloss` to `dx`.
    pub fn backward(&self, x: &[f32], y: &[f32], dloss: f32, dx: &mut [f32]) {
        let per_sample = self.per_sample(x.len());
        let scale = (2.0 * f64::from(dloss) / x.len() as f64) as f32;
        for_each_chunk(dx, ELEMENTS_PER_TASK, |task, dx| {
            for (index, dx) in dx.iter_mut().enumerate() {
                let index = task * ELEMENTS_PER_TASK + index;
                let factor = self.factors[index / per_sample];
                *dx += scale * factor * (factor * x[index] - y[index]);
            }
        });
    }
}

/// Minus the cosine between rows, averaged.
#[derive(Clone, Copy, Debug)]
pub struct CosineAlignment {
    /// Values of a row.
    pub columns: usize,
}

impl CosineAlignment {
    /// Mean over rows of `-cos(prediction, target)`.
    pub fn loss(&self, prediction: &[f32], target: &[f32]) -> f64 {
        assert_eq!(prediction.len(), target.len(), "prediction and target have one size");
        let rows = prediction.len() / self.columns;
        let cosine = |row: usize| {
            let values = row * self.columns..(row + 1) * self.columns;
            let (p, t) = (&prediction[values.clone()], &target[values]);
            f64::from(dot(p, t)) / (f64::from(length(p)) * f64::from(length(t)))
        };
        -map_tasks(rows, cosine).into_iter().sum::<f64>() / rows as f64
    }

    /// Adds the gradient of the loss times `dloss` to `dprediction`.
    pub fn backward(&self, prediction: &[f32], target: &[f32], dloss: f32, dprediction: &mut [f32]) {
        let columns = self.columns;
        let scale = -dloss / (prediction.len() / columns) as f32;
        let rows = rows_per_task(columns);
        for_each_chunk(dprediction, rows * columns, |task, dprediction| {
            for (index, dprediction) in dprediction.chunks_exact_mut(columns).enumerate() {
                let start = (task * rows + index) * columns;
                let (p, t) = (&prediction[start..][..columns], &target[start..][..columns]);
                let (p_length, t_length) = (length(p), length(t));
                let towards = scale / (p_length * t_length);
                // A length that was replaced by the smallest one is a constant.
                let away = if p_length > SMALLEST_NORM {
                    towards * dot(p, t) / (p_length * p_length)
                } else {
                    0.0
                };
                for ((gradient, p), t) in dprediction.iter_mut().zip(p).zip(t) {
                    *gradient += towards * t - away * p;
                }
            }
        });
    }
}

fn length(values: &[f32]) -> f32 {
    dot(values, values).sqrt().max(SMALLEST_NORM)
}
