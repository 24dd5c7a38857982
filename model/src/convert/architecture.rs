//! Reads a network's configuration off the names and shapes of its tensors, and checks that every tensor has its place.

use super::error::ConvertError;
use super::weights::Weights;
use super::Options;
use crate::torch_pickle::Value;
use crate::{parameter_shapes, NetworkConfig};
use std::collections::BTreeMap;

/// Heads of the published networks of a width (network spec §6).
const PUBLISHED_HEADS: [(usize, usize); 4] = [(384, 6), (768, 12), (1024, 16), (1152, 16)];

/// What a file says of its network besides the tensors.
pub(super) enum Description<'a> {
    /// The configuration, in the metadata of our own files.
    Config(Box<NetworkConfig>),
    /// The command line of the authors' trainer.
    Arguments(Value<'a>),
    /// Nothing.
    Nothing,
}

/// What could be read off, and what had to be assumed.
pub(super) struct Architecture {
    /// `heads` is 0 when nothing tells it.
    pub(super) config: NetworkConfig,
    pub(super) notes: Vec<String>,
}

/// Infers the configuration of weights with reference names from what the file says besides, and from their shapes.
pub(super) fn infer(
    weights: &Weights<'_>,
    description: &Description<'_>,
    options: &Options,
) -> Result<Architecture, ConvertError> {
    match description {
        Description::Config(config) => described(weights, config, options),
        Description::Arguments(arguments) => guessed(weights, Some(*arguments), options),
        Description::Nothing => guessed(weights, None, options),
    }
}

/// Our own files carry their configuration; options correct it.
fn described(weights: &Weights<'_>, config: &NetworkConfig, options: &Options) -> Result<Architecture, ConvertError> {
    let config = NetworkConfig {
        heads: options.heads.unwrap_or(config.heads),
        branch_ends: options
            .branch_ends
            .clone()
            .unwrap_or_else(|| config.branch_ends.clone()),
        legacy_scaling: options.legacy_scaling.unwrap_or(config.legacy_scaling),
        ..config.clone()
    };
    check_every_tensor(weights, &config)?;
    Ok(Architecture {
        config,
        notes: Vec::new(),
    })
}

fn guessed(
    weights: &Weights<'_>,
    arguments: Option<Value<'_>>,
    options: &Options,
) -> Result<Architecture, ConvertError> {
    let mut notes = Vec::new();
    let &[width, latent_channels, patch, _] = dimensions(weights, "x_embedder.proj.weight")?;
    let &[_, tokens, _] = dimensions(weights, "pos_embed")?;
    let grid = tokens.isqrt();
    if grid * grid != tokens {
        return Err(ConvertError::tensor(
            weights.path(),
            "pos_embed",
            format!("{tokens} tokens are no square grid"),
        ));
    }
    let &[class_rows, _] = dimensions(weights, "y_embedder.embedding_table.weight")?;
    let &[mlp_width, _] = dimensions(weights, "blocks.0.mlp.fc1.weight")?;
    let depth = count(weights, "blocks");
    let defaults = NetworkConfig::default();
    let argument = |name: &str| arguments.and_then(|arguments| arguments.get(name));

    let declared_classes = argument("num_classes")
        .and_then(|value| value.as_i64())
        .and_then(|n| usize::try_from(n).ok());
    let has_no_class = declared_classes.is_none_or(|classes| classes < class_rows);
    let qk_norm = weights.contains("blocks.0.attn.q_norm.weight");
    let legacy_scaling = options
        .legacy_scaling
        .or(argument("legacy_scaling").and_then(|value| value.as_bool()));
    let refiners = count(weights, "df_blocks");
    // Names may claim any number: nothing is made of them before they fit each other.
    if refiners >= depth.max(1) {
        let problem = format!("has {refiners} VeRA blocks by its names, expected fewer than its {depth} blocks");
        return Err(ConvertError::content(weights.path(), problem));
    }
    let branches = refiners + 1;
    let mut config = NetworkConfig {
        width,
        depth,
        heads: heads(weights, width, options),
        patch,
        latent_channels,
        latent_size: grid * patch,
        classes: class_rows.saturating_sub(usize::from(has_no_class)),
        branch_ends: Vec::new(),
        mlp_ratio: mlp_width / width.max(1),
        class_dropout: if has_no_class { defaults.class_dropout } else { 0.0 },
        qk_norm,
        legacy_scaling: legacy_scaling.unwrap_or(false),
        ..defaults
    };
    if branches > 1 {
        let &[acceleration_width, _] = dimensions(weights, "df_blocks.0.acc_mlp.0.weight")?;
        config.acceleration_width = acceleration_width;
        config.branch_ends = branch_ends(weights, argument("df_idxs"), options, depth, branches, &mut notes)?;
        if legacy_scaling.is_none() {
            notes.push("legacy_scaling is taken as false: neither the file nor --legacy-scaling says".to_owned());
        }
    }
    if weights.contains("projectors.0.0.weight") {
        config.projector_width = dimensions::<2>(weights, "projectors.0.0.weight")?[0];
        config.alignment_width = Some(dimensions::<2>(weights, "projectors.0.4.weight")?[0]);
    }
    if config.heads == 0 {
        notes.push(format!(
            "the weights do not show the number of heads and no published network has width {width}: the metadata leave it \
             out, set model.heads or convert again with --heads"
        ));
    }
    check_every_tensor(weights, &config)?;
    Ok(Architecture { config, notes })
}

