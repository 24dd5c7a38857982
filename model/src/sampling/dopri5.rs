//! The Dormand–Prince pair of orders 5 and 4 with adaptive steps (Hairer, Nørsett, Wanner, "Solving Ordinary
//! Differential Equations I", II.4–II.5). Every sample has its own steps, so that it does not depend on its batch; the
//! stages of all samples that are still under way are evaluated as one batch.

use std::ops::ControlFlow;

use dfdx::prelude::Dtype;

use super::field::VelocityField;
use super::SamplerSettings;
use crate::error::ModelError;
use crate::ops::Operators;

const STAGES: usize = 7;
/// Where in the step each stage is evaluated.
const NODES: [f64; STAGES] = [0.0, 0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0];
/// What each stage's state is made of; the last row is the result of order 5.
const WEIGHTS: [[f64; STAGES - 1]; STAGES] = [
    [0.0; 6],
    [0.2, 0.0, 0.0, 0.0, 0.0, 0.0],
    [3.0 / 40.0, 9.0 / 40.0, 0.0, 0.0, 0.0, 0.0],
    [44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0, 0.0, 0.0, 0.0],
    [
        19372.0 / 6561.0,
        -25360.0 / 2187.0,
        64448.0 / 6561.0,
        -212.0 / 729.0,
        0.0,
        0.0,
    ],
    [
        9017.0 / 3168.0,
        -355.0 / 33.0,
        46732.0 / 5247.0,
        49.0 / 176.0,
        -5103.0 / 18656.0,
        0.0,
    ],
    [
        35.0 / 384.0,
        0.0,
        500.0 / 1113.0,
        125.0 / 192.0,
        -2187.0 / 6784.0,
        11.0 / 84.0,
    ],
];
/// Difference between the results of order 5 and 4.
const ERROR: [f64; STAGES] = [
    71.0 / 57600.0,
    0.0,
    -71.0 / 16695.0,
    71.0 / 1920.0,
    -17253.0 / 339200.0,
    22.0 / 525.0,
    -1.0 / 40.0,
];
const SAFETY: f64 = 0.9;
const SMALLEST_FACTOR: f64 = 0.2;
const LARGEST_FACTOR: f64 = 10.0;
const ORDER: f64 = 5.0;
/// A step below this will not end in a lifetime: the field is not smooth or not finite.
const SMALLEST_STEP: f64 = 1e-8;

/// One sample on its way from t = 1 to t = 0.
struct Trajectory {
    x: Vec<f64>,
    time: f64,
    /// Length of the next step, positive.
    step: f64,
    /// Velocities of the stages; the first is the one at `time`.
    slopes: Vec<Vec<f64>>,
}

