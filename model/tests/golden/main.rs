//! The network against the golden numbers: every `deepflow_*` and `sit_*` case of DEEPFLOW_GOLDEN_DIR, or of the
//! project's own fixtures.
#![allow(clippy::unwrap_used)]

mod case;
mod forward;
mod sampling;
mod training;
