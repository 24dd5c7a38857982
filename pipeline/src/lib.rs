//! DeepFlow from pictures to pictures: encode, train, sample, decode, evaluate.
//!
//! This crate holds the stages as functions, their configuration and their command line; the binaries
//! `deepflow-encode`, `deepflow-train`, `deepflow-sample`, `deepflow-decode`, `deepflow-evaluate` and `deepflow` (all
//! of them as subcommands, and `demo`, `bench`, `inspect`) are a few lines each. Stages only talk to each other
//! through files.
//!
//! ```
//! use deepflow::config::ConfigArgs;
//!
//! let args = ConfigArgs { config: None, settings: vec!["train.stesp=10".to_owned()] };
//! let error = args.load(&[]).unwrap_err();
//! assert_eq!(error.to_string(), "--set: unknown key `train.stesp`; did you mean `train.steps`?");
//! ```

pub mod bench;
pub mod cli;
pub mod codecs;
pub mod config;
pub mod decode;
pub mod demo;
pub mod device;
pub mod encode;
pub mod evaluate;
pub mod files;
pub mod inspect;
pub mod interrupt;
pub mod latent;
pub mod memory;
pub mod metrics;
pub mod progress;
pub mod rank;
pub mod sample;
pub mod share;
pub mod time_split;
pub mod train;
mod umbrella;
