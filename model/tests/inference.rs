//! What sampling computes, and what it leaves out (network spec §3 and §7).
#![allow(clippy::unwrap_used)]

#[path = "training/support.rs"]
#[allow(dead_code)]
mod support;

use std::cell::RefCell;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};

use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::sampling::{sample, IndexedNoise, Method, SamplerSettings};
use deepflow_model::Network;
use dfdx::prelude::{Cpu, NoneTape, TensorFromVec};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use support::{busy_network, config};

const METHODS: [Method; 4] = [Method::Sde, Method::Euler, Method::Heun, Method::Dopri5];

thread_local! {
    /// The messages of this thread's trace events, with the numbers they carry.
    static EVENTS: RefCell<Vec<(String, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps every trace event with its thread; one for the whole process, because tests run side by side.
struct Trace;

#[derive(Default)]
struct Line {
    message: String,
    number: u64,
}

impl Visit for Line {
    fn record_u64(&mut self, _: &Field, value: u64) {
        self.number = value;
    }

    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.message = format!("{value:?}");
    }
}

impl Subscriber for Trace {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        EVENTS.with_borrow_mut(|events| events.push((line.message, line.number)));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The numbers of the events with this message while `work` runs.
fn traced(message: &str, work: impl FnOnce() + Send) -> Vec<u64> {
    // Another test may have been first.
    let _ = tracing::subscriber::set_global_default(Trace);
    // The network computes on threads of the pool it is called from: here one, which no other test uses.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let events = pool.install(|| {
        work();
        EVENTS.take()
    });
    let of_message = events.into_iter().filter(|(found, _)| found == message);
    of_message.map(|(_, number)| number).collect()
}

fn patches(network: &Network<f32, Cpu>, samples: usize) -> dfdx::tensor::Tensor<(usize, usize), f32, Cpu> {
    let config = network.config();
    let values = (0..samples * config.latent_values()).map(|i| (i as f32 * 0.3).sin());
    let shape = (samples * config.tokens(), config.patch_values());
    Cpu::default().tensor_from_vec(values.collect(), shape)
}

fn draw(network: &Network<f32, Cpu>, settings: &SamplerSettings, indices: &[u64]) -> Vec<f64> {
    let noise = IndexedNoise {
        seed: 11,
        indices: indices.to_vec(),
    };
    let labels: Vec<usize> = indices.iter().map(|&index| index as usize % 5).collect();
    let go_on = &mut |_| ControlFlow::Continue(());
    sample(network, settings, &labels, &noise, go_on).unwrap().unwrap()
}

#[test]
fn what_only_training_needs_is_not_computed() {
    let mut network: Network<f32, Cpu> = busy_network(&config());
    let (x, times, labels) = (patches(&network, 2), vec![vec![0.4]; 3], [1, 5]);
    let before = network.velocity(&x, &times, &labels).unwrap().as_vec();
    for part in ["final_layer.0.", "final_acc_layer.", "projectors."] {
        let mut without = network.clone();
        let mut removed = 0;
        for parameter in without.parameters_mut() {
            if parameter.name().starts_with(part) {
                parameter.values = Cpu::default().tensor_from_vec(Vec::new(), (0,));
                removed += 1;
            }
        }
        assert!(removed > 0, "{part}");
        assert_eq!(
            without.velocity(&x, &times, &labels).unwrap().as_vec(),
            before,
            "{part}"
        );
        // Training does compute them: without their weights it cannot go on.
        let trains = catch_unwind(AssertUnwindSafe(|| {
            without.forward(&mut NoneTape, &x, &times, &labels).is_ok()
        }));
        assert!(!trains.unwrap_or(false), "{part}");
    }
    // What inference does compute is needed.
    let last = network
        .parameters_mut()
        .into_iter()
        .find(|p| p.name().starts_with("final_layer.1."));
    last.unwrap().values = Cpu::default().tensor_from_vec(Vec::new(), (0,));
    assert!(catch_unwind(AssertUnwindSafe(|| network.velocity(&x, &times, &labels))).is_err());
}

#[test]
fn equal_times_are_embedded_once() {
    let network: Network<f32, Cpu> = busy_network(&config());
    let x = patches(&network, 2);
    let embedded = |times: [&[f64]; 3]| {
        let times = times.map(<[f64]>::to_vec);
        traced("embedding of times", || {
            network.velocity(&x, &times, &[0, 1]).unwrap();
        })
    };
    // One time and one gap for three branches and both samples.
    assert_eq!(embedded([&[0.4], &[0.4], &[0.4]]), [1, 1]);
    // The last branch has a time of its own, and so has the gap before it.
    assert_eq!(embedded([&[0.4], &[0.4], &[0.3]]), [1, 1, 1, 1]);
    // As with adaptive steps: every sample has its time.
    assert_eq!(embedded([&[0.4, 0.6], &[0.4, 0.6], &[0.4, 0.6]]), [2, 2]);
}

