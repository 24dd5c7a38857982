//! Whole training steps on the CUDA device: against the processor, without waiting, with a loss scale, and on several
//! devices.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};

use deepflow_model::ops::cuda::{Communicator, DeviceValues, LossScaling, Precision, SingleProcess};
use deepflow_model::ops::Operators;
use deepflow_model::training::{Batch, CudaTrainer, StepOutcome, StepReport, Trainer, Training};
use deepflow_model::ModelError;
use dfdx::prelude::Cpu;
use dfdx::tensor::Cuda;
use half::f16;
use serde_json::json;

use crate::emulation::{device, host_waits};
use crate::support::{batch, config, trainer, RATES};

/// Small enough that the gradients of the tests' network fit f16 under it.
const MODEST: LossScaling = LossScaling {
    initial: 64.0,
    growth_interval: 3,
    highest: 256.0,
};

const SAMPLES: usize = 6;

fn batch_of(step: u64) -> Batch {
    batch(&config(), step * SAMPLES as u64, SAMPLES)
}

fn run(training: &mut dyn Training, steps: Range<u64>) -> Vec<StepReport> {
    for step in steps {
        training.take_step(&batch_of(step), RATES).unwrap();
    }
    training.reports(true).unwrap()
}

fn on_cuda<E: Precision>(begun: Trainer<f32, Cpu>, cuda: &Cuda, scaling: LossScaling) -> CudaTrainer<E>
where
    Cuda: Operators<E>,
{
    CudaTrainer::with_scaling(begun, cuda.clone(), Box::new(SingleProcess), scaling).unwrap()
}

fn weights<E: Precision>(trainer: &CudaTrainer<E>) -> Vec<Vec<f32>>
where
    Cuda: Operators<E>,
{
    trainer
        .masters()
        .iter()
        .map(|master| master.weights().unwrap())
        .collect()
}

fn first_moments<E: Precision>(trainer: &CudaTrainer<E>) -> Vec<Vec<f32>>
where
    Cuda: Operators<E>,
{
    let masters = trainer.masters().iter();
    masters.map(|master| master.first_moment().unwrap()).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// Losses, norms and moments (running means of the gradients) within `tolerance` of the processor's: of the largest value
/// of the parameter, or of a hundredth of the largest of all where a parameter's gradient is little but rounding.
#[track_caller]
fn assert_near<E: Precision>(
    case: &str,
    tolerance: f32,
    (found, reports): (&CudaTrainer<E>, &[StepReport]),
    (expected, expected_reports): (&Trainer<f32, Cpu>, &[StepReport]),
) where
    Cuda: Operators<E>,
{
    assert_eq!(reports.len(), expected_reports.len());
    for (found, expected) in reports.iter().zip(expected_reports) {
        assert_eq!(
            (found.step, found.outcome),
            (expected.step, StepOutcome::Updated),
            "{case}"
        );
        let mut pairs = vec![
            (found.losses.total, expected.losses.total),
            (found.losses.acceleration, expected.losses.acceleration),
            (found.losses.alignment, expected.losses.alignment),
            (found.gradient_norm, expected.gradient_norm),
        ];
        assert_eq!(found.losses.velocity.len(), expected.losses.velocity.len());
        pairs.extend(
            found
                .losses
                .velocity
                .iter()
                .copied()
                .zip(expected.losses.velocity.iter().copied()),
        );
        for (found, expected) in pairs {
            let error = (found - expected).abs() / expected.abs().max(0.1);
            assert!(error <= f64::from(tolerance), "{case}: {found}, expected {expected}");
        }
    }
    let expected_moments: Vec<Vec<f32>> = expected.state().first_moments.iter().map(|m| m.as_vec()).collect();
    let floor = 0.01
        * expected_moments
            .iter()
            .map(|values| largest(values))
            .fold(0.0, f32::max);
    let names = expected
        .network()
        .parameters()
        .into_iter()
        .map(|parameter| parameter.name());
    for ((name, found), expected) in names.zip(first_moments(found)).zip(&expected_moments) {
        let allowed = tolerance * largest(expected).max(floor);
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let close = (found - expected).abs() <= allowed;
            assert!(close, "{case}: moment of {name}[{i}] is {found}, expected {expected}");
        }
    }
    // AdamW makes steps of the learning rate's size even of rounding noise.
    let most = 2.0 * RATES.learning_rate as f32 * reports.len() as f32;
    let kept = [
        weights(found),
        found.masters().iter().map(|m| m.moving_average().unwrap()).collect(),
    ];
    let network = expected.network().parameters();
    let expected = [
        network
            .iter()
            .map(|parameter| parameter.values.as_vec())
            .collect::<Vec<_>>(),
        expected.state().ema.iter().map(|ema| ema.as_vec()).collect(),
    ];
    for (found, expected) in kept.iter().flatten().zip(expected.iter().flatten()) {
        let apart = found
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(apart <= most, "{case}: weights {apart} apart");
    }
}