fn dimensions<'a, const N: usize>(weights: &'a Weights<'_>, name: &str) -> Result<&'a [usize; N], ConvertError> {
    let shape = weights.shape(name).ok_or_else(|| {
        ConvertError::tensor(
            weights.path(),
            name,
            "is missing, so these are not weights of a DeepFlow, SiT or DiT network",
        )
    })?;
    shape.try_into().map_err(|_| {
        ConvertError::tensor(
            weights.path(),
            name,
            format!("shape {shape:?}, expected {N} dimensions"),
        )
    })
}

/// How many numbered modules there are below `module`.
fn count(weights: &Weights<'_>, module: &str) -> usize {
    let indices = weights.names().iter().filter_map(|name| {
        let (index, _) = name.strip_prefix(module)?.strip_prefix('.')?.split_once('.')?;
        index.parse::<usize>().ok()
    });
    indices.max().map_or(0, |last| last.saturating_add(1))
}

fn heads(weights: &Weights<'_>, width: usize, options: &Options) -> usize {
    let of_head_width = weights
        .shape("blocks.0.attn.q_norm.weight")
        .and_then(|shape| shape.first())
        .filter(|&&w| w > 0);
    let published = PUBLISHED_HEADS
        .iter()
        .find(|(known, _)| *known == width)
        .map(|&(_, heads)| heads);
    options
        .heads
        .or(of_head_width.map(|head_width| width / head_width))
        .or(published)
        .unwrap_or(0)
}

fn branch_ends(
    weights: &Weights<'_>,
    argument: Option<Value<'_>>,
    options: &Options,
    depth: usize,
    branches: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<usize>, ConvertError> {
    let stored = argument.and_then(|value| match value.as_str() {
        // The trainer's command line carries the list as text.
        Some(text) => serde_json::from_str(text).ok(),
        None => value
            .items()?
            .map(|item| usize::try_from(item.as_i64()?).ok())
            .collect(),
    });
    let ends = options.branch_ends.clone().or(stored).unwrap_or_else(|| {
        let ends: Vec<usize> = (1..branches).map(|branch| branch * depth / branches).collect();
        notes.push(format!(
            "branch ends are taken as {ends:?} (equal parts): the file does not say, --branch-ends can"
        ));
        ends
    });
    let fits = ends.len() + 1 == branches && ends.windows(2).all(|pair| pair[0] < pair[1]);
    if !fits || ends.iter().any(|end| !(1..depth).contains(end)) {
        let problem = format!(
            "branch ends {ends:?} do not fit {depth} blocks and {} VeRA blocks",
            branches - 1
        );
        return Err(ConvertError::content(weights.path(), problem));
    }
    Ok(ends)
}

/// Every tensor that the network has, with its shape, and no other.
fn check_every_tensor(weights: &Weights<'_>, config: &NetworkConfig) -> Result<(), ConvertError> {
    let config = NetworkConfig {
        // Unknown heads change no shape.
        heads: config.heads.max(1),
        ..config.clone()
    };
    let expected: BTreeMap<String, Vec<usize>> = parameter_shapes(&config)
        .map_err(|error| ConvertError::content(weights.path(), error.to_string()))?
        .into_iter()
        .collect();
    for (name, shape) in &expected {
        let problem = match weights.shape(name) {
            Some(found) if found == shape => continue,
            Some(found) => format!("shape {found:?}, expected {shape:?}"),
            None => format!("is missing, expected shape {shape:?}"),
        };
        return Err(ConvertError::tensor(weights.path(), name, problem));
    }
    match weights.names().iter().find(|&name| !expected.contains_key(name)) {
        Some(name) => Err(ConvertError::tensor(
            weights.path(),
            name,
            "has no place in a DeepFlow, SiT or DiT network",
        )),
        None => Ok(()),
    }
}
