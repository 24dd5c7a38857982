//! The DeepFlow network: transformer blocks in branches with deep supervision and VeRA between them (network spec §3).

use dfdx::prelude::{Cpu, Dtype, HasShape, NoneTape, Tape};

use crate::blocks::Block;
use crate::checkpointing::forward_checkpointed;
use crate::config::NetworkConfig;
use crate::embeddings::{condition, LabelEmbedder, PatchEmbedder, TimeEmbedder};
use crate::error::{ConfigError, ModelError};
use crate::heads::{Head, Projector};
use crate::init::Initial;
use crate::ops::{Matrix, Operators};
use crate::parameters::{parameters_of, Builder, HasParameters, Parameter};
use crate::vera::Vera;

/// A network with its weights. Cloning shares the weights until one of the two changes them.
#[derive(Clone, Debug)]
pub struct Network<E: Dtype, D: Operators<E>> {
    config: NetworkConfig,
    device: D,
    parts: Parts<E, D>,
    checkpoint_blocks: bool,
}

/// The modules, in the order of a checkpoint.
#[derive(Clone, Debug)]
struct Parts<E: Dtype, D: Operators<E>> {
    pos_embed: Parameter<E, D>,
    x_embedder: PatchEmbedder<E, D>,
    t_embedder: TimeEmbedder<E, D>,
    dt_embedder: Option<TimeEmbedder<E, D>>,
    y_embedder: LabelEmbedder<E, D>,
    blocks: Vec<Block<E, D>>,
    df_blocks: Vec<Vera<E, D>>,
    final_layer: Vec<Head<E, D>>,
    final_acc_layer: Option<Head<E, D>>,
    projectors: Vec<Projector<E, D>>,
}

parameters_of!(
    Parts: pos_embed, x_embedder, t_embedder, dt_embedder, y_embedder, blocks, df_blocks,
    final_layer, final_acc_layer, projectors
);

/// What a forward pass gives; patches are `(B·T, P·P·C)` in [`PatchOrder::ChannelLast`](crate::patches::PatchOrder).
#[derive(Clone, Debug)]
pub struct Outputs<E: Dtype, D: Operators<E>> {
    /// Velocity of every branch as patches, K of them (at inference only the last branch's).
    pub velocities: Vec<Matrix<E, D>>,
    /// Acceleration of every inner branch as patches, K-1 of them.
    pub accelerations: Vec<Matrix<E, D>>,
    /// Projected features after every VeRA block, `(B·T, Z)`, K-1 of them when aligning.
    pub projections: Vec<Matrix<E, D>>,
    /// Features at the end of every branch, `(B·T, D)`, K of them (at inference only the last branch's).
    pub features: Vec<Matrix<E, D>>,
}

/// A place whose features can be looked at on the way ([`Network::forward_observed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeaturePlace {
    /// After this many transformer blocks; at the end of a branch: what its velocity head reads.
    Block(usize),
    /// After the VeRA block of this branch, counted from 0: what the next branch starts from.
    Vera(usize),
}

/// Which outputs are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Supervision {
    EveryBranch,
    LastBranch,
}

impl<E: Dtype, D: Operators<E>> Network<E, D> {
    /// A network initialised by network spec §5; the same seed gives the same weights on every machine and device.
    ///
    /// # Errors
    /// [`ModelError::Config`] when a rule of the configuration is broken or the device does not compute heads this wide,
    /// [`ModelError::Device`] when memory is short.
    pub fn new(config: NetworkConfig, device: D, seed: u64) -> Result<Self, ModelError> {
        config.validate()?;
        refuse_wide_heads(&config, D::WIDEST_HEAD)?;
        let parts = Parts::new(&config, &Builder::new(&device, seed)).map_err(ModelError::device)?;
        Ok(Self {
            config,
            device,
            parts,
            checkpoint_blocks: false,
        })
    }

