//! `deepflow inspect summary`: what a network costs, before anything is built.

use std::io::Write;

use clap::Args;
use deepflow_model::{parameter_shapes, sampling_memory, training_memory};
use serde::Serialize;

use crate::cli::Stage;
use crate::config::{Config, ConfigArgs};
use crate::interrupt::Interrupt;
use crate::memory::{of_process, sampled_at_once, training_sizes};

/// Parameters by part, FLOPs per image, and the memory training needs
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow inspect summary --config configs/deepflow-xl-2-3t.toml --batch 32")]
pub struct SummaryArgs {
    /// Samples computed at once, for the memory [default: train.batch / train.accumulation]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// What a network costs.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Number of parameters by the first part of their names, in the order of a checkpoint.
    pub parts: Vec<(String, usize)>,
    /// Number of all parameters, `pos_embed` included.
    pub parameters: usize,
    /// Floating-point operations (a multiplication and an addition are two) of one evaluation at inference, per image.
    pub flops_forward: f64,
    /// Floating-point operations of a training step per image: all heads, forward and backward.
    pub flops_training: f64,
    /// Samples computed at once.
    pub batch: usize,
    /// Whether blocks are computed again in the backward pass (`train.checkpoint_blocks`).
    pub checkpoint_blocks: bool,
    /// Bytes of weights, gradients, both moments and averaged weights.
    pub state_bytes: usize,
    /// Estimated bytes of what a forward pass keeps for the backward pass.
    pub activation_bytes: usize,
    /// Estimated bytes of the whole program in training, at their peak: activations go while gradients come.
    pub training_bytes: usize,
    /// Estimated bytes of the whole program in sampling, by `sample.batch` and `sample.guidance`.
    pub sampling_bytes: usize,
}

impl Stage for SummaryArgs {
    fn run(self, _interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[])?;
        let computed_at_once = config.train.batch / config.train.accumulation;
        let batch = self.batch.map_or(computed_at_once, |batch| batch as usize);
        let summary = Summary::of(&config, batch)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&summary)?)?;
        } else {
            summary.print(&mut out)?;
        }
        Ok(())
    }
}

/// One parameter of the network.
struct Counted {
    part: String,
    name: String,
    shape: Vec<usize>,
}

impl Counted {
    fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    /// Operations of this matrix's products for an image of `tokens`; vectors and tables have none worth counting.
    fn flops(&self, tokens: usize) -> f64 {
        let is_table = self.part == "pos_embed" || self.part == "y_embedder";
        if self.shape.len() < 2 || is_table {
            return 0.0;
        }
        let once = self.name.contains("adaLN_modulation") || self.part == "t_embedder" || self.part == "dt_embedder";
        2.0 * self.numbers() as f64 * if once { 1.0 } else { tokens as f64 }
    }

    /// Whether sampling leaves it out.
    fn only_trains(&self) -> bool {
        self.name.starts_with("final_layer.0") || ["final_acc_layer", "projectors"].contains(&self.part.as_str())
    }
}

