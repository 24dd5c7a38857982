//! What the optimiser remembers between steps.

use dfdx::prelude::{Dtype, HasShape};
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::network::Network;
use crate::ops::{Operators, Vector};

/// Moments and moving average, one vector per parameter of the network and in its order.
#[derive(Clone, Debug)]
pub struct OptimizerState<E: Dtype, D: Operators<E>> {
    /// Running means of the gradients.
    pub first_moments: Vec<Vector<E, D>>,
    /// Running means of the squared gradients.
    pub second_moments: Vec<Vector<E, D>>,
    /// Exponential moving average of the weights.
    pub ema: Vec<Vector<E, D>>,
}

/// Where the loss scale of mixed precision stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the next loss is multiplied by.
    pub scale: f32,
    /// Updates since it last changed.
    pub steps_since_growth: u32,
}

impl<E: Dtype, D: Operators<E>> OptimizerState<E, D> {
    /// Zero moments, and the weights themselves as their average.
    ///
    /// # Errors
    /// [`ModelError::Device`] when memory is short.
    pub fn new(network: &Network<E, D>) -> Result<Self, ModelError> {
        let device = network.device();
        let zeros = || {
            network
                .parameters()
                .iter()
                .map(|parameter| device.try_zeros_like(parameter.values.shape()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(ModelError::device)
        };
        let copy = |values: &Vector<E, D>| {
            let mut host = vec![E::default(); values.shape().0];
            values.copy_into(&mut host);
            device.try_tensor_from_vec(host, *values.shape())
        };
        Ok(Self {
            first_moments: zeros()?,
            second_moments: zeros()?,
            ema: network
                .parameters()
                .iter()
                .map(|parameter| copy(&parameter.values))
                .collect::<Result<_, _>>()
                .map_err(ModelError::device)?,
        })
    }
}