    /// A network whose parameters have names and shapes and no values yet.
    #[cfg(feature = "cuda")]
    pub(crate) fn outline(config: NetworkConfig, device: D) -> Result<Self, ModelError> {
        config.validate()?;
        refuse_wide_heads(&config, D::WIDEST_HEAD)?;
        let parts = Parts::new(&config, &Builder::outline(&device)).map_err(ModelError::device)?;
        Ok(Self {
            config,
            device,
            parts,
            checkpoint_blocks: false,
        })
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The device its weights lie on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// With `true`, training keeps only every block's input and computes the block again in the backward pass: the
    /// gradients are the same, memory falls, a step costs about a third more.
    pub fn set_checkpoint_blocks(&mut self, on: bool) {
        self.checkpoint_blocks = on;
    }

    /// Whether blocks are computed again in the backward pass.
    #[cfg(feature = "cuda")]
    pub(crate) fn checkpoint_blocks(&self) -> bool {
        self.checkpoint_blocks
    }

    /// All parameters with their checkpoint names, in a fixed order.
    pub fn parameters(&self) -> Vec<&Parameter<E, D>> {
        let mut parameters = Vec::new();
        self.parts.collect(&mut parameters);
        parameters
    }

    /// All parameters, to be changed.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter<E, D>> {
        let mut parameters = Vec::new();
        self.parts.collect_mut(&mut parameters);
        parameters
    }

    /// The forward pass of training: velocities of every branch, accelerations and projections.
    ///
    /// `patches` (B·T, C·P·P) in [`PatchOrder::ChannelFirst`](crate::patches::PatchOrder), `times` K lists of B times (or
    /// of one for all samples), `labels` B class indices. With a [`NoneTape`] nothing is kept for a backward pass.
    ///
    /// # Errors
    /// [`ModelError::Input`] for inputs that do not fit the configuration or each other, [`ModelError::Device`].
    pub fn forward<T: Tape<E, D>>(
        &self,
        tape: &mut T,
        patches: &Matrix<E, D>,
        times: &[Vec<f64>],
        labels: &[usize],
    ) -> Result<Outputs<E, D>, ModelError> {
        self.forward_observed(tape, patches, times, labels, &mut |_, _| {})
    }

