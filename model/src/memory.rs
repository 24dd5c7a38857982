//! How much memory a network needs in training and in sampling, counted from its configuration before any of it is made.
//!
//! A backward pass frees what the forward pass kept and makes the gradients of the parameters, part by part and from the
//! last part to the first. The peak is the part at which what is left, what is made so far and what the part itself works on
//! add up to most. What is kept of each operator is that of the CPU's operators (`ops::fused`).

use crate::config::{NetworkConfig, FOURIER_FEATURES};
use crate::error::ModelError;
use crate::network::outline;
use crate::ops::ROWS_TOGETHER;

/// Bytes of a value.
const VALUE: u128 = 4;

/// How a network is trained, as far as memory depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingSizes {
    /// Samples computed at once.
    pub samples: usize,
    /// Whether a step is computed in several parts, whose gradients are added up.
    pub accumulates: bool,
    /// Whether blocks are computed again in the backward pass ([`Network::set_checkpoint_blocks`](crate::Network::set_checkpoint_blocks)).
    pub checkpoint_blocks: bool,
}

/// Bytes that training needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingMemory {
    /// Weights, both moments and averaged weights.
    pub state: usize,
    /// The gradient of every parameter.
    pub gradients: usize,
    /// What a forward pass keeps for the backward pass.
    pub activations: usize,
    /// The most there is at any time; less than the sum, because activations go while gradients come.
    pub peak: usize,
}

/// A part of the network that the backward pass goes through as a whole.
#[derive(Clone, Copy, Default)]
struct Part {
    /// Values the forward pass keeps, for every token and for every sample.
    kept_per_token: usize,
    kept_per_sample: usize,
    /// Values that only the backward pass of this part has, for every token.
    working_per_token: usize,
    /// Values of the gradients that are made here.
    gradients: usize,
}

impl Part {
    fn kept(&self, sizes: TrainingSizes, tokens: usize) -> u128 {
        let per_sample = product([tokens, self.kept_per_token]) + self.kept_per_sample as u128;
        sizes.samples as u128 * per_sample
    }
}

/// Memory of training a network, without that of the program around it.
///
/// # Errors
/// [`ModelError::Config`] when a rule of the configuration is broken.
pub fn training_memory(config: &NetworkConfig, sizes: TrainingSizes) -> Result<TrainingMemory, ModelError> {
    let counts = Counts::of(config)?;
    let parts = parts(config, &counts, sizes);
    let tokens = config.tokens();
    let gradients: u128 = parts.iter().map(|part| part.gradients as u128).sum();
    let mut kept = 0;
    let mut later_gradients = gradients;
    let mut peak = gradients;
    for part in &parts {
        kept += part.kept(sizes, tokens);
        let made = if sizes.accumulates { gradients } else { later_gradients };
        peak = peak.max(kept + product([sizes.samples, tokens, part.working_per_token]) + made);
        later_gradients -= part.gradients as u128;
    }
    let state = 4 * counts.all as u128;
    Ok(TrainingMemory {
        state: bytes(state),
        gradients: bytes(gradients),
        activations: bytes(kept),
        peak: bytes(state + peak),
    })
}

/// Sizes that no machine has still multiply.
fn product<const N: usize>(factors: [usize; N]) -> u128 {
    factors.iter().map(|&factor| factor as u128).product()
}

fn bytes(values: u128) -> usize {
    usize::try_from(values * VALUE).unwrap_or(usize::MAX)
}

/// Bytes of sampling with a network, `samples` evaluated at once (guidance evaluates two for each), without the program
/// around it: the weights, and the values of the largest operator's surroundings.
///
/// # Errors
/// [`ModelError::Config`] when a rule of the configuration is broken.
pub fn sampling_memory(config: &NetworkConfig, samples: usize) -> Result<usize, ModelError> {
    let width = config.width;
    let rows = product([samples, config.tokens()]);
    let together = rows.min(ROWS_TOGETHER as u128);
    let values = |per_row: usize, per_row_together: usize| rows * per_row as u128 + together * per_row_together as u128;
    // Patch tokens and features; queries, keys and values and the normed features, or what attention mixes.
    let mut largest = values(6 * width, 0);
    // Patch tokens, features, normed features and what the MLP gives; its hidden values and the last of its results.
    largest = largest.max(values(4 * width, (config.mlp_ratio + 1) * width));
    if config.branches() > 1 && config.vera.acceleration {
        // Patch tokens, features and acceleration; input and output of its second layer.
        largest = largest.max(values(3 * width, 3 * config.acceleration_width));
        // Patch tokens and acceleration; features with it, normed, and the hidden values of their MLP.
        largest = largest.max(values(8 * width, 0));
    }
    if config.branches() > 1 && config.vera.cross_attention {
        // Patch tokens; both normed inputs, or one and what attention mixes; queries, keys and values.
        largest = largest.max(values((6 + usize::from(config.vera.acceleration)) * width, 0));
    }
    let weights = Counts::of(config)?.all as u128;
    Ok(bytes(weights + largest))
}

/// Numbers of parameters, as their gradients come.
struct Counts {
    all: usize,
    embeddings: usize,
    blocks: Vec<usize>,
    veras: Vec<usize>,
    acceleration_mlps: Vec<usize>,
    /// Of the heads and projectors of inner branches.
    inner_heads: usize,
    last_head: usize,
}

