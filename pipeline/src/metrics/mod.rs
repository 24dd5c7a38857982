//! What a run measures, a line a logging step, in two forms: `metrics.jsonl` and TensorBoard event files.

mod log;
mod tensorboard;

pub use log::MetricsLog;
pub use tensorboard::EventFile;
