//! What enters the transformer: patches, positions, times and labels (network spec §2).

use dfdx::prelude::{Dtype, HasShape, Tape};

use crate::config::{NetworkConfig, FOURIER_FEATURES};
use crate::init::Initial;
use crate::layers::Linear;
use crate::ops::{Matrix, Operators};
use crate::parameters::{parameters_of, Builder, Parameter};

/// Standard deviation of the time embedders' and the class table's initial values.
const EMBEDDING_DEVIATION: f64 = 0.02;

/// `x_embedder`: the P×P convolution of stride P, as a linear map of patches (B·T, C·P·P).
#[derive(Clone, Debug)]
pub(crate) struct PatchEmbedder<E: Dtype, D: Operators<E>> {
    proj: Linear<E, D>,
}

parameters_of!(PatchEmbedder: proj);

impl<E: Dtype, D: Operators<E>> PatchEmbedder<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let shape = [config.width, config.latent_channels, config.patch, config.patch];
        Ok(Self {
            proj: Linear::new(&at.at("proj"), &shape, Initial::XavierUniform)?,
        })
    }

    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        patches: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        self.proj.forward(device, tape, patches)
    }
}

/// The fixed 2-D sine-cosine table (T·D values): the first half of a row encodes the column index, the second the row.
pub(crate) fn position_table(width: usize, grid: usize) -> Vec<f64> {
    let quarter = width / 4;
    let frequency = |j: usize| 10_000f64.powf(-(j as f64) / quarter as f64);
    let mut table = Vec::with_capacity(grid * grid * width);
    for row in 0..grid {
        for column in 0..grid {
            for position in [column as f64, row as f64] {
                table.extend((0..quarter).map(|j| (position * frequency(j)).sin()));
                table.extend((0..quarter).map(|j| (position * frequency(j)).cos()));
            }
        }
    }
    table
}

/// `t_embedder` and `dt_embedder`: Fourier features of a scalar, then `mlp.0`, SiLU, `mlp.2`.
#[derive(Clone, Debug)]
pub(crate) struct TimeEmbedder<E: Dtype, D: Operators<E>> {
    hidden: Linear<E, D>,
    output: Linear<E, D>,
}

parameters_of!(TimeEmbedder: hidden, output);

impl<E: Dtype, D: Operators<E>> TimeEmbedder<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, width: usize) -> Result<Self, D::Err> {
        let normal = Initial::Normal(EMBEDDING_DEVIATION);
        Ok(Self {
            hidden: Linear::new(&at.at("mlp.0"), &[width, FOURIER_FEATURES], normal)?,
            output: Linear::new(&at.at("mlp.2"), &[width, width], normal)?,
        })
    }

    /// Times (n) → (n, width).
    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        times: &[f64],
    ) -> Result<Matrix<E, D>, D::Err> {
        tracing::trace!(times = times.len(), "embedding of times");
        let features = device.fourier_features(times, FOURIER_FEATURES)?;
        let hidden = self.hidden.forward(device, tape, &features)?;
        self.output.after_silu(device, tape, &hidden)
    }
}

/// `y_embedder`: the class table, whose last row is "no class" when labels are dropped in training.
#[derive(Clone, Debug)]
pub(crate) struct LabelEmbedder<E: Dtype, D: Operators<E>> {
    table: Parameter<E, D>,
}

parameters_of!(LabelEmbedder: table);

impl<E: Dtype, D: Operators<E>> LabelEmbedder<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        Ok(Self {
            table: at.parameter(
                "embedding_table.weight",
                &[config.class_rows(), config.width],
                Initial::Normal(EMBEDDING_DEVIATION),
            )?,
        })
    }

    /// Labels (B) → (B, D).
    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        labels: &[usize],
    ) -> Result<Matrix<E, D>, D::Err> {
        device.embedding(tape, &self.table.matrix()?, labels)
    }
}

/// `time + label` for every sample; a single time row serves the whole batch.
pub(crate) fn condition<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    device: &D,
    tape: &mut T,
    time: &Matrix<E, D>,
    label: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let batch = label.shape().0;
    if time.shape().0 == batch {
        device.add(tape, time, label)
    } else {
        let repeated = device.embedding(tape, time, &vec![0; batch])?;
        device.add(tape, &repeated, label)
    }
}
