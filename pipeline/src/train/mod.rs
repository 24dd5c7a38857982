//! `deepflow-train`: streams latents through the network and keeps a run directory.

mod data;
mod fine_tune;
mod preview;
mod rates;
mod report;
mod run_directory;
mod session;
mod settings;
mod stage;
mod trainer;

pub use data::{loader_config, open_options, shift_factor, DataRecord};
pub use rates::rates;
pub use report::{LossMetrics, Metrics, Place, TimeMetrics, Window};
pub use run_directory::{checkpoints, find_checkpoint, RunDirectory};
pub use settings::{loss_settings, optimizer_settings};
pub use stage::{train, TrainArgs};
pub use trainer::{host_trainer, on_device};
