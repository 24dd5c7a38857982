//! The network against the golden numbers: every `deepflow_*` and `sit_*` case of DEEPFLOW_GOLDEN_DIR, or of the
//! project's own fixtures.
#![allow(clippy::unwrap_used)]
#![cfg_attr(feature = "cuda", allow(clippy::print_stderr))]

#[cfg(feature = "cuda")]
mod autoencoder;
mod case;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
#[path = "../cuda/emulation.rs"]
#[allow(dead_code)] // the planted faults are the other test's
mod emulation;
mod forward;
mod sampling;
mod training;
