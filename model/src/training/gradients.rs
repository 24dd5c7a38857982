//! Gradients from part to part of a batch, and which parameters have any.

use dfdx::prelude::{Dtype, Gradients, OwnedTape, Rank0, SplitTape, Storage, Trace};

use super::settings::LossSettings;
use crate::network::Network;
use crate::ops::{Operators, Scalar};
use crate::parameters::Parameter;

/// An empty tape that adds to `gradients`.
pub(super) fn tape_with<E: Dtype, D: Operators<E>>(
    device: &D,
    gradients: Gradients<E, D>,
) -> Result<OwnedTape<E, D>, D::Err> {
    let carrier: Scalar<E, D> = device.try_zeros::<Rank0>()?;
    Ok(carrier.traced(gradients).split_tape().1)
}

/// Drops the gradients of everything but the parameters. One after the other, so that they are never there twice.
pub(super) fn keep_parameters<E: Dtype, D: Operators<E>>(
    network: &Network<E, D>,
    mut gradients: Gradients<E, D>,
) -> Result<Gradients<E, D>, D::Err> {
    let mut kept = Gradients::leaky();
    for parameter in network.parameters() {
        if parameter.is_trained() {
            let values = &parameter.values;
            let nothing = Storage::<E>::try_alloc_len(network.device(), 1)?;
            let gradient = std::mem::replace(gradients.get_or_alloc_mut(values)?, nothing);
            *kept.get_or_alloc_mut(values)? = gradient;
        }
    }
    Ok(kept)
}

/// Whether the loss, with these settings, reaches the parameter.
pub(super) fn receives_gradient<E: Dtype, D: Operators<E>>(
    parameter: &Parameter<E, D>,
    loss: &LossSettings,
    aligned: bool,
) -> bool {
    let name = parameter.name();
    parameter.is_trained()
        && (loss.acceleration > 0.0 || !name.starts_with("final_acc_layer."))
        && ((loss.alignment > 0.0 && aligned) || !name.starts_with("projectors."))
}
