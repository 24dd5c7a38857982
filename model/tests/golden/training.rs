use deepflow_model::convert::{convert, Options};
use deepflow_model::ops::Operators;
use deepflow_model::training::{
    batch_losses, LossSettings, OptimizerSettings, Path, StepOutcome, StepRates, Trainer, TrainingInputs,
};
use dfdx::prelude::{Backward, Cpu, Dtype, OwnedTape, PutTape};

use crate::case::{self, assert_close, to_f64, Case};

pub const LOSS_TOLERANCE: f64 = 2e-5;
pub const GRADIENT_TOLERANCE: f64 = 1e-4;
pub const STEP_TOLERANCE: f64 = 2e-5;

pub fn inputs<E: Dtype, D: Operators<E>>(case: &Case, device: &D) -> TrainingInputs<E, D> {
    let narrow = |name: &str| case.get(name).iter().map(|&value| value as f32).collect::<Vec<_>>();
    let features = case.find("in.target").map(|_| narrow("in.target"));
    let (data, noise) = (narrow("in.data"), narrow("in.noise"));
    let (times, labels) = (case.times(), case.labels("in.y"));
    let features = features.as_deref();
    TrainingInputs::new(
        &case.config,
        Path::Linear,
        &data,
        &noise,
        times,
        labels,
        features,
        device,
    )
    .unwrap()
}

pub fn settings(case: &Case) -> LossSettings {
    LossSettings {
        branch_weights: (0..case.config.branches())
            .map(|k| case.number(&format!("branch_weights/{k}")))
            .collect(),
        acceleration: case.number("loss/acceleration"),
        alignment: case.number("loss/alignment"),
        ..LossSettings::published(case.config.branches())
    }
}

