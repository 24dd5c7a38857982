//! Samplers on a fixed grid of times.

use std::ops::ControlFlow;

use dfdx::prelude::Dtype;

use super::field::VelocityField;
use super::noise::NoiseSource;
use super::SamplerSettings;
use crate::error::ModelError;
use crate::ops::Operators;

/// Where the stochastic grid ends; the rest of the way to 0 is one step without noise.
const LAST_NOISY_TIME: f64 = 0.04;

type Progress<'a> = &'a mut dyn FnMut(f64) -> ControlFlow<()>;

/// Euler–Maruyama: drift `v - t·score` with the score that follows from the velocity.
pub(super) fn sde<E: Dtype, D: Operators<E>>(
    field: &VelocityField<'_, E, D>,
    settings: &SamplerSettings,
    x: &mut [f64],
    noise: &impl NoiseSource,
    on_progress: Progress<'_>,
) -> Result<ControlFlow<()>, ModelError> {
    let (values, steps) = (field.values(), settings.steps);
    let mut grid = even_grid(LAST_NOISY_TIME, steps - 1);
    grid.push(0.0);
    let mut draw = vec![0.0; values];
    for (step, pair) in grid.windows(2).enumerate() {
        let (t, next) = (pair[0], pair[1]);
        let velocity = field.at(x, t, field.is_guided(t))?;
        let spread = (2.0 * t).sqrt() * (t - next).sqrt();
        let is_last = step + 1 == steps;
        let samples = x.chunks_exact_mut(values).zip(velocity.chunks_exact(values));
        for (sample, (x, velocity)) in samples.enumerate() {
            if is_last {
                draw.fill(0.0);
            } else {
                noise.step(step, sample, &mut draw);
            }
            for ((x, &v), &draw) in x.iter_mut().zip(velocity).zip(&draw) {
                let drift = v - t * settings.path.score(*x, v, t);
                *x += drift * (next - t) + spread * draw;
            }
        }
        if on_progress((step + 1) as f64 / steps as f64).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Euler's method.
pub(super) fn euler<E: Dtype, D: Operators<E>>(
    field: &VelocityField<'_, E, D>,
    steps: usize,
    x: &mut [f64],
    on_progress: Progress<'_>,
) -> Result<ControlFlow<()>, ModelError> {
    for (step, pair) in even_grid(0.0, steps).windows(2).enumerate() {
        let (t, next) = (pair[0], pair[1]);
        let velocity = field.at(x, t, field.is_guided(t))?;
        advance(x, &velocity, next - t);
        if on_progress((step + 1) as f64 / steps as f64).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Heun's method: the mean of the slopes at both ends, plain Euler on the last step. The step's start decides about
/// guidance for both.
pub(super) fn heun<E: Dtype, D: Operators<E>>(
    field: &VelocityField<'_, E, D>,
    steps: usize,
    x: &mut [f64],
    on_progress: Progress<'_>,
) -> Result<ControlFlow<()>, ModelError> {
    for (step, pair) in even_grid(0.0, steps).windows(2).enumerate() {
        let (t, next) = (pair[0], pair[1]);
        let guided = field.is_guided(t);
        let mut slope = field.at(x, t, guided)?;
        if step + 1 < steps {
            let mut ahead = x.to_vec();
            advance(&mut ahead, &slope, next - t);
            let end = field.at(&ahead, next, guided)?;
            slope
                .iter_mut()
                .zip(end)
                .for_each(|(start, end)| *start = 0.5 * (*start + end));
        }
        advance(x, &slope, next - t);
        if on_progress((step + 1) as f64 / steps as f64).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// `steps + 1` even times from 1 to `end`.
fn even_grid(end: f64, steps: usize) -> Vec<f64> {
    let time = |step: usize| match step {
        _ if step == steps && steps > 0 => end,
        _ => 1.0 + (end - 1.0) * step as f64 / steps.max(1) as f64,
    };
    (0..=steps).map(time).collect()
}

fn advance(x: &mut [f64], slope: &[f64], step: f64) {
    x.iter_mut().zip(slope).for_each(|(x, slope)| *x += step * slope);
}