    /// [`forward`](Self::forward) that shows the features (B·T, D) at every place to `observe`, in the order in which they
    /// are computed.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_observed<T: Tape<E, D>>(
        &self,
        tape: &mut T,
        patches: &Matrix<E, D>,
        times: &[Vec<f64>],
        labels: &[usize],
        observe: &mut dyn FnMut(FeaturePlace, &Matrix<E, D>),
    ) -> Result<Outputs<E, D>, ModelError> {
        self.check_inputs(patches, times, labels)?;
        self.walk(tape, patches, times, labels, Supervision::EveryBranch, observe)
            .map_err(ModelError::device)
    }

    /// The velocity of the last branch as patches: inner heads, acceleration head and projectors are not computed.
    /// `times` holds a list for every branch with one time for the whole batch or one per sample; equal lists are
    /// embedded once.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn velocity(
        &self,
        patches: &Matrix<E, D>,
        times: &[Vec<f64>],
        labels: &[usize],
    ) -> Result<Matrix<E, D>, ModelError> {
        self.check_inputs(patches, times, labels)?;
        let last = Supervision::LastBranch;
        let mut outputs = self
            .walk(&mut NoneTape, patches, times, labels, last, &mut |_, _| {})
            .map_err(ModelError::device)?;
        Ok(outputs.velocities.swap_remove(0))
    }

    fn walk<T: Tape<E, D>>(
        &self,
        tape: &mut T,
        patches: &Matrix<E, D>,
        times: &[Vec<f64>],
        labels: &[usize],
        supervision: Supervision,
        observe: &mut dyn FnMut(FeaturePlace, &Matrix<E, D>),
    ) -> Result<Outputs<E, D>, D::Err> {
        let (device, parts) = (&self.device, &self.parts);
        let batch = labels.len();
        tracing::trace!(batch, "evaluation of the network");
        let every_branch = supervision == Supervision::EveryBranch;
        let mut outputs = Outputs {
            velocities: Vec::new(),
            accelerations: Vec::new(),
            projections: Vec::new(),
            features: Vec::new(),
        };

        let space = self.space(tape, patches)?;
        let label = parts.y_embedder.forward(device, tape, labels)?;
        let mut silu_c = self.silu_condition(tape, &times[0], &label)?;
        let mut silu_gap: Option<(Vec<f64>, Matrix<E, D>)> = None;

        let mut h = space.clone();
        let mut branch = 0;
        for (index, block) in parts.blocks.iter().enumerate() {
            h = if self.checkpoint_blocks && T::OWNS_TAPE {
                forward_checkpointed(block, device, tape, h, &silu_c)?
            } else {
                block.forward(device, tape, h, &silu_c)?
            };
            observe(FeaturePlace::Block(index + 1), &h);
            if self.config.branch_ends.get(branch) != Some(&(index + 1)) {
                continue;
            }

            if every_branch {
                let velocity = parts.final_layer[0].forward(device, tape, &h, &silu_c)?;
                outputs.velocities.push(velocity);
                outputs.features.push(h.clone());
            }
            if self.config.vera.time_gap {
                let gap = gaps(&times[branch], &times[branch + 1]);
                if silu_gap.as_ref().is_none_or(|(known, _)| *known != gap) {
                    let embedded = self.silu_gap(tape, &gap)?;
                    silu_gap = embedded.map(|embedded| (gap, embedded));
                }
            }
            let gap = silu_gap.as_ref().map(|(_, embedded)| embedded);
            let refined = parts.df_blocks[branch].forward(device, tape, h, &space, gap, batch)?;
            h = refined.features;
            observe(FeaturePlace::Vera(branch), &h);
            if every_branch {
                if let (Some(head), Some(acc)) = (&parts.final_acc_layer, &refined.acceleration) {
                    let acceleration = head.forward(device, tape, acc, &silu_c)?;
                    outputs.accelerations.push(acceleration);
                }
                if let Some(projector) = parts.projectors.get(branch) {
                    let projection = projector.forward(device, tape, &h)?;
                    outputs.projections.push(projection);
                }
            }
            if times[branch + 1] != times[branch] {
                silu_c = self.silu_condition(tape, &times[branch + 1], &label)?;
            }
            branch += 1;
        }
        let velocity = parts.final_layer[1].forward(device, tape, &h, &silu_c)?;
        outputs.velocities.push(velocity);
        outputs.features.push(h);
        Ok(outputs)
    }

    /// The patch tokens with their positions, (B·T, D).
    fn space<T: Tape<E, D>>(&self, tape: &mut T, patches: &Matrix<E, D>) -> Result<Matrix<E, D>, D::Err> {
        let tokens = self.parts.x_embedder.forward(&self.device, tape, patches)?;
        let position = self.parts.pos_embed.as_matrix(self.config.tokens())?;
        self.device.add_position(tape, &tokens, &position)
    }

    /// SiLU(t_embedder(t) + label): every use of the condition starts with the SiLU, so it is done once per branch.
    fn silu_condition<T: Tape<E, D>>(
        &self,
        tape: &mut T,
        times: &[f64],
        label: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let time = self.parts.t_embedder.forward(&self.device, tape, times)?;
        let c = condition(&self.device, tape, &time, label)?;
        self.device.silu(tape, &c)
    }

    fn silu_gap<T: Tape<E, D>>(&self, tape: &mut T, gap: &[f64]) -> Result<Option<Matrix<E, D>>, D::Err> {
        let Some(dt_embedder) = &self.parts.dt_embedder else {
            return Ok(None);
        };
        let embedded = dt_embedder.forward(&self.device, tape, gap)?;
        self.device.silu(tape, &embedded).map(Some)
    }

    fn check_inputs(&self, patches: &Matrix<E, D>, times: &[Vec<f64>], labels: &[usize]) -> Result<(), ModelError> {
        let input = |what, found: String, expected: String| Err(ModelError::Input { what, found, expected });
        let batch = labels.len();
        if batch == 0 {
            return input("labels", "none".into(), "at least one".into());
        }
        let expected = (batch * self.config.tokens(), self.config.patch_values());
        if *patches.shape() != expected {
            let found = format!("{:?}", patches.shape());
            return input("patches", found, format!("{expected:?}"));
        }
        if times.len() != self.config.branches() {
            let expected = format!("one list per branch: {}", self.config.branches());
            return input("times", format!("{} lists", times.len()), expected);
        }
        let length = times[0].len();
        if times.iter().any(|list| list.len() != length) || (length != 1 && length != batch) {
            let found = format!("{:?} times", times.iter().map(Vec::len).collect::<Vec<_>>());
            return input("times", found, format!("{batch} (or 1) in every list"));
        }
        let rows = self.config.class_rows();
        match labels.iter().find(|&&label| label >= rows) {
            Some(label) => input("label", label.to_string(), format!("below {rows}")),
            None => Ok(()),
        }
    }
}

