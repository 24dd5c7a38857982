//! `df_blocks.k`: VeRA, the velocity refiner with acceleration between two branches (network spec §2).

use dfdx::prelude::{Dtype, HasShape, Tape};

use crate::blocks::{Mlp, EPSILON};
use crate::config::NetworkConfig;
use crate::init::Initial;
use crate::layers::{maps, LayerNorm, Linear};
use crate::ops::{Matrix, Modulation, Operators};
use crate::parameters::{parameters_of, Builder};

/// What the scale of the gap modulation is clamped to with `legacy_scaling`.
const LEGACY_SCALE_LIMIT: f64 = 5.0;

/// One VeRA block. Parts that the configuration switches off are absent ([`VeraConfig`](crate::config::VeraConfig)).
#[derive(Clone, Debug)]
pub(crate) struct Vera<E: Dtype, D: Operators<E>> {
    acc_mlp: Option<AccelerationMlp<E, D>>,
    acc_norm: Option<GapNormMlp<E, D>>,
    cross_attention: Option<CrossSpaceAttention<E, D>>,
}

parameters_of!(Vera: acc_mlp, acc_norm, cross_attention);

/// What VeRA makes of the features.
pub(crate) struct Refined<E: Dtype, D: Operators<E>> {
    /// Continue into the next branch, (B·T, D).
    pub(crate) features: Matrix<E, D>,
    /// Go to the acceleration head, (B·T, D).
    pub(crate) acceleration: Option<Matrix<E, D>>,
}

impl<E: Dtype, D: Operators<E>> Vera<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let vera = config.vera;
        let if_on = |on: bool, name: &str| on.then(|| at.at(name));
        Ok(Self {
            acc_mlp: if_on(vera.acceleration, "acc_mlp")
                .map(|at| AccelerationMlp::new(&at, config.width, config.acceleration_width))
                .transpose()?,
            acc_norm: if_on(vera.has_mlp(), "acc_norm")
                .map(|at| GapNormMlp::new(&at, config))
                .transpose()?,
            cross_attention: if_on(vera.cross_attention, "cross_attention")
                .map(|at| CrossSpaceAttention::new(&at, config))
                .transpose()?,
        })
    }

    /// v: features at the end of the branch; space: the patch tokens that entered the first block; silu_gap:
    /// SiLU(dt_embedder(t_{k+1} - t_k)) (B or 1, 2D), absent when the time gap is switched off.
    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        v: Matrix<E, D>,
        space: &Matrix<E, D>,
        silu_gap: Option<&Matrix<E, D>>,
        batch: usize,
    ) -> Result<Refined<E, D>, D::Err> {
        let mut refined = self.accelerate(device, tape, v)?;
        if let Some(acc_norm) = &self.acc_norm {
            refined.features = acc_norm.forward(device, tape, &refined.features, silu_gap)?;
        }
        if let Some(cross_attention) = &self.cross_attention {
            refined.features = cross_attention.forward(device, tape, space, refined.features, batch)?;
        }
        Ok(refined)
    }

    /// The acceleration, and beside it the features, (B·T, 2D).
    fn accelerate<T: Tape<E, D>>(&self, device: &D, tape: &mut T, v: Matrix<E, D>) -> Result<Refined<E, D>, D::Err> {
        let Some(acc_mlp) = &self.acc_mlp else {
            return Ok(Refined {
                features: v,
                acceleration: None,
            });
        };
        let acceleration = acc_mlp.forward(device, tape, &v)?;
        Ok(Refined {
            features: device.concat(tape, &v, &acceleration)?,
            acceleration: Some(acceleration),
        })
    }
}

/// `acc_mlp.{0,2,4,6}`: D → A → 2A → A → D with SiLU between.
#[derive(Clone, Debug)]
struct AccelerationMlp<E: Dtype, D: Operators<E>> {
    first: Linear<E, D>,
    second: Linear<E, D>,
    third: Linear<E, D>,
    fourth: Linear<E, D>,
}

parameters_of!(AccelerationMlp: first, second, third, fourth);

