//! Training: from a batch of latents to one update of the weights (network spec §4 and §6).
//!
//! [`TrainingInputs`] draws what is random about a batch, [`batch_losses`] computes the three losses, and [`Trainer`]
//! turns their gradients into an update of weights and moving average.

mod inputs;
mod losses;
mod path;
mod settings;
mod state;
mod trainer;

pub use inputs::{Batch, SamplePlace, TrainingInputs};
pub use losses::{batch_losses, LossTerms, LossValues};
pub use path::Path;
pub use settings::{LossSettings, OptimizerSettings, StepRates, TimeDistribution};
pub use state::OptimizerState;
pub use trainer::{StepOutcome, StepReport, StepTimes, Trainer};
