//! Torch files and foreign safetensors to files of ours: one of weights, or a checkpoint's folder.

use super::architecture::{self, Architecture, Description};
use super::error::ConvertError;
use super::optimizer::TorchAdamW;
use super::safetensors_file::SafetensorsFile;
use super::sit;
use super::weights::Weights;
use super::{Options, Report, SingleHead, WeightSet};
use crate::checkpoint::{write_whole, AdamWRecord, State, EMA_FILE, MODEL_FILE, OPTIMIZER_FILE};
use crate::torch_pickle::{TensorData, TorchFile, Value};
use crate::NetworkConfig;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// A file of weights of either kind.
pub(super) enum Source {
    Torch(TorchFile),
    Safetensors(SafetensorsFile),
}

impl Source {
    /// Opens a file by what it starts with, not by its name, or one of the two files of weights in a checkpoint folder.
    pub(super) fn open(path: &Path, set: WeightSet) -> Result<Self, ConvertError> {
        let file = match set {
            _ if !path.is_dir() => path.to_owned(),
            WeightSet::Ema => path.join(EMA_FILE),
            WeightSet::Model => path.join(MODEL_FILE),
        };
        if SafetensorsFile::recognises(&file)? {
            Ok(Self::Safetensors(SafetensorsFile::open(&file)?))
        } else {
            Ok(Self::Torch(TorchFile::open(&file)?))
        }
    }

    /// The state of the optimiser that trained `weights`, where the file has it.
    fn optimizer(
        &self,
        weights: &Weights<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Option<TorchAdamW<'_>>, ConvertError> {
        let Self::Torch(file) = self else { return Ok(None) };
        let Some(opt) = file.root().get("opt") else {
            notes.push("it has no optimiser's state (`opt`)".to_owned());
            return Ok(None);
        };
        let single_head = |name: Value<'_>| {
            name.as_str()
                .is_some_and(|name| name.ends_with("final_layer.linear.weight"))
        };
        let mut stored = file
            .root()
            .get("model")
            .and_then(|model| model.entries())
            .into_iter()
            .flatten();
        if stored.any(|(name, _)| single_head(name)) {
            notes.push("its optimiser's state is left out: it belongs to weights that are changed here".to_owned());
            return Ok(None);
        }
        let optimizer = TorchAdamW::read(file, opt, weights)?;
        let AdamWRecord {
            learning_rate,
            weight_decay,
            ..
        } = optimizer.settings;
        notes.push(format!(
            "its optimiser: AdamW after {} updates, learning rate {learning_rate}, weight decay {weight_decay}",
            optimizer.updates
        ));
        Ok(Some(optimizer))
    }

    /// The weights asked for and all that the file says of them.
    fn contents(&self, set: WeightSet) -> Result<Contents<'_>, ConvertError> {
        match self {
            Self::Safetensors(file) => Ok(Contents {
                weights: Weights::from_safetensors(file)?,
                description: match config_of(file)? {
                    Some(config) => Description::Config(Box::new(config)),
                    None => Description::Nothing,
                },
                step: file.metadata().get("step").and_then(|step| step.parse().ok()),
                kind: "safetensors weights".to_owned(),
            }),
            Self::Torch(file) => {
                let root = file.root();
                let (wanted, other) = match set {
                    WeightSet::Ema => ("ema", "model"),
                    WeightSet::Model => ("model", "ema"),
                };
                let found = [wanted, other].into_iter().find_map(|key| Some((key, root.get(key)?)));
                let Some((key, dict)) = found else {
                    return Ok(Contents {
                        weights: Weights::from_torch(file, root.get("state_dict").unwrap_or(root))?,
                        description: Description::Nothing,
                        step: None,
                        kind: "torch weights".to_owned(),
                    });
                };
                let step = root.get("steps").and_then(|value| value.as_i64());
                let instead = if key == wanted {
                    String::new()
                } else {
                    format!(" (it has no `{wanted}` ones)")
                };
                Ok(Contents {
                    weights: Weights::from_torch(file, dict)?,
                    description: root.get("args").map_or(Description::Nothing, Description::Arguments),
                    step: step.and_then(|step| u64::try_from(step).ok()),
                    kind: format!("torch checkpoint, `{key}` weights{instead}"),
                })
            }
        }
    }
}

