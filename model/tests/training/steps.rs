use deepflow_model::training::{LossSettings, OptimizerSettings, StepOutcome, Trainer};
use deepflow_model::{Network, NetworkConfig};
use dfdx::prelude::Cpu;

use crate::support::{batch, bits, busy_network, config, trainer, trainer_of, RATES};

#[test]
fn accumulation_equals_the_large_batch() {
    let batch = batch(&config(), 0, 7);
    let mut whole = Trainer::<f64, Cpu>::new(
        busy_network(&config()),
        LossSettings::published(3),
        OptimizerSettings::default(),
        7,
        3,
    )
    .unwrap();
    let whole_report = whole.step(&batch, RATES).unwrap();
    for micro_batch in [1, 2, 3] {
        let mut split = Trainer::<f64, Cpu>::new(
            busy_network(&config()),
            LossSettings::published(3),
            OptimizerSettings::default(),
            micro_batch,
            3,
        )
        .unwrap();
        let report = split.step(&batch, RATES).unwrap();
        assert!((report.losses.total - whole_report.losses.total).abs() < 1e-12);
        let (split_norm, whole_norm) = (report.gradient_norm, whole_report.gradient_norm);
        assert!(
            (split_norm - whole_norm).abs() < 1e-10 * whole_norm,
            "in parts of {micro_batch}: {split_norm}, whole: {whole_norm}"
        );
        for (a, b) in whole
            .network()
            .parameters()
            .into_iter()
            .zip(split.network().parameters())
        {
            for (a, b) in a.values.as_vec().into_iter().zip(b.values.as_vec()) {
                assert!((a - b).abs() < 1e-9, "{a} {b}");
            }
        }
    }
}

/// With and without norms of queries and keys: attention is one operator of its own only without them.
fn both_attentions() -> [NetworkConfig; 2] {
    [true, false].map(|qk_norm| NetworkConfig { qk_norm, ..config() })
}

#[test]
fn one_thread_and_several_give_the_same_bits() {
    for config in both_attentions() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut trainer = trainer_of(config.clone(), 4);
                let step = |step: u64| {
                    let report = trainer.step(&batch(&config, 8 * step, 8), RATES).unwrap();
                    (report.losses, report.gradient_norm.to_bits())
                };
                let reports: Vec<_> = (0..3).map(step).collect();
                (bits(&trainer), reports)
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "with qk_norm = {}", config.qk_norm);
    }
}

#[test]
fn checkpointed_blocks_give_the_same_bits() {
    for config in both_attentions() {
        let run = |on| {
            let mut trainer = trainer_of(config.clone(), 4);
            trainer.network_mut().set_checkpoint_blocks(on);
            for step in 0..2 {
                trainer.step(&batch(&config, 4 * step, 4), RATES).unwrap();
            }
            bits(&trainer)
        };
        assert!(run(true) == run(false), "with qk_norm = {}", config.qk_norm);
    }
}

#[test]
fn the_clipped_gradient_of_all_parameters_has_the_length_asked_for() {
    let network = || busy_network::<f32, Cpu>(&config());
    let first_step = |clip_norm| {
        let settings = OptimizerSettings {
            clip_norm,
            ..OptimizerSettings::default()
        };
        let mut trainer = Trainer::new(network(), LossSettings::published(3), settings, 4, 3).unwrap();
        let report = trainer.step(&batch(&config(), 0, 4), RATES).unwrap();
        let moments = trainer.state().first_moments.iter().flat_map(|moment| moment.as_vec());
        // After one step, moments are the gradient that the update saw, times what beta1 leaves.
        let seen = moments.map(|m| f64::from(m).powi(2)).sum::<f64>().sqrt() / (1.0 - settings.beta1);
        (report.gradient_norm, seen)
    };
    let (norm, seen) = first_step(None);
    assert!((seen / norm - 1.0).abs() < 1e-5, "{seen} without clipping, of {norm}");
    let (_, seen) = first_step(Some(norm / 3.0));
    assert!((seen / norm * 3.0 - 1.0).abs() < 1e-5, "{seen}, not a third of {norm}");
    let (_, seen) = first_step(Some(3.0 * norm));
    assert!((seen / norm - 1.0).abs() < 1e-5, "{seen}, but {norm} is short enough");
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_and_is_counted() {
    let mut trainer = trainer(4);
    let before = bits(&trainer);
    let mut bad = batch(&config(), 0, 4);
    bad.latents[5] = f32::NAN;
    let report = trainer.step(&bad, RATES).unwrap();
    assert_eq!(report.outcome, StepOutcome::Skipped);
    assert!(!report.losses.total.is_finite());
    assert!(bits(&trainer) == before);
    assert_eq!((trainer.step_count(), trainer.update_count()), (1, 0));

    let report = trainer.step(&batch(&config(), 0, 4), RATES).unwrap();
    assert_eq!((report.step, report.outcome), (2, StepOutcome::Updated));
    assert!(bits(&trainer) != before);
}

#[test]
fn the_loss_falls() {
    let mut trainer = trainer(8);
    let batch = batch(&config(), 0, 8);
    let first = trainer.step(&batch, RATES).unwrap().losses.total;
    let mut last = first;
    for _ in 0..30 {
        last = trainer.step(&batch, RATES).unwrap().losses.total;
    }
    assert!(last < 0.8 * first, "from {first} to {last}");
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let mut trainer = trainer(4);
    let mut wrong = batch(&config(), 0, 2);
    wrong.labels[1] = 5;
    let error = trainer.step(&wrong, RATES).unwrap_err().to_string();
    assert_eq!(error, "label: found 5, expected below model.classes = 5");
    let mut wrong = batch(&config(), 0, 2);
    wrong.latents.pop();
    let error = trainer.step(&wrong, RATES).unwrap_err().to_string();
    assert_eq!(error, "latents: found 95 values, expected 96 for 2 samples");
}

#[test]
fn weights_of_branches_must_be_as_many_as_branches() {
    let config = NetworkConfig {
        branch_ends: vec![2],
        ..config()
    };
    let network: Network<f32, Cpu> = Network::new(config, Cpu::default(), 0).unwrap();
    let error = Trainer::new(network, LossSettings::published(3), OptimizerSettings::default(), 1, 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "loss.branch_weights = [0.2, 0.2, 1.0]: must hold one weight for each of the 2 branches"
    );
}
