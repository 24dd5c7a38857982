//! What leaves the transformer: velocity and acceleration heads, and the projectors (network spec §2).

use dfdx::prelude::{Dtype, Tape};

use crate::blocks::EPSILON;
use crate::config::NetworkConfig;
use crate::layers::{maps, Linear};
use crate::ops::{Matrix, Modulation, Operators};
use crate::parameters::{parameters_of, Builder};

/// `final_layer.0`, `final_layer.1` and `final_acc_layer`: modulated norm, then a linear map to the values of a patch.
#[derive(Clone, Debug)]
pub(crate) struct Head<E: Dtype, D: Operators<E>> {
    linear: Linear<E, D>,
    modulation: Linear<E, D>,
}

parameters_of!(Head: linear, modulation);

impl<E: Dtype, D: Operators<E>> Head<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let width = config.width;
        Ok(Self {
            linear: Linear::zero(&at.at("linear"), width, config.patch_values())?,
            modulation: Linear::zero(&at.at("adaLN_modulation.1"), width, 2 * width)?,
        })
    }

    /// Features (B·T, D), SiLU(c) (B, D) → patches (B·T, P·P·C).
    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        features: &Matrix<E, D>,
        silu_c: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let modulation = self.modulation.forward(device, tape, silu_c)?;
        let parts = Modulation {
            shift: 0,
            scale: 1,
            scale_limit: None,
            epsilon: EPSILON,
        };
        self.linear
            .after_modulated_norm(device, tape, features, &modulation, parts)
    }
}

/// `projectors.k`: maps features to those of a self-supervised encoder.
#[derive(Clone, Debug)]
pub(crate) struct Projector<E: Dtype, D: Operators<E>> {
    first: Linear<E, D>,
    second: Linear<E, D>,
    third: Linear<E, D>,
}

parameters_of!(Projector: first, second, third);

impl<E: Dtype, D: Operators<E>> Projector<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, width: usize, hidden: usize, outputs: usize) -> Result<Self, D::Err> {
        Ok(Self {
            first: Linear::xavier(&at.at("0"), width, hidden)?,
            second: Linear::xavier(&at.at("2"), hidden, hidden)?,
            third: Linear::xavier(&at.at("4"), hidden, outputs)?,
        })
    }

    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        features: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let layers = [&self.first, &self.second, &self.third];
        device.silu_layers(tape, features, &maps(layers)?)
    }
}
