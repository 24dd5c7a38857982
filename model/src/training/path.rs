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

    /// The score, the gradient of the log-density of `x_t`, at a value `x` whose velocity is `v`: minus the noise that
    /// `x` and `v` tell, over its weight. `t` lies above 0.
    pub fn score(self, x: f64, v: f64, t: f64) -> f64 {
        match self {
            Self::Linear => -((1.0 - t) * v + x) / t,
            Self::Cosine => {
                let (sin, cos) = (FRAC_PI_2 * t).sin_cos();
                -(cos * v / FRAC_PI_2 + sin * x) / sin
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_the_noise_over_its_weight() {
        let (data, noise) = (0.7, -1.3);
        for path in [Path::Linear, Path::Cosine] {
            for t in [0.04, 0.3, 0.5, 0.96, 1.0] {
                let mix = |(of_data, of_noise): (f64, f64)| of_data * data + of_noise * noise;
                let score = path.score(mix(path.position(t)), mix(path.velocity(t)), t);
                let expected = -noise / path.position(t).1;
                assert!(
                    (score - expected).abs() < 1e-9,
                    "{path:?} at {t}: {score}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn the_velocity_is_the_derivative_of_the_position() {
        for path in [Path::Linear, Path::Cosine] {
            for t in [0.1, 0.5, 0.9] {
                let (before, after) = (path.position(t - 1e-6), path.position(t + 1e-6));
                let velocity = path.velocity(t);
                assert!(((after.0 - before.0) / 2e-6 - velocity.0).abs() < 1e-8);
                assert!(((after.1 - before.1) / 2e-6 - velocity.1).abs() < 1e-8);
            }
        }
    }
}
