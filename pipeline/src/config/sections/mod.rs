//! The sections of the configuration, each with its defaults and its rules.

mod codec;
mod data;
mod loss;
mod output;
mod sample;
mod train;

use super::{Config, Violation};

pub use codec::{CodecConfig, CodecKind};
pub use data::{DataConfig, LastBatch, OnError, Shuffle};
pub use loss::{LossConfig, Path, TrainingTimes};
pub use output::{OutputConfig, OutputFormat};
pub use sample::{SampleConfig, Sampler};
pub use train::{Precision, Schedule, StartWith, TrainConfig};

impl Config {
    /// The rules every value keeps, and those between sections.
    ///
    /// # Errors
    /// The first key that breaks a rule.
    pub fn check(&self) -> Result<(), Violation> {
        self.model
            .validate()
            .map_err(|error| Violation::new(error.key, format!("is {}: {}", error.found, error.rule)))?;
        self.data.check()?;
        self.train.check()?;
        self.loss.check(&self.model)?;
        self.sample.check(&self.model)?;
        self.codec.check()?;
        self.output.check()
    }
}

fn at_least_one(key: &str, value: usize) -> Result<(), Violation> {
    if value == 0 {
        return Err(Violation::new(key, "is 0, expected at least 1"));
    }
    Ok(())
}

/// `low <= value < high`, which no NaN does.
fn in_range(key: &str, value: f64, low: f64, high: f64) -> Result<(), Violation> {
    if value >= low && value < high {
        return Ok(());
    }
    let rule = if high.is_infinite() {
        format!("is {value}, expected a finite number of at least {low}")
    } else {
        format!("is {value}, expected at least {low} and below {high}")
    };
    Err(Violation::new(key, rule))
}
