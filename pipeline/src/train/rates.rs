//! Learning rate and averaging decay of each step.

use deepflow_model::training::StepRates;

use crate::config::{Schedule, TrainConfig};

/// The rates of step `step`, counted from 1.
///
/// The learning rate rises linearly over the warm-up; then it stays, or falls along half a cosine to its final value at
/// the last step.
#[must_use]
pub fn rates(config: &TrainConfig, step: u64) -> StepRates {
    StepRates {
        learning_rate: learning_rate(config, step),
        ema_decay: ema_decay(config, step),
    }
}

fn learning_rate(config: &TrainConfig, step: u64) -> f64 {
    let peak = config.learning_rate;
    if step <= config.warmup_steps {
        return peak * step as f64 / config.warmup_steps as f64;
    }
    match config.schedule {
        Schedule::Constant => peak,
        Schedule::Cosine => {
            let (done, all) = (
                step - config.warmup_steps,
                config.steps.saturating_sub(config.warmup_steps).max(1),
            );
            let progress = (done as f64 / all as f64).min(1.0);
            let share = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
            config.final_learning_rate + (peak - config.final_learning_rate) * share
        }
    }
}

fn ema_decay(config: &TrainConfig, step: u64) -> f64 {
    if config.ema_warmup {
        config.ema_decay.min((1.0 + step as f64) / (10.0 + step as f64))
    } else {
        config.ema_decay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(schedule: Schedule) -> TrainConfig {
        TrainConfig {
            steps: 110,
            warmup_steps: 10,
            learning_rate: 1.0,
            final_learning_rate: 0.1,
            schedule,
            ..TrainConfig::default()
        }
    }

    #[test]
    fn the_rate_rises_and_stays() {
        let config = config(Schedule::Constant);
        assert_eq!(
            [1, 5, 10, 11, 500].map(|step| rates(&config, step).learning_rate),
            [0.1, 0.5, 1.0, 1.0, 1.0]
        );
    }

    #[test]
    fn the_rate_falls_along_a_cosine() {
        let config = config(Schedule::Cosine);
        let at = |step| rates(&config, step).learning_rate;
        assert_eq!((at(10), at(110), at(200)), (1.0, 0.1, 0.1));
        assert!((at(60) - 0.55).abs() < 1e-12);
    }

    #[test]
    fn the_average_follows_faster_at_first_where_asked() {
        let mut config = config(Schedule::Constant);
        assert_eq!(rates(&config, 1).ema_decay, 0.9999);
        config.ema_warmup = true;
        assert_eq!(rates(&config, 1).ema_decay, 2.0 / 11.0);
        assert_eq!(rates(&config, 1_000_000).ema_decay, 0.9999);
    }
}