impl Counts {
    fn of(config: &NetworkConfig) -> Result<Self, ModelError> {
        let mut counts = Self {
            all: 0,
            embeddings: 0,
            blocks: vec![0; config.depth],
            veras: vec![0; config.branch_ends.len()],
            acceleration_mlps: vec![0; config.branch_ends.len()],
            inner_heads: 0,
            last_head: 0,
        };
        for parameter in outline(config)? {
            let values = parameter.shape().iter().product::<usize>();
            counts.all += values;
            if !parameter.is_trained() {
                continue;
            }
            let mut names = parameter.name().split('.');
            let (module, index) = (names.next(), names.next().and_then(|index| index.parse::<usize>().ok()));
            let inner = names.next();
            *match (module, index) {
                (Some("blocks"), Some(index)) => &mut counts.blocks[index],
                (Some("df_blocks"), Some(index)) if inner == Some("acc_mlp") => &mut counts.acceleration_mlps[index],
                (Some("df_blocks"), Some(index)) => &mut counts.veras[index],
                (Some("final_layer"), Some(1)) => &mut counts.last_head,
                (Some("final_layer" | "final_acc_layer" | "projectors"), _) => &mut counts.inner_heads,
                _ => &mut counts.embeddings,
            } += values;
        }
        Ok(counts)
    }
}

/// The parts in the order of the forward pass.
fn parts(config: &NetworkConfig, counts: &Counts, sizes: TrainingSizes) -> Vec<Part> {
    let (width, branches) = (config.width, config.branches());
    let mut parts = vec![Part {
        // The patches and what the losses compare with; the patch tokens, which every VeRA block asks again.
        kept_per_token: (2 + branches) * config.patch_values() + width + config.alignment_width.unwrap_or(0),
        // Features of the times, hidden values and condition of every branch, and the embedded gap.
        kept_per_sample: branches * (FOURIER_FEATURES + 5 * width) + FOURIER_FEATURES + 5 * 2 * width,
        working_per_token: width,
        gradients: counts.embeddings,
    }];
    let mut ends = config.branch_ends.iter().enumerate().peekable();
    for (index, &gradients) in counts.blocks.iter().enumerate() {
        parts.push(block(config, gradients, sizes.checkpoint_blocks));
        if let Some((branch, _)) = ends.next_if(|&(_, &end)| end == index + 1) {
            parts.extend(between_branches(config, counts, branch));
        }
    }
    parts.push(Part {
        kept_per_token: 2 * config.patch_values(),
        kept_per_sample: HEAD_PER_SAMPLE * width,
        working_per_token: 3 * width,
        gradients: counts.last_head,
    });
    parts
}

/// Shift, scale and gate twice, each also gathered for its operator, and the factors of both norms: in widths.
const BLOCK_PER_SAMPLE: usize = 14;
/// Shift and scale of a head, gathered, and the factors of its norm: in widths.
const HEAD_PER_SAMPLE: usize = 5;

fn block(config: &NetworkConfig, gradients: usize, checkpointed: bool) -> Part {
    let (width, hidden) = (config.width, config.mlp_ratio * config.width);
    // Queries, keys and values, what attention mixes and its normalisers, both updates, the stream after each, and the
    // hidden values of the MLP. Norms are computed again.
    let normed = if config.qk_norm { 3 * width } else { 0 };
    let kept = 3 * width + normed + width + config.heads + 2 * width + 2 * width + hidden;
    // The second layer of the MLP: the gradients of its input, of its output, and of the stream.
    let working = hidden + 2 * width;
    if checkpointed {
        Part {
            kept_per_token: width,
            kept_per_sample: 0,
            working_per_token: kept + working,
            gradients,
        }
    } else {
        Part {
            kept_per_token: kept,
            kept_per_sample: BLOCK_PER_SAMPLE * width,
            working_per_token: working,
            gradients,
        }
    }
}

/// VeRA, as the backward pass meets it from its end: the acceleration MLP last.
fn between_branches(config: &NetworkConfig, counts: &Counts, branch: usize) -> Vec<Part> {
    let (width, vera, values) = (config.width, config.vera, config.patch_values());
    let mut parts = Vec::new();
    let mut rest = Part {
        kept_per_token: values,
        kept_per_sample: HEAD_PER_SAMPLE * width,
        working_per_token: 3 * width,
        gradients: counts.veras[branch],
    };
    if vera.acceleration {
        let hidden = config.acceleration_width;
        parts.push(Part {
            kept_per_token: 4 * hidden,
            kept_per_sample: 0,
            // The third layer, and the gradients of the features and of the patch tokens that wait.
            working_per_token: 3 * hidden + 3 * width,
            gradients: counts.acceleration_mlps[branch],
        });
        // The acceleration, joined to the features; the head's output and what its loss compares it with.
        rest.kept_per_token += width + 2 * width + 2 * values;
        rest.kept_per_sample += HEAD_PER_SAMPLE * width;
    }
    if vera.has_mlp() {
        let inputs = config.vera_width();
        let normalized = if vera.time_gap { 0 } else { inputs };
        rest.kept_per_token += normalized + 2 * width + width;
        rest.kept_per_sample += HEAD_PER_SAMPLE * inputs;
        rest.working_per_token = 4 * width + 2 * width + inputs;
    }
    if vera.cross_attention {
        // Both normed inputs, queries, keys and values, what attention mixes and its normalisers, and the sum.
        rest.kept_per_token += 2 * width + 3 * width + width + config.heads + width;
        rest.working_per_token = rest.working_per_token.max(6 * width);
    }
    if let Some(outputs) = config.alignment_width {
        rest.kept_per_token += 2 * config.projector_width + outputs;
    }
    // The heads of inner branches are shared: their gradients come with the last of these branches.
    if branch + 1 == config.branch_ends.len() {
        rest.gradients += counts.inner_heads;
    }
    parts.push(rest);
    parts
}
