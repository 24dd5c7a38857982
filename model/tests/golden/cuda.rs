//! The golden numbers on the CUDA device, through dfdx's own device code: a card, or the host emulation.

use deepflow_model::ops::cuda::{LossScaling, Precision, SingleProcess};
use deepflow_model::ops::Operators;
use deepflow_model::training::{CudaTrainer, StepOutcome, Trainer, Training};
use dfdx::prelude::Cpu;
use dfdx::tensor::Cuda;
use half::f16;

use crate::case::{self, assert_close, Case};
use crate::emulation::device;
use crate::{forward, training};

#[test]
fn outputs_in_f32() {
    if device().is_some() {
        case::all().iter().for_each(forward::check_forward::<f32, Cuda>);
    }
}

#[test]
fn losses_and_gradients_in_f32() {
    if device().is_some() {
        case::all()
            .iter()
            .for_each(|case| training::check_gradients::<f32, Cuda>(case, false));
    }
}

#[test]
fn losses_and_gradients_with_checkpointed_blocks() {
    if device().is_some() {
        case::all()
            .iter()
            .for_each(|case| training::check_gradients::<f32, Cuda>(case, true));
    }
}

#[test]
fn parameters_and_average_after_three_steps_in_f32() {
    if device().is_some() {
        case::all().iter().for_each(training::check_steps::<f32, Cuda>);
    }
}

/// How far the complete step may be from the golden numbers.
struct Tolerances {
    loss: f64,
    /// Of the norm; and of the largest value of a parameter's gradient, where that is not rounding noise against the largest
    /// of all parameters.
    gradient: f64,
    /// Of parameters and averages; absent: what AdamW moves them at most.
    step: Option<f64>,
}

/// What training on a GPU runs: working copies, losses and norm that stay on the device, clipping, moments, master weights
/// and moving average in f32.
#[test]
fn the_complete_step_in_f32() {
    let Some(cuda) = device() else { return };
    for case in case::all() {
        let tolerances = Tolerances {
            loss: training::LOSS_TOLERANCE,
            gradient: training::GRADIENT_TOLERANCE,
            step: Some(training::STEP_TOLERANCE),
        };
        complete_steps::<f32>(&case, &cuda, LossScaling::NONE, &tolerances);
    }
}

/// The same with f16 working copies, a scaled loss and f16 gradients. Half precision keeps 11 bits; the losses of these
/// small networks keep three digits through all their layers.
#[test]
fn the_complete_step_in_mixed_precision_is_close() {
    let Some(cuda) = device() else { return };
    for case in case::all() {
        let scaling = LossScaling {
            initial: 256.0,
            ..LossScaling::DYNAMIC
        };
        let tolerances = Tolerances {
            loss: 5e-3 * case.get("loss.total")[0].abs(),
            gradient: 5e-2,
            step: None,
        };
        complete_steps::<f16>(&case, &cuda, scaling, &tolerances);
    }
}

fn complete_steps<E: Precision>(case: &Case, cuda: &Cuda, scaling: LossScaling, tolerances: &Tolerances)
where
    Cuda: Operators<E>,
{
    let network = case.network::<f32, Cpu>();
    let begun = Trainer::new(network, training::settings(case), training::optimizer(case), 1, 0).unwrap();
    let mut trainer = CudaTrainer::<E>::with_scaling(begun, cuda.clone(), Box::new(SingleProcess), scaling).unwrap();
    let inputs = training::inputs::<E, Cuda>(case, cuda);
    let steps = case.number("optimizer/steps") as u64;
    for step in 1..=steps {
        trainer.step_on(&inputs, training::rates(case)).unwrap();
        if step == 1 {
            let report = trainer.reports(true).unwrap().remove(0);
            let losses = [
                ("acceleration", report.losses.acceleration),
                ("total", report.losses.total),
            ];
            for (name, found) in losses {
                if let Some(expected) = case.find(&format!("loss.{name}")) {
                    assert_close(
                        &format!("{} loss.{name}", case.name),
                        &[found],
                        &expected,
                        tolerances.loss,
                    );
                }
            }
            training::check_norm(case, report.gradient_norm, tolerances.gradient);
            check_first_moments(case, &trainer, tolerances);
        }
    }
    let reports = trainer.reports(true).unwrap();
    assert!(
        reports.iter().all(|report| report.outcome == StepOutcome::Updated),
        "{}",
        case.name
    );
    assert_eq!(trainer.update_count(), steps);
    let most = 3.0 * training::rates(case).learning_rate;
    for (parameter, master) in trainer.network().parameters().into_iter().zip(trainer.masters()) {
        let kinds = [("param", master.weights()), ("ema", master.moving_average())];
        for (kind, found) in kinds {
            let found: Vec<f64> = found.unwrap().into_iter().map(f64::from).collect();
            training::check_stepped(case, kind, parameter.name(), &found, tolerances.step.unwrap_or(most));
        }
    }
}

/// After one step the first moment is `1 - beta1` times the clipped gradient.
fn check_first_moments<E: Precision>(case: &Case, trainer: &CudaTrainer<E>, tolerances: &Tolerances)
where
    Cuda: Operators<E>,
{
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let parameters = trainer.network().parameters();
    let expected: Vec<_> = parameters
        .iter()
        .map(|p| case.find(&format!("grad.{}", p.name())))
        .collect();
    let floor = 0.01
        * expected
            .iter()
            .flatten()
            .map(|values| largest(values))
            .fold(0.0, f64::max);
    let of_gradient = 1.0 - training::optimizer(case).beta1;
    for ((parameter, master), expected) in parameters.into_iter().zip(trainer.masters()).zip(expected) {
        let Some(expected) = expected else { continue };
        let moments = master.first_moment().unwrap().into_iter();
        let found: Vec<f64> = moments.map(|moment| f64::from(moment) / of_gradient).collect();
        let what = format!("{} gradient of {}", case.name, parameter.name());
        assert_close(
            &what,
            &found,
            &expected,
            tolerances.gradient * largest(&expected).max(floor),
        );
    }
}
