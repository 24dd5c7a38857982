//! The way from data to noise (network spec §1).

use std::f64::consts::FRAC_PI_2;

/// `x_t = alpha(t)·data + sigma(t)·noise`, t running from data (0) to noise (1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// `(1-t)·data + t·noise`; the velocity is `noise - data` at every time.
    #[default]
    Linear,
    /// `cos(πt/2)·data + sin(πt/2)·noise`.
    Cosine,
}

impl Path {
    /// Weights of data and noise in `x_t`.
    pub fn position(self, t: f64) -> (f64, f64) {
        match self {
            Self::Linear => (1.0 - t, t),
            Self::Cosine => ((FRAC_PI_2 * t).cos(), (FRAC_PI_2 * t).sin()),
        }
    }

    /// Weights of data and noise in `d x_t / dt`, the velocity.
    pub fn velocity(self, t: f64) -> (f64, f64) {
        match self {
            Self::Linear => (-1.0, 1.0),
            Self::Cosine => (-FRAC_PI_2 * (FRAC_PI_2 * t).sin(), FRAC_PI_2 * (FRAC_PI_2 * t).cos()),
        }
    }
}
