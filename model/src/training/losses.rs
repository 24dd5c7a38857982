//! The three losses (network spec §4).

use dfdx::prelude::{Dtype, Tape};

use super::inputs::TrainingInputs;
use super::settings::LossSettings;
use crate::error::ModelError;
use crate::network::{Network, Outputs};
use crate::ops::{Operators, Scalar};

/// The losses of one forward pass, still on the device.
#[derive(Clone, Debug)]
pub struct LossTerms<E: Dtype, D: Operators<E>> {
    /// Mean squared error of every branch's velocity, unweighted, K of them.
    pub velocity: Vec<Scalar<E, D>>,
    /// Acceleration loss of every inner branch, unweighted; empty where it is left out.
    pub acceleration: Vec<Scalar<E, D>>,
    /// Alignment loss of every inner branch, unweighted; empty where it is left out.
    pub alignment: Vec<Scalar<E, D>>,
    /// What is minimised: the weighted sum.
    pub total: Scalar<E, D>,
}

/// The losses as numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossValues {
    /// Mean squared error of every branch's velocity, unweighted.
    pub velocity: Vec<f64>,
    /// Sum over inner branches of the acceleration loss, unweighted.
    pub acceleration: f64,
    /// Mean over inner branches of the alignment loss, unweighted.
    pub alignment: f64,
    /// The weighted sum that is minimised.
    pub total: f64,
}

/// Runs the network on `inputs` and computes `share` times the loss, where `share` is the part of a whole batch that
/// `inputs` is: the sum over the parts of a batch is the loss of the batch.
///
/// # Errors
/// As [`Network::forward`].
pub fn batch_losses<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    network: &Network<E, D>,
    tape: &mut T,
    inputs: &TrainingInputs<E, D>,
    settings: &LossSettings,
    share: f64,
) -> Result<LossTerms<E, D>, ModelError> {
    let outputs = network.forward(tape, &inputs.patches, &inputs.times, &inputs.labels)?;
    loss_terms(network.device(), tape, &outputs, inputs, settings, share).map_err(ModelError::device)
}

fn loss_terms<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    device: &D,
    tape: &mut T,
    outputs: &Outputs<E, D>,
    inputs: &TrainingInputs<E, D>,
    settings: &LossSettings,
    share: f64,
) -> Result<LossTerms<E, D>, D::Err> {
    let mut terms = Vec::new();
    let mut velocity = Vec::new();
    for ((predicted, target), weight) in outputs
        .velocities
        .iter()
        .zip(&inputs.targets)
        .zip(&settings.branch_weights)
    {
        let error = device.mean_squared_error(tape, predicted, target)?;
        terms.push((error.clone(), share * weight));
        velocity.push(error);
    }

    let mut acceleration = Vec::new();
    if settings.acceleration > 0.0 {
        for (k, predicted) in outputs.accelerations.iter().enumerate() {
            let error = device.acceleration_loss(
                tape,
                &inputs.displacements[k],
                &outputs.velocities[k],
                predicted,
                &inputs.times[k],
            )?;
            terms.push((error.clone(), share * settings.acceleration));
            acceleration.push(error);
        }
    }

    let mut alignment = Vec::new();
    if let (Some(features), true) = (&inputs.features, settings.alignment > 0.0) {
        let weight = share * settings.alignment / outputs.projections.len() as f64;
        for projection in &outputs.projections {
            let error = device.cosine_alignment_loss(tape, projection, features)?;
            terms.push((error.clone(), weight));
            alignment.push(error);
        }
    }

    Ok(LossTerms {
        velocity,
        acceleration,
        alignment,
        total: device.weighted_sum(tape, &terms)?,
    })
}

impl<E: Dtype, D: Operators<E>> LossTerms<E, D> {
    /// Reads the numbers from the device.
    pub fn values(&self) -> LossValues {
        let sum = |terms: &[Scalar<E, D>]| terms.iter().map(number).sum::<f64>();
        LossValues {
            velocity: self.velocity.iter().map(number).collect(),
            acceleration: sum(&self.acceleration),
            alignment: sum(&self.alignment) / self.alignment.len().max(1) as f64,
            total: number(&self.total),
        }
    }
}

fn number<E: Dtype, D: Operators<E>>(scalar: &Scalar<E, D>) -> f64 {
    scalar.as_vec()[0].to_f64().unwrap_or(f64::NAN)
}

impl LossValues {
    /// Adds the losses of a part that is `share` of the batch (its total is already weighted).
    pub(super) fn add_part(&mut self, part: &Self, share: f64) {
        self.velocity.resize(part.velocity.len(), 0.0);
        for (sum, value) in self.velocity.iter_mut().zip(&part.velocity) {
            *sum += share * value;
        }
        self.acceleration += share * part.acceleration;
        self.alignment += share * part.alignment;
        self.total += part.total;
    }
}
