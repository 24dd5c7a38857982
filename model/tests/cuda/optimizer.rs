//! Clipping, AdamW, moving average and loss scaling.

use deepflow_model::ops::cuda::{
    LossScaling, MasterParameter, MasterState, Precision, SingleProcess, StepController, UpdateRule,
};
use deepflow_model::ops::{AdamWStep, Operators, ParameterState};
use dfdx::prelude::*;
use dfdx::tensor::Cuda;
use half::f16;

use crate::compare::{f64s, values, values_as};
use crate::emulation::device;

const RULE: UpdateRule = UpdateRule {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    ema_decay: 0.9,
    clip: Some(1.0),
};

/// AdamW on numbers, as torch defines it.
#[derive(Clone)]
struct Reference {
    parameter: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    ema: Vec<f64>,
    taken: i32,
}

impl Reference {
    fn new(parameter: Vec<f64>) -> Self {
        Self {
            first: vec![0.0; parameter.len()],
            second: vec![0.0; parameter.len()],
            ema: parameter.clone(),
            parameter,
            taken: 0,
        }
    }

    fn update(&mut self, gradient: &[f64], factor: f64) {
        self.taken += 1;
        let corrections = (1.0 - RULE.beta1.powi(self.taken), 1.0 - RULE.beta2.powi(self.taken));
        for (i, gradient) in gradient.iter().map(|gradient| gradient * factor).enumerate() {
            self.first[i] = RULE.beta1 * self.first[i] + (1.0 - RULE.beta1) * gradient;
            self.second[i] = RULE.beta2 * self.second[i] + (1.0 - RULE.beta2) * gradient * gradient;
            let step = self.first[i] / corrections.0 / ((self.second[i] / corrections.1).sqrt() + RULE.epsilon);
            self.parameter[i] *= 1.0 - RULE.learning_rate * RULE.weight_decay;
            self.parameter[i] -= RULE.learning_rate * step;
            self.ema[i] = RULE.ema_decay * self.ema[i] + (1.0 - RULE.ema_decay) * self.parameter[i];
        }
    }
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance,
            "{what}[{i}] is {found}, expected {expected}"
        );
    }
}

#[test]
fn single_precision_update() {
    let Some(cuda) = device() else { return };
    for length in [1, 255, 1000] {
        let tensor = |values: Vec<f32>| cuda.tensor_from_vec(values, (length,));
        let mut parameter = tensor(values_as(1, length));
        let mut first_moment = tensor(vec![0.0; length]);
        let mut second_moment = tensor(vec![0.0; length]);
        let mut ema = tensor(values_as(1, length));
        let mut reference = Reference::new(values(1, length));
        for step in 1..4 {
            let gradient: Vec<f32> = values_as(10 + step, length);
            let mut gradients = Gradients::leaky();
            write_gradient(&mut gradients, &parameter, &gradient);
            let rates = AdamWStep {
                learning_rate: RULE.learning_rate,
                beta1: RULE.beta1,
                beta2: RULE.beta2,
                epsilon: RULE.epsilon,
                weight_decay: RULE.weight_decay,
                step,
                gradient_scale: 0.25,
                ema_decay: RULE.ema_decay,
            };
            let squares = cuda.gradient_square_sum(&mut gradients, &parameter).unwrap();
            let expected: f64 = gradient.iter().map(|&value| f64::from(value).powi(2)).sum();
            assert!(
                (squares - expected).abs() <= 1e-6 * expected,
                "{squares}, expected {expected}"
            );
            let state = ParameterState {
                parameter: &mut parameter,
                first_moment: &mut first_moment,
                second_moment: &mut second_moment,
                ema: &mut ema,
            };
            cuda.adamw(&mut gradients, state, &rates).unwrap();
            reference.update(&f64s(gradient), 0.25);
        }
        assert_near(&f64s(parameter.as_vec()), &reference.parameter, 2e-6, "parameter");
        assert_near(&f64s(first_moment.as_vec()), &reference.first, 1e-6, "first moment");
        assert_near(&f64s(second_moment.as_vec()), &reference.second, 1e-6, "second moment");
        assert_near(&f64s(ema.as_vec()), &reference.ema, 2e-6, "moving average");
    }
}

/// Puts a gradient where a backward pass would.
fn write_gradient<E: Precision>(gradients: &mut Gradients<E, Cuda>, of: &Tensor<(usize,), E, Cuda>, values: &[E]) {
    let slot = gradients.get_or_alloc_mut(of).unwrap();
    slot.device().htod_sync_copy_into(values, &mut **slot).unwrap();
}

struct HalfStep {
    gradient: Vec<f16>,
    finite: bool,
}

