//! Weights of another run as the start of this one, where the two may differ in classes and in resolution.

use std::path::Path;

use anyhow::Context;
use deepflow_model::ops::Operators;
use deepflow_model::Network;
use safetensors::SafeTensors;

/// Loads `file` into a freshly made `network` and says which tables had to be made anew.
///
/// # Errors
/// The first tensor that does not fit, with both shapes.
pub fn load<D: Operators<f32>>(network: &mut Network<f32, D>, file: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| file.display().to_string())?;
    let report = network
        .start_from(&tensors)
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
