//! Training as a whole: splitting, resuming, skipping, checkpoints, initial state, gradients by finite differences.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod finite_differences;
mod initial_state;
mod steps;
mod support;
