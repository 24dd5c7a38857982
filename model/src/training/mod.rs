//! Training: from a batch of latents to one update of the weights (network spec §4 and §6).
//!
//! [`TrainingInputs`] draws what is random about a batch, [`batch_losses`] computes the three losses, and [`Trainer`]
//! turns their gradients into an update of weights and moving average. What drives a run sees a [`Training`].

#[cfg(feature = "cuda")]
mod cuda_trainer;
#[cfg(feature = "cuda")]
mod device_batch;
mod gradients;
mod inputs;
mod losses;
mod path;
mod run;
mod settings;
mod state;
mod trainer;

#[cfg(feature = "cuda")]
pub use cuda_trainer::CudaTrainer;
pub use inputs::{Batch, SamplePlace, TrainingInputs};
pub use losses::{batch_losses, LossTerms, LossValues};
pub use path::Path;
pub use run::{Progress, Training};
pub use settings::{LossSettings, OptimizerSettings, StepRates, TimeDistribution};
pub use state::{LossScale, OptimizerState};
pub use trainer::{StepOutcome, StepReport, StepTimes, Trainer};
