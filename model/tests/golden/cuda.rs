//! The golden numbers on the CUDA device, through dfdx's own device code: a card, or the host emulation.

use deepflow_model::ops::cuda::{LossScaling, MasterParameter, MasterState, StepController, UpdateRule};
use deepflow_model::training::batch_losses;
use dfdx::prelude::{Backward, Gradients, OwnedTape, PutTape};
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

/// Half precision keeps 11 bits; the losses of these small networks keep three digits through all their layers.
const MIXED_LOSS: f64 = 5e-3;
/// Of the largest gradient of a parameter, where it is not rounding noise against the largest of all parameters.
const MIXED_GRADIENT: f64 = 5e-2;

/// The complete mixed step: f16 working copies, scaled loss, f16 gradients; clipping, moments, master weights and
/// moving average in f32.
#[test]
fn mixed_precision_step_is_close() {
    let Some(cuda) = device() else { return };
    for case in case::all() {
        mixed_steps(&case, &cuda);
    }
}

fn mixed_steps(case: &Case, cuda: &Cuda) {
    let mut network = case.network::<f16, Cuda>();
    let mut masters: Vec<MasterParameter<(usize,)>> = Vec::new();
    let mut names = Vec::new();
    for parameter in network.parameters_mut() {
        let weights = case.find(&format!("param.{}", parameter.name()));
        let Some(weights) = weights.filter(|_| case.find(&format!("grad.{}", parameter.name())).is_some()) else {
            continue;
        };
        let values: Vec<f32> = weights.iter().map(|&value| value as f32).collect();
        let state = MasterState {
            first_moment: vec![0.0; values.len()],
            second_moment: vec![0.0; values.len()],
            ema: values.clone(),
            parameter: values,
        };
        let master = MasterParameter::new(cuda, (parameter.len(),), state).unwrap();
        parameter.values = master.working().clone();
        names.push(parameter.name().to_string());
        masters.push(master);
    }
    let lengths: Vec<usize> = masters.iter().map(|master| master.working().as_vec().len()).collect();
    let scaling = LossScaling {
        initial: 256.0,
        ..LossScaling::DYNAMIC
    };
    let mut controller = StepController::new(cuda, scaling, &lengths, 0).unwrap();
    let rule = UpdateRule {
        learning_rate: case.number("optimizer/lr"),
        beta1: case.number("optimizer/betas/0"),
        beta2: case.number("optimizer/betas/1"),
        epsilon: case.number("optimizer/eps"),
        weight_decay: case.number("optimizer/weight_decay"),
        ema_decay: case.number("optimizer/ema_decay"),
        clip: Some(case.number("optimizer/clip")),
    };
    let inputs = training::inputs::<f16, Cuda>(case, cuda);
    let steps = case.number("optimizer/steps") as usize;
    for step in 0..steps {
        let mut tape: OwnedTape<f16, Cuda> = OwnedTape::default();
        let terms = batch_losses(&network, &mut tape, &inputs, &training::settings(case), 1.0).unwrap();
        let total = case.get("loss.total");
        if step == 0 {
            let tolerance = MIXED_LOSS * total[0].abs();
            assert_close(&case.name, &[terms.values().total], &total, tolerance);
        }
        let scaled = controller.scale_loss(&mut tape, &terms.total).unwrap();
        let mut gradients = scaled.put_tape(tape).backward();
        for master in &masters {
            controller.add_gradient(&mut gradients, master.working()).unwrap();
        }
        controller.decide(&rule).unwrap();
        for master in &mut masters {
            master.update(&controller, &mut gradients, &rule).unwrap();
        }
        if step == 0 {
            check_gradients(case, &names, &masters, &mut gradients);
        }
    }
    let report = controller.report().unwrap();
    assert_eq!((report.taken, report.skipped), (steps, 0), "{}", case.name);
}

/// The f16 gradients, without the loss scale, against the golden ones.
fn check_gradients(
    case: &Case,
    names: &[String],
    masters: &[MasterParameter<(usize,)>],
    gradients: &mut Gradients<f16, Cuda>,
) {
    let clipping = training::clipping_of_stored_gradients(case);
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let expected: Vec<Vec<f64>> = names.iter().map(|name| case.get(&format!("grad.{name}"))).collect();
    let floor = 0.01 * expected.iter().map(|values| largest(values)).fold(0.0, f64::max);
    for ((name, master), expected) in names.iter().zip(masters).zip(&expected) {
        gradients.get_or_alloc_mut(master.working()).unwrap();
        let found = gradients.get(master.working()).as_vec();
        let found: Vec<f64> = found.iter().map(|value| value.to_f64() / 256.0 * clipping).collect();
        let tolerance = MIXED_GRADIENT * largest(expected).max(floor);
        assert_close(
            &format!("{} grad.{name} in f16", case.name),
            &found,
            expected,
            tolerance,
        );
    }
}