pub fn check_gradients<E: Dtype, D: Operators<E>>(case: &Case, checkpoint_blocks: bool) {
    let mut network = case.network::<E, D>();
    network.set_checkpoint_blocks(checkpoint_blocks);
    let settings = settings(case);
    let mut tape: OwnedTape<E, D> = OwnedTape::default();
    let inputs = inputs(case, network.device());
    let terms = batch_losses(&network, &mut tape, &inputs, &settings, 1.0).unwrap();

    let values = terms.values();
    let weighted = values.velocity.iter().zip(&settings.branch_weights);
    let velocity: f64 = weighted.map(|(error, weight)| error * weight).sum();
    for (name, found) in [
        ("velocity", velocity),
        ("acceleration", values.acceleration),
        ("alignment", values.alignment),
        ("total", values.total),
    ] {
        if let Some(expected) = case.find(&format!("loss.{name}")) {
            assert_close(
                &format!("{} loss.{name}", case.name),
                &[found],
                &expected,
                LOSS_TOLERANCE,
            );
        }
    }

    let mut gradients = terms.total.put_tape(tape).backward();
    let clipping = clipping_of_stored_gradients(case);
    let mut squares = 0.0;
    for parameter in network.parameters() {
        gradients.get_or_alloc_mut(&parameter.values).unwrap();
        let found = to_f64(&gradients.get(&parameter.values));
        let name = format!("grad.{}", parameter.name());
        let Some(expected) = case.find(&name) else {
            assert!(!parameter.is_trained(), "{name} is missing in {}", case.name);
            continue;
        };
        squares += found.iter().map(|value| value * value).sum::<f64>();
        let found: Vec<f64> = found.iter().map(|value| value * clipping).collect();
        let tolerance = GRADIENT_TOLERANCE * largest(&expected);
        assert_close(&format!("{} {name}", case.name), &found, &expected, tolerance);
    }
    let expected = case.get("grad_norm");
    assert_close(
        &case.name,
        &[squares.sqrt()],
        &expected,
        GRADIENT_TOLERANCE * expected[0],
    );
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// torch clips gradients in place, and the golden ones were stored afterwards: the factor by which they are smaller
/// than the gradients of the loss, whose norm is `grad_norm`.
pub fn clipping_of_stored_gradients(case: &Case) -> f64 {
    let network = case.network::<f64, Cpu>();
    let parameters = network.parameters().into_iter();
    let stored = parameters.filter_map(|parameter| case.find(&format!("grad.{}", parameter.name())));
    let squares: f64 = stored.flatten().map(|value| value * value).sum();
    squares.sqrt() / case.get("grad_norm")[0]
}

#[test]
fn losses_and_gradients_in_f32() {
    case::all()
        .iter()
        .for_each(|case| check_gradients::<f32, Cpu>(case, false));
}

#[test]
fn losses_and_gradients_in_f64() {
    case::all()
        .iter()
        .for_each(|case| check_gradients::<f64, Cpu>(case, false));
}

#[test]
fn losses_and_gradients_with_checkpointed_blocks() {
    case::all()
        .iter()
        .for_each(|case| check_gradients::<f32, Cpu>(case, true));
}

pub fn optimizer(case: &Case) -> OptimizerSettings {
    OptimizerSettings {
        beta1: case.number("optimizer/betas/0"),
        beta2: case.number("optimizer/betas/1"),
        epsilon: case.number("optimizer/eps"),
        weight_decay: case.number("optimizer/weight_decay"),
        clip_norm: Some(case.number("optimizer/clip")),
    }
}

pub fn rates(case: &Case) -> StepRates {
    StepRates {
        learning_rate: case.number("optimizer/lr"),
        ema_decay: case.number("optimizer/ema_decay"),
    }
}

fn trainer<E: Dtype, D: Operators<E>>(case: &Case) -> Trainer<E, D> {
    Trainer::new(case.network(), settings(case), optimizer(case), 1, 0).unwrap()
}

pub fn check_steps<E: Dtype, D: Operators<E>>(case: &Case) {
    let mut trainer = trainer::<E, D>(case);
    let inputs = inputs(case, trainer.network().device());
    for step in 1..=case.number("optimizer/steps") as u64 {
        let report = trainer.step_on(&inputs, rates(case)).unwrap();
        assert_eq!((report.step, report.outcome), (step, StepOutcome::Updated));
        if step == 1 {
            check_norm(case, report.gradient_norm, GRADIENT_TOLERANCE);
        }
    }
    let ema = trainer.ema_network();
    for (kind, network) in [("param", trainer.network()), ("ema", &ema)] {
        for parameter in network.parameters() {
            check_stepped(case, kind, parameter.name(), &to_f64(&parameter.values), STEP_TOLERANCE);
        }
    }
}

pub fn check_norm(case: &Case, found: f64, tolerance: f64) {
    let expected = case.get("grad_norm");
    assert_close(&case.name, &[found], &expected, tolerance * expected[0]);
}

/// A parameter, or its average, after the golden steps.
pub fn check_stepped(case: &Case, kind: &str, parameter: &str, found: &[f64], tolerance: f64) {
    // The bias of the keys does not reach the loss (softmax ignores it): its gradient is rounding noise, which AdamW
    // divides by its own size. Below this size a gradient says nothing about where the parameter goes.
    let noise = 10.0 * optimizer(case).epsilon;
    let name = format!("step3.{kind}.{parameter}");
    let expected = case.get(&name);
    let gradient = case.find(&format!("grad.{parameter}"));
    let comparable = |index: usize| gradient.as_ref().is_none_or(|g| g[index].abs() > noise);
    let keep = |values: &[f64]| -> Vec<f64> {
        let kept = values.iter().enumerate().filter(|&(index, _)| comparable(index));
        kept.map(|(_, &value)| value).collect()
    };
    let what = format!("{} {name}", case.name);
    assert_close(&what, &keep(found), &keep(&expected), tolerance);
    assert_close(&what, found, &expected, 3.0 * rates(case).learning_rate);
}

#[test]
fn parameters_and_average_after_three_steps_in_f32() {
    case::all().iter().for_each(check_steps::<f32, Cpu>);
}

#[test]
fn parameters_and_average_after_three_steps_in_f64() {
    case::all().iter().for_each(check_steps::<f64, Cpu>);
}

/// The optimiser's state in the authors' form of checkpoint is the one these three steps lead to, and training goes on with it.
#[test]
fn the_state_of_the_golden_checkpoint_is_that_of_the_third_step() {
    let case = case::own("deepflow_3t");
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("step-0000003");
    let torch = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/golden/checkpoint_0000003.pt"
    );
    let options = Options {
        heads: Some(case.config.heads),
        ..Options::default()
    };
    convert(torch, &checkpoint, &options).unwrap();

    let mut straight = trainer::<f32, Cpu>(&case);
    let inputs = inputs(&case, straight.network().device());
    for _ in 0..3 {
        straight.step_on(&inputs, rates(&case)).unwrap();
    }
    let mut continued = trainer::<f32, Cpu>(&case);
    continued.take_over(&checkpoint).unwrap();
    assert_eq!((continued.step_count(), continued.update_count()), (3, 3));
    let (found, expected) = (continued.state(), straight.state());
    for (index, parameter) in straight.network().parameters().into_iter().enumerate() {
        for (kind, found, expected) in [
            ("first", &found.first_moments, &expected.first_moments),
            ("second", &found.second_moments, &expected.second_moments),
        ] {
            let expected = to_f64(&expected[index]);
            // What is left of a gradient that is zero but for rounding.
            let tolerance = 3.0 * GRADIENT_TOLERANCE * largest(&expected) + 1e-9;
            let what = format!("{kind} moment of {}", parameter.name());
            assert_close(&what, &to_f64(&found[index]), &expected, tolerance);
        }
    }
    let [a, b] = [&mut continued, &mut straight].map(|trainer| trainer.step_on(&inputs, rates(&case)).unwrap());
    assert_close(
        "loss of the fourth step",
        &[a.losses.total],
        &[b.losses.total],
        LOSS_TOLERANCE,
    );
}
