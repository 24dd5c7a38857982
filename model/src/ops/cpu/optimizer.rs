//! AdamW with the moving average of the weights in one pass over all parameters, and the norm for clipping.

use rayon::prelude::*;

use super::parallel::{map_items, ELEMENTS_PER_TASK};
use super::simd::{for_each_level, multiply_add};
use crate::ops::AdamWStep;

/// Squares added up in `f32` lanes converted to `f64` at this length.
const SQUARES: usize = 4096;

/// `Σ gradient²` over all values of all gradients, in blocks of fixed size, each in f64.
pub fn square_sum<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let blocks = gradients
        .into_iter()
        .flat_map(|gradient| gradient.chunks(16 * SQUARES))
        .collect();
    let sums = map_items(blocks, |block: &[f32]| {
        block.chunks(SQUARES).map(block_square_sum).sum::<f64>()
    });
    sums.into_iter().sum()
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

/// One parameter with its gradient and everything an update changes, all slices of one size.
#[derive(Debug)]
pub struct Update<'a> {
    /// The weights.
    pub parameter: &'a mut [f32],
    /// Running mean of the gradient.
    pub first_moment: &'a mut [f32],
    /// Running mean of the squared gradient.
    pub second_moment: &'a mut [f32],
    /// Moving average of the weights.
    pub ema: &'a mut [f32],
    /// What the backward pass found.
    pub gradient: &'a [f32],
}

impl<'a> Update<'a> {
    fn check(&self) {
        let sizes = [
            self.first_moment.len(),
            self.second_moment.len(),
            self.ema.len(),
            self.gradient.len(),
        ];
        assert!(sizes == [self.parameter.len(); 4], "a parameter's state has its size");
    }

    /// The same update in pieces of at most `size` values.
    fn pieces(self, size: usize) -> impl Iterator<Item = Update<'a>> {
        let Self {
            parameter,
            first_moment,
            second_moment,
            ema,
            gradient,
        } = self;
        parameter
            .chunks_mut(size)
            .zip(first_moment.chunks_mut(size))
            .zip(second_moment.chunks_mut(size))
            .zip(ema.chunks_mut(size))
            .zip(gradient.chunks(size))
            .map(|((((parameter, first_moment), second_moment), ema), gradient)| Update {
                parameter,
                first_moment,
                second_moment,
                ema,
                gradient,
            })
    }
}

/// One update of any number of parameters. Large ones are cut, small ones gathered: the pieces of all are shared out among
/// the threads together.
///
/// # Panics
/// When the slices of a parameter differ in size.
pub fn adamw(updates: Vec<Update<'_>>, step: &AdamWStep) {
    let constants = Constants::from(step);
    updates.iter().for_each(Update::check);
    let pieces: Vec<_> = updates
        .into_iter()
        .flat_map(|update| update.pieces(ELEMENTS_PER_TASK))
        .collect();
    let apply = |piece: Update<'_>| {
        let Update {
            parameter,
            first_moment,
            second_moment,
            ema,
            gradient,
        } = piece;
        update(parameter, first_moment, second_moment, ema, gradient, &constants);
    };
    if pieces.len() <= 1 {
        pieces.into_iter().for_each(apply);
    } else {
        pieces.into_par_iter().for_each(apply);
    }
}
