//! AdamW with the moving average of the weights in one pass, and the norm for clipping.

use rayon::prelude::*;

use super::parallel::{map_tasks, ELEMENTS_PER_TASK};
use super::simd::{for_each_level, multiply_add};
use crate::ops::AdamWStep;

/// Squares added up in `f32` lanes converted to `f64` at this length.
const SQUARES: usize = 4096;

/// `Σ gradient²`, in blocks of fixed size, each in f64.
pub fn square_sum(gradient: &[f32]) -> f64 {
    let parts = map_tasks(gradient.len().div_ceil(16 * SQUARES), |task| {
        let part = &gradient[task * 16 * SQUARES..gradient.len().min((task + 1) * 16 * SQUARES)];
        part.chunks(SQUARES).map(block_square_sum).sum::<f64>()
    });
    parts.into_iter().sum()
}

for_each_level! {
    fn block_square_sum(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let mut chunks = values.chunks_exact(8);
        for chunk in &mut chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += f64::from(value) * f64::from(value);
        }
        lanes.iter().sum()
    }

    fn update(
        parameter: &mut [f32],
        first_moment: &mut [f32],
        second_moment: &mut [f32],
        ema: &mut [f32],
        gradient: &[f32],
        constants: &Constants,
    ) {
        let n = parameter.len();
        let (first_moment, second_moment) = (&mut first_moment[..n], &mut second_moment[..n]);
        let (ema, gradient, c) = (&mut ema[..n], &gradient[..n], *constants);
        for i in 0..n {
            let g = gradient[i] * c.gradient_scale;
            let m = multiply_add::<FUSED>(c.beta1, first_moment[i], c.rest1 * g);
            let v = multiply_add::<FUSED>(c.beta2, second_moment[i], c.rest2 * g * g);
            let denominator = multiply_add::<FUSED>(v.sqrt(), c.root_correction2, c.epsilon);
            let p = multiply_add::<FUSED>(c.decay, parameter[i], -(c.step_size * m / denominator));
            first_moment[i] = m;
            second_moment[i] = v;
            parameter[i] = p;
            ema[i] = multiply_add::<FUSED>(c.ema_decay, ema[i], c.ema_rest * p);
        }
    }
}

/// The scalars of a step in the precision of the weights, computed in f64.
#[derive(Clone, Copy)]
struct Constants {
    gradient_scale: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    root_correction2: f32,
    epsilon: f32,
    step_size: f32,
    decay: f32,
    ema_decay: f32,
    ema_rest: f32,
}

impl From<&AdamWStep> for Constants {
    fn from(step: &AdamWStep) -> Self {
        Self {
            gradient_scale: step.gradient_scale as f32,
            beta1: step.beta1 as f32,
            rest1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            rest2: (1.0 - step.beta2) as f32,
            root_correction2: step.bias_correction2().sqrt().recip() as f32,
            epsilon: step.epsilon as f32,
            step_size: (step.learning_rate / step.bias_correction1()) as f32,
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            ema_decay: step.ema_decay as f32,
            ema_rest: (1.0 - step.ema_decay) as f32,
        }
    }
}

/// One update of a parameter, all slices of its size.
pub fn adamw(
    parameter: &mut [f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
    ema: &mut [f32],
    gradient: &[f32],
    step: &AdamWStep,
) {
    let constants = Constants::from(step);
    let len = parameter.len();
    assert!(
        [first_moment.len(), second_moment.len(), ema.len(), gradient.len()] == [len; 4],
        "a parameter's state has its size"
    );
    if len <= ELEMENTS_PER_TASK {
        update(parameter, first_moment, second_moment, ema, gradient, &constants);
        return;
    }
    parameter
        .par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(first_moment.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(second_moment.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(ema.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(gradient.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|((((parameter, first_moment), second_moment), ema), gradient)| {
            update(parameter, first_moment, second_moment, ema, gradient, &constants);
        });
}