#[test]
fn guidance_evaluates_one_batch_of_twice_the_size_inside_its_interval_only() {
    let network: Network<f32, Cpu> = busy_network(&config());
    let evaluations = |method, steps| {
        let settings = SamplerSettings {
            method,
            steps,
            guidance: 2.0,
            guidance_interval: (0.25, 0.75),
            ..SamplerSettings::default()
        };
        traced("evaluation of the network", || {
            draw(&network, &settings, &[0, 1, 2]);
        })
    };
    // Starts of the steps: 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125.
    assert_eq!(evaluations(Method::Euler, 8), [3, 3, 6, 6, 6, 6, 6, 3]);
    // Both ends of a step are guided or not by its start; the last step has one end.
    assert_eq!(evaluations(Method::Heun, 4), [3, 3, 6, 6, 6, 6, 6]);
    // 1, 0.76, 0.52, 0.28, 0.04, and from there to 0.
    assert_eq!(evaluations(Method::Sde, 5), [3, 3, 6, 6, 3]);
    // Every sample has steps of its own: those inside the interval are evaluated twice, in the same batch.
    let adaptive = evaluations(Method::Dopri5, 1);
    assert!(adaptive.iter().all(|&batch| batch <= 6) && adaptive.contains(&6) && adaptive.contains(&3));
}

#[test]
fn no_guidance_evaluates_every_sample_once() {
    let network: Network<f32, Cpu> = busy_network(&config());
    for method in METHODS {
        let settings = SamplerSettings {
            method,
            steps: 4,
            guidance: 1.0,
            ..SamplerSettings::default()
        };
        let evaluations = traced("evaluation of the network", || {
            draw(&network, &settings, &[0, 1, 2]);
        });
        assert!(
            evaluations.iter().all(|&batch| batch <= 3),
            "{method:?}: {evaluations:?}"
        );
    }
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let network: Network<f32, Cpu> = busy_network(&config());
    let values = network.config().latent_values();
    for method in METHODS {
        let settings = SamplerSettings {
            method,
            steps: 6,
            guidance: 1.5,
            guidance_interval: (0.2, 0.9),
            ..SamplerSettings::default()
        };
        let together = draw(&network, &settings, &[7, 8, 9]);
        for (place, index) in [7, 8, 9].into_iter().enumerate() {
            let alone = draw(&network, &settings, &[index]);
            assert_eq!(
                alone,
                together[place * values..][..values],
                "{method:?}, sample {index}"
            );
        }
    }
}

#[test]
fn branch_times_move_the_time_of_each_branch() {
    let network: Network<f32, Cpu> = busy_network(&config());
    let grid = PatchGrid::from(network.config());
    let offsets = [0.0, -0.05, 0.5];
    let settings = SamplerSettings {
        method: Method::Euler,
        steps: 4,
        branch_times: offsets.to_vec(),
        ..SamplerSettings::default()
    };
    let found = draw(&network, &settings, &[3]);

    let plain = SamplerSettings {
        branch_times: Vec::new(),
        ..settings.clone()
    };
    // The noise they start from: what no step has moved.
    let mut x = vec![0.0; network.config().latent_values()];
    let noise = IndexedNoise {
        seed: 11,
        indices: vec![3],
    };
    deepflow_model::sampling::NoiseSource::initial(&noise, 0, &mut x);
    for time in [1.0, 0.75, 0.5, 0.25] {
        let patches = grid
            .patchify(&x, PatchOrder::ChannelFirst)
            .into_iter()
            .map(|value| value as f32);
        let shape = (network.config().tokens(), network.config().patch_values());
        let patches = Cpu::default().tensor_from_vec(patches.collect(), shape);
        let times = offsets.map(|offset: f64| vec![(time + offset).clamp(0.0, 1.0)]);
        let velocity = network.velocity(&patches, &times, &[3]).unwrap().as_vec();
        let velocity = grid.unpatchify(&velocity, PatchOrder::ChannelLast);
        x.iter_mut().zip(velocity).for_each(|(x, v)| *x -= 0.25 * f64::from(v));
    }
    let error = found.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error < 1e-9, "{error}");

    assert_ne!(found, draw(&network, &plain, &[3]));
    let zeros = SamplerSettings {
        branch_times: vec![0.0; 3],
        ..settings.clone()
    };
    assert_eq!(draw(&network, &zeros, &[3]), draw(&network, &plain, &[3]));

    let two = SamplerSettings {
        branch_times: vec![0.0; 2],
        ..settings
    };
    let error = two.validate(network.config()).unwrap_err().to_string();
    assert_eq!(
        error,
        "sample.branch_times = [0.0, 0.0]: must hold one offset for each of the 3 branches"
    );
}