/// The batch whole, in three parts, in parts of unequal size; noise drawn on the device.
#[test]
fn in_f32_it_is_the_training_of_the_processor() {
    let Some(cuda) = device() else { return };
    for micro_batch in [6, 2, 4] {
        let mut processor = trainer(micro_batch);
        let mut gpu = on_cuda::<f32>(trainer(micro_batch), &cuda, LossScaling::NONE);
        let (expected, found) = (run(&mut processor, 0..3), run(&mut gpu, 0..3));
        let case = format!("parts of {micro_batch}");
        assert_near(&case, 1e-4, (&gpu, &found), (&processor, &expected));
        assert_eq!((gpu.step_count(), gpu.update_count()), (3, 3));
    }
}

#[test]
fn mixed_precision_is_close_to_it() {
    let Some(cuda) = device() else { return };
    let mut processor = trainer(3);
    let mut gpu = on_cuda::<f16>(trainer(3), &cuda, MODEST);
    let (expected, found) = (run(&mut processor, 0..3), run(&mut gpu, 0..3));
    assert_near("mixed", 5e-2, (&gpu, &found), (&processor, &expected));
    assert!(found.iter().all(|report| report.loss_scale == Some(64.0)));
    let again = run(&mut gpu, 3..4);
    assert_eq!(again[0].loss_scale, Some(128.0));
}

fn steps_without_a_wait<E: Precision>(cuda: &Cuda, checkpoint_blocks: bool)
where
    Cuda: Operators<E>,
{
    let mut begun = trainer(4);
    begun.network_mut().set_checkpoint_blocks(checkpoint_blocks);
    let mut gpu = on_cuda::<E>(begun, cuda, LossScaling::NONE);
    let Some(before) = host_waits() else { return };
    for step in 0..4 {
        gpu.take_step(&batch_of(step), RATES).unwrap();
        assert!(gpu.reports(false).unwrap().is_empty());
    }
    assert_eq!(host_waits(), Some(before), "a step waited for the device");
    assert_eq!(gpu.reports(true).unwrap().len(), 4);
    assert_eq!(host_waits(), Some(before + 1), "the reports of four steps are one copy");
}

#[test]
fn no_step_waits_for_the_device() {
    let Some(cuda) = device() else { return };
    for checkpoint_blocks in [false, true] {
        steps_without_a_wait::<f32>(&cuda, checkpoint_blocks);
        steps_without_a_wait::<f16>(&cuda, checkpoint_blocks);
    }
}