pub(super) fn dopri5<E: Dtype, D: Operators<E>>(
    field: &VelocityField<'_, E, D>,
    settings: &SamplerSettings,
    x: &mut [f64],
    on_progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ModelError> {
    let values = field.values();
    let mut trajectories = start(field, settings, x)?;
    let mut active: Vec<usize> = (0..trajectories.len()).collect();
    while !active.is_empty() {
        for stage in 1..STAGES {
            let mut states = Vec::with_capacity(active.len() * values);
            let mut times = Vec::with_capacity(active.len());
            for &sample in &active {
                states.extend(trajectories[sample].stage_state(stage));
                times.push(trajectories[sample].stage_time(stage));
            }
            let velocity = field.of(&active, &states, &times)?;
            for (&sample, velocity) in active.iter().zip(velocity.chunks_exact(values)) {
                trajectories[sample].slopes.push(velocity.to_vec());
            }
        }
        for &sample in &active {
            trajectories[sample].accept_or_shrink(sample, settings)?;
        }
        active.retain(|&sample| trajectories[sample].time > 0.0);
        let latest = active.iter().map(|&sample| trajectories[sample].time);
        if on_progress(1.0 - latest.fold(0.0, f64::max)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    for (x, trajectory) in x.chunks_exact_mut(values).zip(&trajectories) {
        x.copy_from_slice(&trajectory.x);
    }
    Ok(ControlFlow::Continue(()))
}

/// First slopes and first step lengths (Hairer et al., II.4, "starting step size").
fn start<E: Dtype, D: Operators<E>>(
    field: &VelocityField<'_, E, D>,
    settings: &SamplerSettings,
    x: &[f64],
) -> Result<Vec<Trajectory>, ModelError> {
    let values = field.values();
    let everyone: Vec<usize> = (0..field.samples()).collect();
    let slopes = field.of(&everyone, x, &vec![1.0; everyone.len()])?;
    let mut trajectories = Vec::with_capacity(everyone.len());
    let mut probes = Vec::with_capacity(x.len());
    for (x, slope) in x.chunks_exact(values).zip(slopes.chunks_exact(values)) {
        let (of_state, of_slope) = (scaled_norm(x, x, x, settings), scaled_norm(slope, x, x, settings));
        let step = if of_state < 1e-5 || of_slope < 1e-5 {
            1e-6
        } else {
            0.01 * of_state / of_slope
        };
        probes.extend(x.iter().zip(slope).map(|(x, slope)| x - step * slope));
        trajectories.push(Trajectory {
            x: x.to_vec(),
            time: 1.0,
            step,
            slopes: vec![slope.to_vec()],
        });
    }
    let times: Vec<f64> = trajectories.iter().map(|t| (1.0 - t.step).max(0.0)).collect();
    let ahead = field.of(&everyone, &probes, &times)?;
    for (trajectory, ahead) in trajectories.iter_mut().zip(ahead.chunks_exact(values)) {
        let (x, slope, first) = (&trajectory.x, &trajectory.slopes[0], trajectory.step);
        let change: Vec<f64> = ahead.iter().zip(slope).map(|(ahead, slope)| ahead - slope).collect();
        let curvature = scaled_norm(&change, x, x, settings) / first;
        let steepest = curvature.max(scaled_norm(slope, x, x, settings));
        let second = if steepest <= 1e-15 {
            (1e-3 * first).max(1e-6)
        } else {
            (0.01 / steepest).powf(1.0 / ORDER)
        };
        trajectory.step = second.min(100.0 * first).min(1.0);
    }
    Ok(trajectories)
}

impl Trajectory {
    fn stage_time(&self, stage: usize) -> f64 {
        (self.time - NODES[stage] * self.step).max(0.0)
    }

    fn stage_state(&self, stage: usize) -> Vec<f64> {
        let mut state = self.x.clone();
        for (slope, weight) in self.slopes.iter().zip(WEIGHTS[stage]) {
            let factor = -self.step * weight;
            state
                .iter_mut()
                .zip(slope)
                .for_each(|(state, slope)| *state += factor * slope);
        }
        state
    }

    /// Takes the step if its error is within the tolerances, and chooses the length of the next one.
    fn accept_or_shrink(&mut self, sample: usize, settings: &SamplerSettings) -> Result<(), ModelError> {
        let next = self.stage_state(STAGES - 1);
        let mut error = vec![0.0; next.len()];
        for (slope, weight) in self.slopes.iter().zip(ERROR) {
            error
                .iter_mut()
                .zip(slope)
                .for_each(|(error, slope)| *error += self.step * weight * slope);
        }
        let ratio = scaled_norm(&error, &self.x, &next, settings);
        let last_slope = self.slopes.swap_remove(STAGES - 1);
        let first_slope = self.slopes.swap_remove(0);
        let accepted = ratio <= 1.0;
        if accepted {
            self.time = self.stage_time(STAGES - 1);
            self.x = next;
        }
        self.slopes = vec![if accepted { last_slope } else { first_slope }];
        let factor = SAFETY * ratio.powf(-1.0 / ORDER);
        let largest = if accepted { LARGEST_FACTOR } else { 1.0 };
        // Not a number: the field is not finite there; the shortest steps get as close as they can, then give up.
        let factor = if factor.is_nan() {
            SMALLEST_FACTOR
        } else {
            factor.clamp(SMALLEST_FACTOR, largest)
        };
        self.step = (self.step * factor).min(self.time);
        if self.time > 0.0 && self.step < SMALLEST_STEP.min(self.time) {
            return Err(ModelError::Integration {
                sample,
                time: self.time,
            });
        }
        Ok(())
    }
}

/// Root mean square of `values` in units of the tolerance at the larger of two states.
fn scaled_norm(values: &[f64], state: &[f64], next: &[f64], settings: &SamplerSettings) -> f64 {
    let squares = values.iter().zip(state.iter().zip(next)).map(|(value, (state, next))| {
        let size = state.abs().max(next.abs());
        (value / (settings.absolute_tolerance + settings.relative_tolerance * size)).powi(2)
    });
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}
