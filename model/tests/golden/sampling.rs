use std::ops::ControlFlow;

use deepflow_model::ops::Operators;
use deepflow_model::sampling::{sample, Method, NoiseSource, SamplerSettings};
use dfdx::prelude::{Cpu, Dtype};

use crate::case::{self, assert_close, Case};

const TOLERANCE: f64 = 1e-4;

/// The draws stored with the case: (B,…) at the start, (steps - 1,B,…) on the way.
struct StoredNoise {
    initial: Vec<f64>,
    steps: Vec<f64>,
}

impl NoiseSource for StoredNoise {
    fn initial(&self, sample: usize, out: &mut [f64]) {
        out.copy_from_slice(&self.initial[sample * out.len()..][..out.len()]);
    }

    fn step(&self, step: usize, sample: usize, out: &mut [f64]) {
        let start = step * self.initial.len() + sample * out.len();
        out.copy_from_slice(&self.steps[start..][..out.len()]);
    }
}

fn check_samplers<E: Dtype, D: Operators<E>>(case: &Case) {
    let network = case.network::<E, D>();
    let noise = StoredNoise {
        initial: case.get("sample.noise"),
        steps: case.get("sample.step_noise"),
    };
    assert_eq!(case.config.no_class(), Some(case.number("sampler/null_class") as usize));
    for (name, method, guidance) in [
        ("sde", Method::Sde, 1.0),
        ("sde_cfg", Method::Sde, case.number("sampler/cfg")),
        ("euler_cfg", Method::Euler, case.number("sampler/cfg")),
        ("heun_cfg", Method::Heun, case.number("sampler/cfg")),
    ] {
        let settings = SamplerSettings {
            method,
            steps: case.number("sampler/steps") as usize,
            guidance,
            guidance_interval: (case.number("sampler/interval/0"), case.number("sampler/interval/1")),
            ..SamplerSettings::default()
        };
        let labels = case.labels("sample.y");
        let go_on = &mut |_| ControlFlow::Continue(());
        let found = sample(&network, &settings, &labels, &noise, go_on).unwrap().unwrap();
        let name = format!("sample.{name}");
        assert_close(&format!("{} {name}", case.name), &found, &case.get(&name), TOLERANCE);
    }
}

#[test]
fn samplers_in_f32() {
    case::all().iter().for_each(check_samplers::<f32, Cpu>);
}

#[test]
fn samplers_in_f64() {
    case::all().iter().for_each(check_samplers::<f64, Cpu>);
}

/// No golden numbers exist for adaptive steps: many small Heun steps give the same picture.
#[test]
fn adaptive_steps_agree_with_many_small_ones() {
    for case in case::all() {
        let network = case.network::<f64, Cpu>();
        let noise = StoredNoise {
            initial: case.get("sample.noise"),
            steps: Vec::new(),
        };
        let labels = case.labels("sample.y");
        let run = |method, steps| {
            let settings = SamplerSettings {
                method,
                steps,
                relative_tolerance: 1e-6,
                absolute_tolerance: 1e-8,
                ..SamplerSettings::default()
            };
            let go_on = &mut |_| ControlFlow::Continue(());
            sample(&network, &settings, &labels, &noise, go_on).unwrap().unwrap()
        };
        let fine = run(Method::Heun, 100);
        assert_close(&case.name, &run(Method::Dopri5, 1), &fine, 1e-2);
    }
}