/// What a file holds.
struct Contents<'a> {
    weights: Weights<'a>,
    description: Description<'a>,
    step: Option<u64>,
    kind: String,
}

/// The configuration in a file's metadata, where it carries one; its `heads` are 0 where it leaves them out.
pub(crate) fn config_of(file: &SafetensorsFile) -> Result<Option<NetworkConfig>, ConvertError> {
    let Some(text) = file.metadata().get("config") else {
        return Ok(None);
    };
    let wrong =
        |error: serde_json::Error| ConvertError::content(file.path(), format!("`config` in its metadata: {error}"));
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(wrong)?;
    fields.entry("heads").or_insert(json!(0));
    serde_json::from_value(fields.into()).map(Some).map_err(wrong)
}

/// Weights with reference names, in our convention of time.
pub(super) struct Imported<'a> {
    pub weights: Weights<'a>,
    pub config: NetworkConfig,
    pub step: Option<u64>,
    pub source: String,
    pub notes: Vec<String>,
}

pub(super) fn import<'a>(source: &'a Source, set: WeightSet, options: &Options) -> Result<Imported<'a>, ConvertError> {
    let Contents {
        mut weights,
        description,
        step,
        kind,
    } = source.contents(set)?;
    let mut notes = Vec::new();
    if weights.contains("final_layer.linear.weight") {
        fold_single_head(&mut weights, options, &mut notes)?;
    }
    let Architecture { config, notes: assumed } = architecture::infer(&weights, &description, options)?;
    notes.extend(assumed);
    Ok(Imported {
        weights,
        config,
        step,
        source: kind,
        notes,
    })
}

/// Turns a SiT or DiT network into one branch of ours.
fn fold_single_head(weights: &mut Weights<'_>, options: &Options, notes: &mut Vec<String>) -> Result<(), ConvertError> {
    let embedder = "x_embedder.proj.weight";
    let &[width, channels, patch, _] = weights.shape(embedder).unwrap_or_default() else {
        return Err(ConvertError::tensor(
            weights.path(),
            embedder,
            "is missing or has other than 4 dimensions",
        ));
    };
    let sizes = NetworkConfig {
        width,
        patch,
        latent_channels: channels,
        ..NetworkConfig::default()
    };
    sizes
        .sizes_in_range()
        .map_err(|error| ConvertError::tensor(weights.path(), embedder, error.to_string()))?;
    let outputs = patch * patch * channels;
    if sit::drop_variance(weights, "final_layer", patch * patch, channels)? {
        notes.push("the second half of the output channels, a learned variance, is dropped".to_owned());
    }
    // Shapes are claims until their numbers are read: zeros of these sizes are only made beside a head that is there.
    for (part, shape) in [
        ("linear.weight", [outputs, width]),
        ("adaLN_modulation.1.weight", [2 * width, width]),
    ] {
        let name = format!("final_layer.{part}");
        let found = weights.read(&name)?.shape;
        if found != shape {
            let problem = format!("shape {found:?}, expected {shape:?}");
            return Err(ConvertError::tensor(weights.path(), &name, problem));
        }
    }
    match options.single_head {
        SingleHead::Sit => {
            sit::reverse_time(weights)?;
            sit::negate_head(weights, "final_layer")?;
            notes.push("read as SiT: its time, which runs from noise to data, is folded into the weights".to_owned());
        }
        SingleHead::Dit => notes.push(
            "read as DiT: it predicts noise at discrete times, so its samples mean nothing here; a start for fine-tuning"
                .to_owned(),
        ),
    }
    for part in [
        "linear.weight",
        "linear.bias",
        "adaLN_modulation.1.weight",
        "adaLN_modulation.1.bias",
    ] {
        weights.rename(&format!("final_layer.{part}"), &format!("final_layer.1.{part}"));
    }
    // The heads of inner branches and the gap embedder are part of the format, but one branch never uses them.
    let mut unused = |name: String, shape: Vec<usize>| {
        let zeros = vec![0.0; shape.iter().product()];
        weights.replace(&name, TensorData::from_f32(shape, &zeros));
    };
    for head in ["final_layer.0", "final_acc_layer"] {
        unused(format!("{head}.linear.weight"), vec![outputs, width]);
        unused(format!("{head}.linear.bias"), vec![outputs]);
        unused(format!("{head}.adaLN_modulation.1.weight"), vec![2 * width, width]);
        unused(format!("{head}.adaLN_modulation.1.bias"), vec![2 * width]);
    }
    for (layer, inputs) in [("mlp.0", crate::config::FOURIER_FEATURES), ("mlp.2", 2 * width)] {
        unused(format!("dt_embedder.{layer}.weight"), vec![2 * width, inputs]);
        unused(format!("dt_embedder.{layer}.bias"), vec![2 * width]);
    }
    Ok(())
}

