use deepflow_model::ops::Operators;
use deepflow_model::patches::PatchOrder;
use dfdx::prelude::{Cpu, Dtype, NoneTape};

use crate::case::{self, assert_close, to_f64, Case};

const TOLERANCE: f64 = 2e-5;

pub fn check_forward<E: Dtype, D: Operators<E>>(case: &Case) {
    let network = case.network::<E, D>();
    let patches = case.patches(network.device(), &case.get("in.x"));
    let outputs = network
        .forward(&mut NoneTape, &patches, &case.times(), &case.labels("in.y"))
        .unwrap();
    assert_eq!(outputs.velocities.len(), case.config.branches());
    for (letter, matrices) in [("v", &outputs.velocities), ("a", &outputs.accelerations)] {
        for (k, matrix) in matrices.iter().enumerate() {
            let latents = case.grid().unpatchify(&to_f64(matrix), PatchOrder::ChannelLast);
            let name = format!("out.{letter}{k}");
            assert_close(&format!("{} {name}", case.name), &latents, &case.get(&name), TOLERANCE);
        }
    }
    for (k, matrix) in outputs.projections.iter().enumerate() {
        let name = format!("out.z{k}");
        assert_close(
            &format!("{} {name}", case.name),
            &to_f64(matrix),
            &case.get(&name),
            TOLERANCE,
        );
    }
    let inner = case.config.branches() - 1;
    assert_eq!(outputs.accelerations.len(), inner);
    let projected = if case.config.alignment_width.is_some() {
        inner
    } else {
        0
    };
    assert_eq!(outputs.projections.len(), projected);
}

#[test]
fn outputs_of_every_branch_in_f32() {
    case::all().iter().for_each(check_forward::<f32, Cpu>);
}

#[test]
fn outputs_of_every_branch_in_f64() {
    case::all().iter().for_each(check_forward::<f64, Cpu>);
}

/// At inference only the last branch's velocity is computed; it is the one of the full pass at equal times.
#[test]
fn inference_gives_the_last_velocity_of_the_full_pass() {
    for case in case::all() {
        let network = case.network::<f32, Cpu>();
        let patches = case.patches(network.device(), &case.get("in.x"));
        let labels = case.labels("in.y");
        let branches = case.config.branches();
        let everywhere = vec![vec![0.37; labels.len()]; branches];
        let full = network.forward(&mut NoneTape, &patches, &everywhere, &labels).unwrap();
        let velocity = network
            .velocity(&patches, &vec![vec![0.37]; branches], &labels)
            .unwrap();
        let expected = to_f64(full.velocities.last().unwrap());
        assert_close(&case.name, &to_f64(&velocity), &expected, 1e-6);
    }
}