/// Three parameters under one controller: gradients in half precision under a loss scale, clipped together, one step of
/// them not finite.
#[test]
fn mixed_precision_steps() {
    let Some(cuda) = device() else { return };
    let lengths = [3, 700, 65];
    let scaling = LossScaling {
        initial: 1024.0,
        growth_interval: 2,
        highest: 2048.0,
    };
    let mut controller = StepController::new(&cuda, scaling, &lengths, 2, 0, None).unwrap();
    let mut references: Vec<Reference> = (0..)
        .zip(lengths)
        .map(|(name, n)| Reference::new(values(name, n)))
        .collect();
    let mut parameters: Vec<MasterParameter<f16>> = (0..)
        .zip(lengths)
        .map(|(name, length)| {
            let state = MasterState {
                parameter: values_as(name, length),
                first_moment: vec![0.0; length],
                second_moment: vec![0.0; length],
                ema: values_as(name, length),
            };
            MasterParameter::new(&cuda, state).unwrap()
        })
        .collect();

    // Doubled after two finite steps, halved by the infinity, doubled again, and never above the highest.
    let expected_scales = [1024.0, 2048.0, 1024.0, 1024.0, 2048.0, 2048.0, 2048.0];
    let mut scale = f64::from(scaling.initial);
    for (step, &next_scale) in expected_scales.iter().enumerate() {
        let steps: Vec<HalfStep> = (0..)
            .zip(lengths)
            .map(|(name, length)| {
                let mut gradient: Vec<f16> = values(100 * (step as u64 + 1) + name, length)
                    .into_iter()
                    .map(|value| f16::from_f64(value * scale / 64.0))
                    .collect();
                let finite = !(step == 2 && name == 1);
                if !finite {
                    gradient[length / 2] = f16::INFINITY;
                }
                HalfStep { gradient, finite }
            })
            .collect();
        let mut gradients = Gradients::leaky();
        for (parameter, step) in parameters.iter().zip(&steps) {
            write_gradient(&mut gradients, parameter.working(), &step.gradient);
            controller
                .add_gradient(&SingleProcess, &mut gradients, parameter.working())
                .unwrap();
        }
        for (term, loss) in [2.0, 0.5 + step as f64].into_iter().enumerate() {
            let loss: Tensor<(), f16, _> = cuda.tensor(f16::from_f64(loss));
            controller.add_loss(term, &loss, 0.5).unwrap();
        }
        controller.decide(&RULE).unwrap();
        for parameter in &mut parameters {
            parameter.update(&controller, &mut gradients, &RULE).unwrap();
        }

        let unscaled: Vec<Vec<f64>> = steps
            .iter()
            .map(|step| step.gradient.iter().map(|value| value.to_f64() / scale).collect())
            .collect();
        let norm = unscaled.iter().flatten().map(|value| value * value).sum::<f64>().sqrt();
        let [entry] = &controller.entries().unwrap()[..] else {
            panic!("one step was made");
        };
        assert_eq!(entry.losses, [1.0, 0.5 * (0.5 + step as f32)]);
        assert_eq!(f64::from(entry.loss_scale), scale, "loss scale of step {step}");
        assert_eq!(entry.taken, steps.iter().all(|step| step.finite));
        if steps.iter().all(|step| step.finite) {
            assert!(
                (f64::from(entry.norm) - norm).abs() <= 1e-4 * norm,
                "{}, expected {norm}",
                entry.norm
            );
            let clip = (RULE.clip.unwrap() / (norm + 1e-6)).min(1.0);
            for (reference, gradient) in references.iter_mut().zip(&unscaled) {
                reference.update(gradient, clip);
            }
        } else {
            assert!(!entry.norm.is_finite());
        }
        let next = f64::from(controller.loss_scale().unwrap().scale);
        assert_eq!(next, next_scale, "loss scale after step {step}");
        scale = next_scale;
    }
    for (parameter, reference) in parameters.iter().zip(&references) {
        let state = parameter.state().unwrap();
        assert_near(&f64s(state.parameter.clone()), &reference.parameter, 1e-5, "parameter");
        assert_near(&f64s(state.first_moment), &reference.first, 1e-5, "first moment");
        assert_near(&f64s(state.second_moment), &reference.second, 1e-5, "second moment");
        assert_near(&f64s(state.ema), &reference.ema, 1e-5, "moving average");
        let rounded: Vec<f16> = state.parameter.into_iter().map(f16::from_f32).collect();
        assert_eq!(parameter.working().as_vec(), rounded, "working copy");
    }
}

#[test]
fn the_backward_pass_starts_from_the_loss_scale() {
    let Some(cuda) = device() else { return };
    let scaling = LossScaling {
        initial: 512.0,
        ..LossScaling::DYNAMIC
    };
    let controller = StepController::new(&cuda, scaling, &[1], 1, 0, None).unwrap();
    let x: Tensor<_, f16, _> = cuda.tensor_from_vec(values_as(1, 12), (3usize, 4usize));
    let target: Tensor<_, f16, _> = cuda.tensor_from_vec(values_as(2, 12), (3usize, 4usize));
    let mut tape = OwnedTape::default();
    let loss = cuda.mean_squared_error(&mut tape, &x, &target).unwrap();
    let scaled = controller.scale_loss(&mut tape, &loss).unwrap();
    assert_eq!(scaled.array(), loss.array());
    let gradients = scaled.put_tape(tape).backward();
    let expected: Vec<f64> = values(1, 12)
        .into_iter()
        .zip(values(2, 12))
        .map(|(x, target)| 512.0 * 2.0 / 12.0 * (x - target))
        .collect();
    assert_near(&f64s(gradients.get(&x).as_vec()), &expected, 0.2, "gradient");
}
