use std::ops::ControlFlow;

use deepflow_model::ops::Operators;
use deepflow_model::sampling::{sample, Method, NoiseSource, SamplerSettings};
use dfdx::prelude::{Cpu, Dtype};

use crate::case::{self, assert_close, Case};

const TOLERANCE: f64 = 1e-4;
/// What is left of the error of the extrapolated reference.
const LIMIT_TOLERANCE: f64 = 1e-4;

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

/// No golden numbers exist for adaptive steps: they end where Heun's method goes as its steps get smaller.
#[test]
fn adaptive_steps_agree_with_the_limit_of_small_ones() {
    for case in case::all() {
        let network = case.network::<f64, Cpu>();
        let noise = StoredNoise {
            initial: case.get("sample.noise"),
            steps: Vec::new(),
        };
        let labels = case.labels("sample.y");
        let run = |method, steps, tolerance| {
            let settings = SamplerSettings {
                method,
                steps,
                relative_tolerance: tolerance,
                absolute_tolerance: 1e-3 * tolerance,
                ..SamplerSettings::default()
            };
            let go_on = &mut |_| ControlFlow::Continue(());
            sample(&network, &settings, &labels, &noise, go_on).unwrap().unwrap()
        };
        // The error of Heun's method falls with the square of the step: two of them tell where it goes.
        let (coarse, fine) = (run(Method::Heun, 64, 1.0), run(Method::Heun, 128, 1.0));
        let limit: Vec<f64> = fine
            .iter()
            .zip(&coarse)
            .map(|(fine, coarse)| fine + (fine - coarse) / 3.0)
            .collect();
        assert_close(&case.name, &run(Method::Dopri5, 1, 1e-7), &limit, LIMIT_TOLERANCE);
        // What the default tolerances promise.
        assert_close(&case.name, &run(Method::Dopri5, 1, 1e-3), &limit, 1e-2);
    }
}