/// The header metadata of our weights: the configuration as JSON and the step.
pub(crate) fn metadata(config: &NetworkConfig, step: Option<u64>) -> BTreeMap<String, String> {
    let mut config_json = json!(config);
    if let (0, Some(fields)) = (config.heads, config_json.as_object_mut()) {
        fields.remove("heads");
    }
    let mut metadata = BTreeMap::from([
        // What the Python libraries write and some insist on.
        ("format".to_owned(), "pt".to_owned()),
        ("config".to_owned(), config_json.to_string()),
    ]);
    metadata.extend(step.map(|step| ("step".to_owned(), step.to_string())));
    metadata
}

/// A checkpoint's folder of both sets of weights and, where the file has it, the optimiser's state.
pub(super) fn to_folder(input: &Path, output: &Path, options: &Options) -> Result<Report, ConvertError> {
    if input.is_dir() {
        return Err(ConvertError::content(
            input,
            "is a checkpoint's folder already, expected a file",
        ));
    }
    if output.exists() {
        return Err(ConvertError::content(output, "is there already, expected a new folder"));
    }
    let source = Source::open(input, WeightSet::Model)?;
    let [model, ema] = [WeightSet::Model, WeightSet::Ema].map(|set| import(&source, set, options));
    let (model, ema) = (model?, ema?);
    let mut notes = model.notes;
    let optimizer = source.optimizer(&model.weights, &mut notes)?;
    let metadata = metadata(&model.config, model.step);
    let step = model.step.unwrap_or(0);
    let updates = optimizer.as_ref().map_or(step, |optimizer| optimizer.updates);
    write_whole(output, |folder| {
        model.weights.write_safetensors(&folder.join(MODEL_FILE), &metadata)?;
        ema.weights.write_safetensors(&folder.join(EMA_FILE), &metadata)?;
        if let Some(optimizer) = &optimizer {
            optimizer.write(&folder.join(OPTIMIZER_FILE), &model.weights, metadata.clone())?;
        }
        // Where in the data the other program was is not known here.
        let state = State::new(step, updates, 0, model.config.clone(), serde_json::Value::Null);
        Ok::<(), ConvertError>(state.write(folder)?)
    })?;
    Ok(Report {
        source: model.source,
        written: vec![output.to_owned()],
        tensors: model.weights.names().len(),
        parameters: model.weights.parameters(),
        step: model.step,
        config: model.config,
        notes,
    })
}

pub(super) fn to_single_file(input: &Path, output: &Path, options: &Options) -> Result<Report, ConvertError> {
    let source = Source::open(input, options.weights)?;
    let Imported {
        weights,
        config,
        step,
        source: kind,
        notes,
    } = import(&source, options.weights, options)?;
    weights.write_safetensors(output, &metadata(&config, step))?;
    Ok(Report {
        source: kind,
        written: vec![output.to_owned()],
        tensors: weights.names().len(),
        parameters: weights.parameters(),
        step,
        config,
        notes,
    })
}
