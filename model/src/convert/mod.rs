//! Exchanges weights with the authors' PyTorch code and with the public SiT and DiT checkpoints.
//!
//! [`convert`] reads a torch file (or safetensors) and writes safetensors with the reference names (network spec §2) and
//! metadata, or the other way round: what the output is called decides.
//!
//! | from | to `.safetensors` | to a folder | to `.pt` / `.pth` / `.ckpt` |
//! |---|---|---|---|
//! | torch file of the authors' trainer | one set of weights (EMA by default) | a checkpoint: both sets, and the optimiser's state | |
//! | torch or safetensors file of SiT or DiT | the same network as one branch of ours | a checkpoint without optimiser | |
//! | our safetensors file | the same weights | a checkpoint without optimiser | a torch file of the authors' form |
//! | a checkpoint folder of ours | one set of its weights | | a torch file of the authors' form, optimiser included |
//!
//! SiT and DiT checkpoints have the same tensors. A SiT predicts a velocity, so its convention of time is folded into the
//! weights and every sampler here works on it. A DiT predicts the noise of a discrete diffusion process: no change of its
//! weights makes a velocity of that, so it is taken as it is, as a start for fine-tuning, and the report says so.

mod architecture;
mod error;
mod export;
pub(crate) mod import;
mod names;
mod optimizer;
pub(crate) mod safetensors_file;
mod sit;
mod weights;

pub use error::ConvertError;
pub use safetensors_file::SafetensorsFile;
pub use weights::Weights;

use crate::NetworkConfig;
use std::fmt;
use std::path::{Path, PathBuf};

/// Which of a training checkpoint's two sets of weights a single file receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightSet {
    /// The exponential moving average, which samples are drawn from.
    #[default]
    Ema,
    /// The weights that were being trained.
    Model,
}

/// What a checkpoint with a single `final_layer` was trained as; the files of both look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SingleHead {
    /// SiT: a velocity, with time running from noise to data. Both are folded into the weights (network spec §1).
    #[default]
    Sit,
    /// DiT: the noise at one of 1000 discrete times. The weights are kept as they are, a start for fine-tuning only.
    Dit,
}

/// What the weights alone do not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Which weights of a training checkpoint a single file receives.
    pub weights: WeightSet,
    /// How to read a checkpoint with a single `final_layer`.
    pub single_head: SingleHead,
    /// Attention heads; by default what the published networks of this width have.
    pub heads: Option<usize>,
    /// Ends of the inner branches; by default the checkpoint's own arguments, then equal parts.
    pub branch_ends: Option<Vec<usize>>,
    /// Whether the scale of the time-gap modulation is clamped; by default what the checkpoint's arguments say.
    pub legacy_scaling: Option<bool>,
}

/// What a conversion did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Kind of the input, in words.
    pub source: String,
    /// Every file that was written.
    pub written: Vec<PathBuf>,
    /// Tensors in each set of weights.
    pub tensors: usize,
    /// Numbers in each set of weights.
    pub parameters: usize,
    /// Optimiser steps the weights have seen, where the input says.
    pub step: Option<u64>,
    /// The network, as far as the input tells; `heads` is 0 where it does not.
    pub config: NetworkConfig,
    /// What was changed or assumed on the way.
    pub notes: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NetworkConfig {
            width,
            depth,
            branch_ends,
            ..
        } = &self.config;
        writeln!(
            f,
            "{}: {} tensors, {} parameters (width {width}, depth {depth}, branch ends {branch_ends:?})",
            self.source, self.tensors, self.parameters
        )?;
        if let Some(step) = self.step {
            writeln!(f, "step {step}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for path in &self.written {
            writeln!(f, "wrote {}", path.display())?;
        }
        Ok(())
    }
}

/// Converts `input` to `output` (see the table of this module).
///
/// # Errors
/// One line that names the file and, where one is to blame, the tensor: unreadable or hostile torch files, tensors whose
/// names or shapes are not those of a DeepFlow, SiT or DiT network, options that do not fit, a full disk.
pub fn convert(input: impl AsRef<Path>, output: impl AsRef<Path>, options: &Options) -> Result<Report, ConvertError> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let extension = |path: &Path| path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match extension(output).as_deref() {
        Some("safetensors") => import::to_single_file(input, output, options),
        Some("pt" | "pth" | "ckpt") => export::to_torch(input, output, options),
        None => import::to_folder(input, output, options),
        Some(other) => Err(ConvertError::Output {
            path: output.to_owned(),
            found: other.to_owned(),
        }),
    }
}