impl<E: Dtype, D: Operators<E>> AccelerationMlp<E, D> {
    fn new(at: &Builder<'_, E, D>, width: usize, hidden: usize) -> Result<Self, D::Err> {
        Ok(Self {
            first: Linear::xavier(&at.at("0"), width, hidden)?,
            second: Linear::xavier(&at.at("2"), hidden, 2 * hidden)?,
            third: Linear::xavier(&at.at("4"), 2 * hidden, hidden)?,
            fourth: Linear::xavier(&at.at("6"), hidden, width)?,
        })
    }

    fn forward<T: Tape<E, D>>(&self, device: &D, tape: &mut T, v: &Matrix<E, D>) -> Result<Matrix<E, D>, D::Err> {
        let layers = [&self.first, &self.second, &self.third, &self.fourth];
        device.silu_layers(tape, v, &maps(layers)?)
    }
}

/// `acc_norm`: an MLP behind a LayerNorm that the time gap modulates.
#[derive(Clone, Debug)]
struct GapNormMlp<E: Dtype, D: Operators<E>> {
    mlp: Mlp<E, D>,
    modulation: Option<Linear<E, D>>,
    scale_limit: Option<f64>,
}

parameters_of!(GapNormMlp: mlp, modulation);

impl<E: Dtype, D: Operators<E>> GapNormMlp<E, D> {
    fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let inputs = config.vera_width();
        let modulation = config.vera.time_gap.then(|| at.at("adaLN_modulation.1"));
        Ok(Self {
            mlp: Mlp::new(&at.at("mlp"), inputs, 2 * config.width, config.width)?,
            modulation: modulation
                .map(|at| Linear::zero(&at, 2 * config.width, 2 * inputs))
                .transpose()?,
            scale_limit: config.legacy_scaling.then_some(LEGACY_SCALE_LIMIT),
        })
    }

    fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        m: &Matrix<E, D>,
        silu_gap: Option<&Matrix<E, D>>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let (Some(modulation), Some(silu_gap)) = (&self.modulation, silu_gap) else {
            let normalized = device.plain_layer_norm(tape, m, EPSILON)?;
            return self.mlp.forward(device, tape, &normalized);
        };
        let modulation = modulation.forward(device, tape, silu_gap)?;
        let parts = Modulation {
            shift: 0,
            scale: 1,
            scale_limit: self.scale_limit,
            epsilon: EPSILON,
        };
        self.mlp.after_modulated_norm(device, tape, m, &modulation, parts)
    }
}

/// `cross_attention`: the patch tokens ask the refined features.
#[derive(Clone, Debug)]
struct CrossSpaceAttention<E: Dtype, D: Operators<E>> {
    layer_norm: LayerNorm<E, D>,
    in_proj: Linear<E, D>,
    out_proj: Linear<E, D>,
    heads: usize,
}

parameters_of!(CrossSpaceAttention: layer_norm, in_proj, out_proj);

impl<E: Dtype, D: Operators<E>> CrossSpaceAttention<E, D> {
    fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let width = config.width;
        let attention = at.at("multihead_attn");
        Ok(Self {
            layer_norm: LayerNorm::new(&at.at("layer_norm"), width)?,
            in_proj: Linear::named(
                &attention,
                "in_proj_weight",
                "in_proj_bias",
                &[3 * width, width],
                Initial::XavierUniform,
            )?,
            out_proj: Linear::xavier(&attention.at("out_proj"), width, width)?,
            heads: config.heads,
        })
    }

    /// space, m (B·T, D) → (B·T, D). Without a tape that keeps them, matrices are freed when nothing reads them any more.
    fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        space: &Matrix<E, D>,
        m: Matrix<E, D>,
        batch: usize,
    ) -> Result<Matrix<E, D>, D::Err> {
        let width = space.shape().1;
        let q_in = self.layer_norm.forward(device, tape, space)?;
        let kv_in = self.layer_norm.forward(device, tape, &m)?;
        drop(m);
        let q = self.in_proj.forward_rows(device, tape, &q_in, 0..width)?;
        let kv = self.in_proj.forward_rows(device, tape, &kv_in, width..3 * width)?;
        drop(kv_in);
        let mixed = device.cross_attention(tape, &q, &kv, batch, self.heads)?;
        drop((q, kv));
        let update = self.out_proj.forward(device, tape, &mixed)?;
        device.add(tape, &q_in, &update)
    }
}