impl Summary {
    /// Counts the network of `config`, in training with `batch` samples at once.
    ///
    /// # Errors
    /// When the configuration breaks a rule.
    pub fn of(whole: &Config, batch: usize) -> anyhow::Result<Self> {
        let config = &whole.model;
        let memory = training_memory(config, training_sizes(whole, batch))?;
        let counted: Vec<Counted> = parameter_shapes(config)?
            .into_iter()
            .map(|(name, shape)| Counted {
                part: name.split('.').next().unwrap_or_default().to_owned(),
                name,
                shape,
            })
            .collect();
        let mut parts: Vec<(String, usize)> = Vec::new();
        for parameter in &counted {
            match parts.iter_mut().find(|(part, _)| *part == parameter.part) {
                Some((_, numbers)) => *numbers += parameter.numbers(),
                None => parts.push((parameter.part.clone(), parameter.numbers())),
            }
        }
        let parameters = parts.iter().map(|(_, numbers)| numbers).sum();
        let (tokens, inner) = (config.tokens(), config.branches() - 1);
        let attentions = config.depth + if config.vera.cross_attention { inner } else { 0 };
        let attention = [attentions, tokens, tokens, config.width].map(|factor| factor as f64);
        let attention = 4.0 * attention.iter().product::<f64>();
        let products = |kept: fn(&Counted) -> bool| {
            counted
                .iter()
                .filter(|parameter| kept(parameter))
                .map(|parameter| parameter.flops(tokens))
                .sum::<f64>()
        };
        // A network without branches holds parts that nothing computes with.
        let in_training = if inner == 0 {
            |c: &Counted| !c.only_trains() && c.part != "dt_embedder"
        } else {
            |_: &Counted| true
        };
        let in_inference = if inner == 0 {
            in_training
        } else {
            |c: &Counted| !c.only_trains()
        };
        Ok(Self {
            parts,
            parameters,
            flops_forward: products(in_inference) + attention,
            flops_training: 3.0 * (products(in_training) + attention),
            batch,
            checkpoint_blocks: whole.train.checkpoint_blocks,
            state_bytes: memory.state + memory.gradients,
            activation_bytes: memory.activations,
            training_bytes: of_process(memory.peak),
            sampling_bytes: of_process(sampling_memory(config, sampled_at_once(whole))?),
        })
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        for (part, numbers) in &self.parts {
            writeln!(out, "{part:<18}{:>16}", grouped(*numbers))?;
        }
        writeln!(out, "{:<18}{:>16}", "parameters", grouped(self.parameters))?;
        writeln!(out)?;
        writeln!(
            out,
            "one evaluation     {:>12.2} GFLOP per image",
            self.flops_forward / 1e9
        )?;
        writeln!(
            out,
            "a training step    {:>12.2} GFLOP per image",
            self.flops_training / 1e9
        )?;
        writeln!(out)?;
        let gigabytes = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        let at_batch = |what: &str| format!("{what} at batch {}", self.batch);
        let activations = if self.checkpoint_blocks {
            "block inputs kept"
        } else {
            "activations"
        };
        for (what, bytes) in [
            ("weights, gradients, moments, average".to_owned(), self.state_bytes),
            (at_batch(activations), self.activation_bytes),
            (at_batch("training"), self.training_bytes),
            ("sampling by [sample]".to_owned(), self.sampling_bytes),
        ] {
            writeln!(out, "{what:<38}{:>9.2} GiB", gigabytes(bytes))?;
        }
        Ok(())
    }
}

/// `681,559,344`
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let group = |(index, digit): (usize, char)| {
        let comma = index > 0 && (digits.len() - index).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use deepflow_model::NetworkConfig;

    use super::*;

    fn summary(model: NetworkConfig, batch: usize) -> Summary {
        let config = Config {
            model,
            ..Config::default()
        };
        Summary::of(&config, batch).unwrap()
    }

    #[test]
    fn published_networks_have_their_published_size() {
        // Network spec §6.
        let base = NetworkConfig::default();
        assert_eq!(summary(base.clone(), 1).parameters, 166_201_392);
        let extra_large = NetworkConfig {
            width: 1152,
            depth: 24,
            heads: 16,
            branch_ends: vec![8, 16],
            ..base
        };
        assert_eq!(summary(extra_large, 1).parameters, 681_559_344);
    }

    #[test]
    fn a_transformer_costs_what_is_known_of_it() {
        // DiT-XL/2 at 256 px: 118.64 Gflops by its paper, which counts a multiplication and an addition as one.
        let sit = NetworkConfig {
            width: 1152,
            depth: 28,
            heads: 16,
            branch_ends: vec![],
            ..NetworkConfig::default()
        };
        let summary = summary(sit, 1);
        assert!(
            (summary.flops_forward / 2e9 - 118.64).abs() < 1.5,
            "{}",
            summary.flops_forward / 2e9
        );
        assert!(summary.flops_training >= 3.0 * summary.flops_forward);
    }

    /// How the estimates relate; that they are right is tested beside `training_memory`, against what is allocated.
    #[test]
    fn memory_follows_batch_and_settings() {
        let of = |batch, change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            Summary::of(&config, batch).unwrap()
        };
        let [one, four] = [1, 4].map(|batch| of(batch, &|_| {}));
        assert_eq!(one.state_bytes, four.state_bytes);
        // Weights, both moments and the average of all parameters, gradients of those that are trained.
        assert_eq!(one.state_bytes, 20 * one.parameters - 4 * 256 * 768);
        assert_eq!(4 * one.activation_bytes, four.activation_bytes);
        assert!(four.training_bytes < of_process(four.state_bytes + four.activation_bytes));
        let checkpointed = of(4, &|config| config.train.checkpoint_blocks = true);
        assert!(checkpointed.activation_bytes < four.activation_bytes / 2);
        let accumulated = of(4, &|config| config.train.accumulation = 2);
        assert!(accumulated.training_bytes > four.training_bytes);
        let guided = of(4, &|config| config.sample.guidance = 2.0);
        assert!(guided.sampling_bytes > of(4, &|config| config.sample.guidance = 1.0).sampling_bytes);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            ["0", "12", "1,234", "681,559,344"],
            [0, 12, 1234, 681_559_344].map(grouped).each_ref().map(String::as_str)
        );
    }
}