#[test]
fn an_overflow_halves_the_scale_and_changes_nothing_else() {
    let Some(cuda) = device() else { return };
    let mut gpu = on_cuda::<f16>(
        trainer(6),
        &cuda,
        LossScaling {
            initial: 32768.0,
            ..LossScaling::DYNAMIC
        },
    );
    let before = weights(&gpu);
    let mut scale = 32768.0;
    let mut batch = batch_of(0);
    // Targets far away: gradients that f16 does not hold under this scale.
    batch.latents.iter_mut().for_each(|value| *value *= 60.0);
    for overflows in 0.. {
        gpu.take_step(&batch, RATES).unwrap();
        let report = gpu.reports(true).unwrap().remove(0);
        assert_eq!(report.loss_scale, Some(scale));
        assert!(report.losses.total.is_finite());
        if report.outcome == StepOutcome::Updated {
            assert!(overflows > 0, "nothing overflowed");
            assert_eq!((gpu.step_count(), gpu.update_count()), (overflows + 1, 1));
            assert!(report.gradient_norm.is_finite());
            break;
        }
        assert_eq!(report.outcome, StepOutcome::Overflowed);
        assert_eq!(weights(&gpu), before);
        assert!(first_moments(&gpu).iter().flatten().all(|&moment| moment == 0.0));
        scale /= 2.0;
    }
    assert_ne!(weights(&gpu), before);
}

fn a_bad_batch<E: Precision>(cuda: &Cuda)
where
    Cuda: Operators<E>,
{
    let mut gpu = on_cuda::<E>(trainer(2), cuda, if E::IS_SINGLE { LossScaling::NONE } else { MODEST });
    run(&mut gpu, 0..1);
    let before = weights(&gpu);
    let mut bad = batch_of(1);
    bad.latents[7] = f32::NAN;
    gpu.take_step(&bad, RATES).unwrap();
    gpu.take_step(&batch_of(2), RATES).unwrap();
    let reports = gpu.reports(true).unwrap();
    assert_eq!((reports[0].step, reports[0].outcome), (2, StepOutcome::Skipped));
    assert_eq!((reports[1].step, reports[1].outcome), (3, StepOutcome::Updated));
    // The data's fault, not the scale's.
    assert_eq!(reports[1].loss_scale, reports[0].loss_scale);
    assert_eq!((gpu.step_count(), gpu.update_count()), (3, 2));
    assert!(weights(&gpu).iter().flatten().all(|weight| weight.is_finite()));
    assert_ne!(weights(&gpu), before);
}

