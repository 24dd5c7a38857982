//! `deepflow-sample`: from a checkpoint to shards of generated latents.

mod classes;
mod settings;
mod source;
mod stage;

pub use classes::ClassChoice;
pub use settings::sampler_settings;
pub use source::Source;
pub use stage::{SampleArgs, GENERATOR};