/// Name and shape of every parameter of a network, in the order of a checkpoint, without the cost of making any.
///
/// ```
/// use deepflow_model::{parameter_shapes, NetworkConfig};
///
/// let numbers = |shape: &Vec<usize>| shape.iter().product::<usize>();
/// let base = parameter_shapes(&NetworkConfig::default())?;
/// assert_eq!(base.iter().map(|(_, shape)| numbers(shape)).sum::<usize>(), 166_201_392);
/// # Ok::<(), deepflow_model::ModelError>(())
/// ```
///
/// # Errors
/// [`ModelError::Config`] when a rule of the configuration is broken.
pub fn parameter_shapes(config: &NetworkConfig) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
    let named = |parameter: Parameter<f32, Cpu>| (parameter.name().to_owned(), parameter.shape().to_vec());
    Ok(outline(config)?.into_iter().map(named).collect())
}

/// The parameters of a network without their values.
pub(crate) fn outline(config: &NetworkConfig) -> Result<Vec<Parameter<f32, Cpu>>, ModelError> {
    config.validate()?;
    let device = Cpu::default();
    let parts = Parts::<f32, Cpu>::new(config, &Builder::outline(&device)).map_err(ModelError::device)?;
    let mut parameters = Vec::new();
    parts.collect(&mut parameters);
    Ok(parameters.into_iter().cloned().collect())
}

fn refuse_wide_heads(config: &NetworkConfig, widest: Option<usize>) -> Result<(), ConfigError> {
    let width = config.width / config.heads;
    match widest {
        Some(widest) if width > widest => Err(ConfigError {
            key: "model.heads",
            found: config.heads.to_string(),
            rule: format!(
                "makes heads of {width} columns from model.width = {}, expected at most {widest} on this device: take \
                 at least {} heads",
                config.width,
                config.width.div_ceil(widest)
            ),
        }),
        _ => Ok(()),
    }
}

fn gaps(from: &[f64], to: &[f64]) -> Vec<f64> {
    from.iter().zip(to).map(|(from, to)| to - from).collect()
}

impl<E: Dtype, D: Operators<E>> Parts<E, D> {
    fn new(config: &NetworkConfig, root: &Builder<'_, E, D>) -> Result<Self, D::Err> {
        let has_inner = config.branches() > 1;
        let vera = config.vera;
        let width = config.width;
        let inner = root.trained(has_inner);
        // A network without branches carries the reference's unused parts, so that its checkpoints fit there.
        let has_gap = vera.time_gap || !has_inner;
        let has_acceleration = vera.acceleration || !has_inner;
        Ok(Self {
            pos_embed: root.trained(false).parameter(
                "pos_embed",
                &[1, config.tokens(), width],
                Initial::Positions(config.grid()),
            )?,
            x_embedder: PatchEmbedder::new(&root.at("x_embedder"), config)?,
            t_embedder: TimeEmbedder::new(&root.at("t_embedder"), width)?,
            dt_embedder: has_gap
                .then(|| TimeEmbedder::new(&inner.at("dt_embedder"), 2 * width))
                .transpose()?,
            y_embedder: LabelEmbedder::new(&root.at("y_embedder"), config)?,
            blocks: (0..config.depth)
                .map(|index| Block::new(&root.at(format!("blocks.{index}")), config))
                .collect::<Result<_, _>>()?,
            df_blocks: (0..config.branch_ends.len())
                .map(|k| Vera::new(&root.at(format!("df_blocks.{k}")), config))
                .collect::<Result<_, _>>()?,
            final_layer: vec![
                Head::new(&inner.at("final_layer.0"), config)?,
                Head::new(&root.at("final_layer.1"), config)?,
            ],
            final_acc_layer: has_acceleration
                .then(|| Head::new(&inner.at("final_acc_layer"), config))
                .transpose()?,
            projectors: (0..config.branch_ends.len())
                .filter_map(|k| config.alignment_width.map(|outputs| (k, outputs)))
                .map(|(k, outputs)| {
                    let at = root.at(format!("projectors.{k}"));
                    Projector::new(&at, width, config.projector_width, outputs)
                })
                .collect::<Result<_, _>>()?,
        })
    }
}
