//! `deepflow-evaluate`: how good are generated pictures, measured against real ones?
//!
//! With Inception-v3's weights at hand: FID, sFID, Inception Score, precision, recall and KID of pictures. Without them:
//! [`classifier`] measures latents with features that the user's own data teaches.

pub mod classifier;
mod content_hash;
mod feature_set;
mod inception_stage;
pub mod metrics;
pub mod npz;
mod pictures;
mod report;
mod statistics_file;

pub use feature_set::FeatureSet;
pub use inception_stage::InceptionEvaluation;
pub use pictures::PictureSet;
pub use report::{Report, SetReport};

use crate::cli::{Stage, UsageError};
use crate::device::ThreadArgs;
use crate::interrupt::Interrupt;
use clap::{Args, Subcommand, ValueEnum};
use deepflow_model::inception::ResizeMode;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;

/// Measure how good generated pictures are
///
/// With --weights: FID, sFID, Inception Score, precision, recall and KID as ADM's evaluator defines them. With
/// --features classifier: the same Fréchet distance on features of a classifier that `fit-features` trained on your own
/// latents, named FD-classifier, beside the distance between two halves of the real data.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  deepflow evaluate pictures/samples.npz --reference VIRTUAL_imagenet256_labeled.npz --weights \
                        pt_inception-2015-12-05-6726825d.pth\n  \
                        deepflow evaluate generated --reference latents --features classifier --weights judge.safetensors"
)]
pub struct EvaluateArgs {
    #[command(subcommand)]
    command: Option<EvaluateCommand>,
    /// Generated set: a folder of pictures, tars or latent shards, a .tar, or a .npz with arr_0
    #[arg(required = true)]
    generated: Option<PathBuf>,
    /// Real set of the same kind, or a .npz with ADM's statistics (mu, sigma, mu_s, sigma_s)
    #[arg(short, long, required = true)]
    reference: Option<PathBuf>,
    /// What looks at the pictures
    #[arg(long, value_enum, default_value = "inception")]
    features: FeatureKind,
    /// Weights: Inception-v3's (the public pt_inception-2015-12-05-6726825d.pth or safetensors with its names), or the
    /// file that `fit-features` wrote
    #[arg(short, long, required = true)]
    weights: Option<PathBuf>,
    /// Weights of the codec, for latent shards that do not have them beside their index
    #[arg(long, value_name = "PATH")]
    codec: Option<PathBuf>,
    /// How pictures are brought to 299x299: tf1 as ADM and torch-fidelity, half-pixel as pytorch-fid
    #[arg(long, value_enum, default_value = "tf1")]
    resize: ResizeArg,
    /// Keep statistics of reference sets in this folder
    #[arg(long, default_value_os_t = default_cache(), conflicts_with = "no_cache")]
    cache: PathBuf,
    /// Compute the reference's statistics anew and keep nothing
    #[arg(long)]
    no_cache: bool,
    /// Write the reference's statistics to this .npz, which ADM's evaluator reads as well
    #[arg(long, value_name = "FILE")]
    save_statistics: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: ThreadArgs,
}

#[derive(Subcommand, Debug)]
enum EvaluateCommand {
    FitFeatures(classifier::FitArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FeatureKind {
    /// Inception-v3 with the FID weights
    Inception,
    /// A classifier of latents, made by fit-features
    Classifier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ResizeArg {
    Tf1,
    HalfPixel,
}

fn default_cache() -> PathBuf {
    let base = deepflow_datasets::cache_folder().unwrap_or_else(|| std::env::temp_dir().join("deepflow"));
    base.join("statistics")
}

impl Stage for EvaluateArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        if let Some(EvaluateCommand::FitFeatures(args)) = self.command {
            return args.run(interrupt);
        }
        self.threads.start()?;
        let (Some(generated), Some(reference), Some(weights)) = (self.generated, self.reference, self.weights) else {
            return Err(UsageError("expected a generated set, --reference and --weights".to_owned()).into());
        };
        let cache = (!self.no_cache).then_some(self.cache.as_path());
        match self.features {
            FeatureKind::Inception => {
                let evaluation = InceptionEvaluation {
                    generated: &generated,
                    reference: &reference,
                    weights: &weights,
                    codec_weights: self.codec.as_deref(),
                    resize: match self.resize {
                        ResizeArg::Tf1 => ResizeMode::Tf1,
                        ResizeArg::HalfPixel => ResizeMode::HalfPixel,
                    },
                    cache,
                    save_statistics: self.save_statistics.as_deref(),
                };
                print(&evaluation.run(interrupt)?, self.json)
            }
            FeatureKind::Classifier => print(
                &classifier::evaluate(&generated, &reference, &weights, cache, interrupt)?,
                self.json,
            ),
        }
    }
}

/// Results go to stdout.
fn print(report: &(impl Display + serde::Serialize), json: bool) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(report)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    Ok(())
}
