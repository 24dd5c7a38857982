//! `deepflow-evaluate`: how good are generated pictures, measured against real ones?

pub mod metrics;
