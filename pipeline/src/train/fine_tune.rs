//! Another run as the start of this one: its weights, where the two may differ in classes and in resolution, or all of it.

use std::path::Path;

use anyhow::Context;
use deepflow_model::convert::SafetensorsFile;
use deepflow_model::ops::Operators;
use deepflow_model::training::Trainer;
use deepflow_model::Network;

use crate::cli::UsageError;

/// Goes on after the last step of the checkpoint in `folder`, whatever run or program it is from.
///
/// # Errors
/// [`UsageError`] when the run was to end before that step; else the first file or tensor that does not fit.
pub fn take_over<D: Operators<f32>>(trainer: &mut Trainer<f32, D>, folder: &Path, steps: u64) -> anyhow::Result<()> {
    trainer.take_over(folder)?;
    let done = trainer.step_count();
    if done >= steps {
        let folder = folder.display();
        return Err(UsageError(format!(
            "train.steps = {steps}: {folder} has {done} steps, expected more than it"
        ))
        .into());
    }
    tracing::info!("continuing after step {done} of {}", folder.display());
    Ok(())
}

/// Loads `file` into a freshly made `network` and says which tables had to be made anew.
///
/// # Errors
/// The first tensor that does not fit, with both shapes.
pub fn load<D: Operators<f32>>(network: &mut Network<f32, D>, file: &Path) -> anyhow::Result<()> {
    let report = network
        .start_from(&SafetensorsFile::open(file)?)
        .with_context(|| file.display().to_string())?;
    let config = network.config();
    if let Some(rows) = report.class_table_remade_from {
        tracing::warn!(
            "its class table has {rows} rows, this model {}: made anew",
            config.class_rows()
        );
    }
    if let Some(tokens) = report.positions_recomputed_from {
        tracing::warn!(
            "its position table has {tokens} tokens, this model {}: computed anew",
            config.tokens()
        );
    }
    if report.loaded.kept.iter().any(|name| name.starts_with("projectors.")) {
        tracing::warn!("it has no projectors, this model aligns: made anew");
    }
    Ok(())
}