#[test]
fn a_batch_that_is_not_finite_is_skipped() {
    let Some(cuda) = device() else { return };
    a_bad_batch::<f32>(&cuda);
    a_bad_batch::<f16>(&cuda);
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn goes_on_exactly<E: Precision>(cuda: &Cuda, scaling: LossScaling)
where
    Cuda: Operators<E>,
{
    let folder = tempfile::tempdir().unwrap();
    let [half, resumed, whole] = ["half", "resumed", "whole"].map(|name| folder.path().join(name));
    let mut gpu = on_cuda::<E>(trainer(4), cuda, scaling);
    run(&mut gpu, 0..1);
    // A step that is not taken: the bias correction does not count it, before the checkpoint nor after.
    let mut bad = batch_of(1);
    bad.latents[7] = f32::NAN;
    gpu.take_step(&bad, RATES).unwrap();
    run(&mut gpu, 2..3);
    gpu.save(&half, &json!(3)).unwrap();
    // Between two growths of the scale.
    run(&mut gpu, 3..6);
    gpu.save(&whole, &json!(6)).unwrap();

    let mut begun = trainer(4);
    assert_eq!(begun.resume(&half).unwrap(), json!(3));
    let mut again = on_cuda::<E>(begun, cuda, scaling);
    assert_eq!((again.step_count(), again.update_count()), (3, 2));
    run(&mut again, 3..6);
    again.save(&resumed, &json!(6)).unwrap();
    let (resumed, whole) = (files(&resumed), files(&whole));
    assert_eq!(whole.len(), 4);
    for ((name, resumed), (_, whole)) in resumed.iter().zip(&whole) {
        assert!(resumed == whole, "{name} differs");
    }
}

#[test]
fn a_resumed_run_is_the_same_bits() {
    let Some(cuda) = device() else { return };
    goes_on_exactly::<f32>(&cuda, LossScaling::NONE);
    goes_on_exactly::<f16>(&cuda, MODEST);
}

#[test]
fn a_run_in_f32_may_go_on_on_the_processor() {
    let Some(cuda) = device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    let mut gpu = on_cuda::<f32>(trainer(6), &cuda, LossScaling::NONE);
    run(&mut gpu, 0..2);
    gpu.save(&checkpoint, &json!(null)).unwrap();
    let mut processor = trainer(6);
    processor.resume(&checkpoint).unwrap();
    let (expected, found) = (run(&mut processor, 2..4), run(&mut gpu, 2..4));
    assert_near("moved", 1e-4, (&gpu, &found), (&processor, &expected));
}

/// Two threads that pass numbers through host memory.
struct Rendezvous {
    barrier: Barrier,
    given: Mutex<[Vec<f32>; 2]>,
}

struct Member {
    rank: usize,
    shared: Arc<Rendezvous>,
}

impl Communicator for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        2
    }

    fn sum(&self, values: DeviceValues<'_>) -> Result<(), ModelError> {
        let exchange = |mine: Vec<f32>| -> Vec<f32> {
            self.shared.given.lock().unwrap()[self.rank] = mine;
            self.shared.barrier.wait();
            let sum = {
                let [first, second] = &*self.shared.given.lock().unwrap();
                first.iter().zip(second).map(|(a, b)| a + b).collect()
            };
            self.shared.barrier.wait();
            sum
        };
        match values {
            DeviceValues::Single(values) => {
                let sum = exchange(values.device().dtoh_sync_copy(values).unwrap());
                values.device().htod_sync_copy_into(&sum, values).unwrap();
            }
            DeviceValues::Half(values) => {
                let mine = values.device().dtoh_sync_copy(values).unwrap();
                let sum = exchange(mine.into_iter().map(f16::to_f32).collect());
                let sum: Vec<f16> = sum.into_iter().map(f16::from_f32).collect();
                values.device().htod_sync_copy_into(&sum, values).unwrap();
            }
        }
        Ok(())
    }
}

fn half_of(batch: &Batch, rank: usize) -> Batch {
    let config = config();
    let part = rank * SAMPLES / 2..(rank + 1) * SAMPLES / 2;
    let values = |per_sample: usize| part.start * per_sample..part.end * per_sample;
    let aligned = config.tokens() * config.alignment_width.unwrap();
    Batch {
        latents: batch.latents[values(config.latent_values())].to_vec(),
        labels: batch.labels[part.clone()].to_vec(),
        places: batch.places[part.clone()].to_vec(),
        features: batch
            .features
            .as_ref()
            .map(|features| features[values(aligned)].to_vec()),
    }
}

#[test]
fn two_devices_make_the_step_of_one() {
    if device().is_none() {
        return;
    }
    let shared = Arc::new(Rendezvous {
        barrier: Barrier::new(2),
        given: Mutex::default(),
    });
    let member = |rank: usize| {
        let shared = shared.clone();
        move || {
            let communicator = Box::new(Member { rank, shared });
            let mut gpu = CudaTrainer::<f32>::new(trainer(2), device().unwrap(), communicator).unwrap();
            for step in 0..3 {
                gpu.take_step(&half_of(&batch_of(step), rank), RATES).unwrap();
            }
            let mut reports = gpu.reports(true).unwrap();
            reports.iter_mut().for_each(|report| report.times = Default::default());
            (reports, weights(&gpu), gpu)
        }
    };
    let other = std::thread::spawn({
        let member = member(1);
        move || {
            let (reports, weights, _) = member();
            (reports, weights)
        }
    });
    let (reports, weights, gpu) = member(0)();
    assert_eq!((reports.clone(), weights), other.join().unwrap());
    let mut processor = trainer(6);
    let expected = run(&mut processor, 0..3);
    assert_near("two devices", 1e-4, (&gpu, &reports), (&processor, &expected));
}
