//! `deepflow inspect forward`: one forward pass from file to file, to compare networks with.

use std::path::PathBuf;

use anyhow::{bail, Context};
use clap::Args;
use deepflow_model::checkpoint;
use deepflow_model::ops::{Matrix, Operators};
use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::{Network, NetworkConfig, Outputs};
use dfdx::tensor::NoneTape;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::tensors;
use crate::cli::Stage;
use crate::config::ConfigArgs;
use crate::device::DeviceArgs;
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::on_device;
use crate::rank::Rank;

/// Run the network once, from file to file
///
/// Reads latents `x` (B,C,S,S), labels `y` (B) and a time for each branch `t0`, `t1`, … (B); writes the velocity of each
/// branch `v0`, …, the accelerations `a0`, … (B,C,S,S), and the projections `z0`, … (B,T,Z) where there are projectors.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  deepflow inspect forward --config configs/laptop.toml --weights model.safetensors \
                        --input in.safetensors --output out.safetensors"
)]
pub struct ForwardArgs {
    /// Weights of the network
    #[arg(long, value_name = "FILE.safetensors")]
    weights: PathBuf,
    /// Inputs
    #[arg(long, value_name = "FILE.safetensors")]
    input: PathBuf,
    /// Where the outputs go
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A tensor to write.
struct Named {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

struct Inputs {
    latents: Vec<f32>,
    times: Vec<Vec<f64>>,
    labels: Vec<usize>,
}

impl Stage for ForwardArgs {
    fn run(self, _interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[])?.model;
        let bytes = tensors::read(&self.input)?;
        let inputs = Inputs::read(&bytes, &config).with_context(|| self.input.display().to_string())?;
        let outputs = on_device!(self.device.open(Rank::ALONE)?, device => {
            let network = checkpoint::load_network(&self.weights, config.clone(), device)?;
            named(&forward(&network, &inputs)?, &config, inputs.labels.len())
        });
        let views = outputs.iter().map(|tensor| {
            TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.bytes).map(|view| (&tensor.name, view))
        });
        let views = views.collect::<Result<Vec<_>, _>>()?;
        write_atomically(&self.output, &safetensors::serialize(views, None)?)
    }
}

fn forward<D: Operators<f32>>(network: &Network<f32, D>, inputs: &Inputs) -> anyhow::Result<Outputs<f32, D>> {
    let config = network.config();
    let patches = PatchGrid::from(config).patchify(&inputs.latents, PatchOrder::ChannelFirst);
    let rows = inputs.labels.len() * config.tokens();
    let patches = network.device().tensor_from_vec(patches, (rows, config.patch_values()));
    Ok(network.forward(&mut NoneTape, &patches, &inputs.times, &inputs.labels)?)
}

impl Inputs {
    fn read(bytes: &[u8], config: &NetworkConfig) -> anyhow::Result<Self> {
        let file = SafeTensors::deserialize(bytes)?;
        let (_, labels) = tensors::numbers(&file, "y")?;
        let (batch, side) = (labels.len(), config.latent_size);
        let (shape, latents) = tensors::numbers(&file, "x")?;
        let expected = [batch, config.latent_channels, side, side];
        if shape != expected {
            bail!("tensor x has shape {shape:?}, expected {expected:?} by the labels and the configuration");
        }
        let times = (0..config.branches()).map(|branch| tensors::numbers(&file, &format!("t{branch}")));
        let times = times.map(|time| time.map(|(_, time)| time)).collect::<Result<_, _>>()?;
        Ok(Self {
            latents: latents.into_iter().map(|value| value as f32).collect(),
            times,
            labels: labels.into_iter().map(label).collect::<Result<_, _>>()?,
        })
    }
}

/// A label from a file that may hold any number.
fn label(number: f64) -> anyhow::Result<usize> {
    let label = number as usize;
    if label as f64 != number {
        bail!("tensor y holds the label {number}, expected whole numbers of at least 0");
    }
    Ok(label)
}

fn named<D: Operators<f32>>(outputs: &Outputs<f32, D>, config: &NetworkConfig, batch: usize) -> Vec<Named> {
    let side = config.latent_size;
    let picture = |patches: &Matrix<f32, D>| {
        let latents = PatchGrid::from(config).unpatchify(&patches.as_vec(), PatchOrder::ChannelLast);
        (vec![batch, config.latent_channels, side, side], latents)
    };
    let features = |projection: &Matrix<f32, D>| {
        let values = projection.as_vec();
        (
            vec![batch, config.tokens(), values.len() / (batch * config.tokens())],
            values,
        )
    };
    let velocities = outputs
        .velocities
        .iter()
        .map(picture)
        .enumerate()
        .map(|(k, tensor)| (format!("v{k}"), tensor));
    let accelerations = outputs
        .accelerations
        .iter()
        .map(picture)
        .enumerate()
        .map(|(k, tensor)| (format!("a{k}"), tensor));
    let projections = outputs
        .projections
        .iter()
        .map(features)
        .enumerate()
        .map(|(k, tensor)| (format!("z{k}"), tensor));
    let tensor = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| Named {
        name,
        shape,
        bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
    };
    velocities.chain(accelerations).chain(projections).map(tensor).collect()
}
