//! AdamW's moments as `torch.optim.AdamW.state_dict()` lays them out, and as a checkpoint of ours does.
//!
//! torch knows parameters by their place in the list that the optimiser was made with: `param_groups[..]["params"]` holds
//! the keys of `state` in the order of `model.parameters()`, which is the order of the state dict. `pos_embed`, which is not
//! trained, may be left out of that list. A parameter that never had a gradient has no entry in `state`.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;

use super::error::ConvertError;
use super::export::registered;
use super::safetensors_file::{self, SafetensorsFile};
use super::weights::Weights;
use crate::checkpoint::{AdamWRecord, State, FIRST_MOMENT, OPTIMIZER_FILE, SECOND_MOMENT};
use crate::network::outline;
use crate::torch_pickle::{PythonObject, TensorData, TensorReference, TorchFile, TorchWriter, Value};
use crate::NetworkConfig;

const FIXED: &str = "pos_embed";

/// What an optimiser of a torch checkpoint remembers.
pub(super) struct TorchAdamW<'a> {
    file: &'a TorchFile,
    /// First and second moment by parameter; parameters that never had a gradient have none.
    moments: BTreeMap<String, [&'a TensorReference; 2]>,
    pub(super) updates: u64,
    pub(super) settings: AdamWRecord,
}

impl<'a> TorchAdamW<'a> {
    /// Reads `opt`, the state dict of an AdamW over the parameters of `weights`.
    ///
    /// # Errors
    /// It is none, or of another network.
    pub(super) fn read(file: &'a TorchFile, opt: Value<'a>, weights: &Weights<'_>) -> Result<Self, ConvertError> {
        let wrong = |problem: String| ConvertError::content(file.path(), format!("`opt`: {problem}"));
        let part = |name: &str| {
            opt.get(name)
                .ok_or_else(|| wrong(format!("has no `{name}`, so it is no optimiser's")))
        };
        let (state, groups) = (part("state")?, part("param_groups")?);
        let groups: Vec<Value<'_>> = groups.items().into_iter().flatten().collect();
        let keys: Vec<i64> = groups
            .iter()
            .filter_map(|group| group.get("params")?.items())
            .flatten()
            .filter_map(|key| key.as_i64())
            .collect();
        let names = weights.names().iter().map(String::as_str);
        let listed: Vec<&str> = if keys.len() == names.len() {
            names.collect()
        } else {
            names.filter(|&name| name != FIXED).collect()
        };
        if keys.len() != listed.len() {
            let problem = format!("is of {} parameters, the network has {}", keys.len(), listed.len());
            return Err(wrong(problem));
        }
        let entries: BTreeMap<i64, Value<'_>> = state
            .entries()
            .into_iter()
            .flatten()
            .filter_map(|(key, entry)| Some((key.as_i64()?, entry)))
            .collect();
        let mut moments = BTreeMap::new();
        let mut updates = None;
        for (key, name) in keys.iter().zip(listed) {
            let Some(entry) = entries.get(key) else { continue };
            let moment = |kind: &str| {
                let tensor = entry.get(kind).and_then(|value| value.as_tensor());
                let tensor = tensor.ok_or_else(|| wrong(format!("has no `{kind}` of `{name}`, expected AdamW's")))?;
                match weights.shape(name) {
                    Some(shape) if shape == tensor.shape() => Ok(tensor),
                    shape => Err(wrong(format!(
                        "`{kind}` of `{name}` has shape {:?}, expected {:?}",
                        tensor.shape(),
                        shape.unwrap_or_default()
                    ))),
                }
            };
            let of_this = steps(file, *entry)?.ok_or_else(|| wrong(format!("has no `step` of `{name}`")))?;
            if *updates.get_or_insert(of_this) != of_this {
                let first = updates.unwrap_or_default();
                return Err(wrong(format!(
                    "`{name}` was updated {of_this} times, parameters before it {first} times; expected one number"
                )));
            }
            moments.insert(name.to_owned(), [moment("exp_avg")?, moment("exp_avg_sq")?]);
        }
        Ok(Self {
            file,
            moments,
            updates: updates.unwrap_or_default(),
            settings: settings(groups.first().copied()),
        })
    }

    /// Writes the moments of every parameter of `weights` under the names that checkpoints have; those that torch has none of
    /// are zero.
    pub(super) fn write(
        &self,
        path: &Path,
        weights: &Weights<'_>,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<(), ConvertError> {
        self.settings.add_to(&mut metadata);
        let mut shapes = BTreeMap::new();
        for name in weights.names() {
            let shape = weights.shape(name).unwrap_or_default();
            for prefix in [FIRST_MOMENT, SECOND_MOMENT] {
                shapes.insert(format!("{prefix}{name}"), (Dtype::F32, shape.to_vec()));
            }
        }
        safetensors_file::write(path, &metadata, &shapes, |stored| {
            let shape = shapes[stored].1.clone();
            let (which, name) = match stored.strip_prefix(FIRST_MOMENT) {
                Some(name) => (0, name),
                None => (1, stored.strip_prefix(SECOND_MOMENT).unwrap_or(stored)),
            };
            let Some(moments) = self.moments.get(name) else {
                let zeros = vec![0.0; shape.iter().product()];
                return Ok(TensorData::from_f32(shape, &zeros));
            };
            let values = self.file.read(moments[which])?.to_f32();
            let values = values.ok_or_else(|| ConvertError::tensor(path, stored, "holds no real numbers"))?;
            Ok(TensorData::from_f32(shape, &values))
        })
    }
}

/// How often a parameter was updated: a number, or since PyTorch 1.12 a tensor of one.
fn steps(file: &TorchFile, entry: Value<'_>) -> Result<Option<u64>, ConvertError> {
    let Some(step) = entry.get("step") else { return Ok(None) };
    let number = match step.as_tensor() {
        Some(tensor) if tensor.elements() == 1 => {
            let values = file.read(tensor)?.to_f32().unwrap_or_default();
            values.first().map(|&step| f64::from(step))
        }
        Some(_) => None,
        None => step.as_f64(),
    };
    Ok(number.filter(|step| *step >= 0.0).map(|step| step as u64))
}

/// The settings of a parameter group; what it lacks has the published value.
fn settings(group: Option<Value<'_>>) -> AdamWRecord {
    let number = |name: &str| group?.get(name)?.as_f64();
    let betas: Vec<f64> = group
        .and_then(|group| group.get("betas")?.items())
        .into_iter()
        .flatten()
        .filter_map(|beta| beta.as_f64())
        .collect();
    let published = AdamWRecord::published();
    AdamWRecord {
        learning_rate: number("lr").unwrap_or(published.learning_rate),
        beta1: betas.first().copied().unwrap_or(published.beta1),
        beta2: betas.get(1).copied().unwrap_or(published.beta2),
        epsilon: number("eps").unwrap_or(published.epsilon),
        weight_decay: number("weight_decay").unwrap_or(published.weight_decay),
    }
}

/// Adds the moments of a checkpoint folder to a torch file, and gives the `opt` that refers to them; `None` where the folder
/// has none.
pub(super) fn write_torch(
    writer: &mut TorchWriter,
    folder: &Path,
    config: &NetworkConfig,
) -> Result<Option<PythonObject>, ConvertError> {
    let path = folder.join(OPTIMIZER_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let file = SafetensorsFile::open(&path)?;
    let updates = State::read(folder)?.updates;
    // Unknown heads change no name.
    let known = NetworkConfig {
        heads: config.heads.max(1),
        ..config.clone()
    };
    let parameters = outline(&known).map_err(|error| ConvertError::content(&path, error.to_string()))?;
    let names = parameters.iter().map(|parameter| parameter.name().to_owned());
    let listed = registered(names.filter(|name| name != FIXED).collect());
    let mut state = Vec::new();
    for (place, name) in listed.iter().enumerate() {
        let is_trained = parameters
            .iter()
            .any(|parameter| parameter.name() == name && parameter.is_trained());
        if !is_trained || updates == 0 {
            continue;
        }
        let mut entry = vec![(
            PythonObject::text("step"),
            writer.tensor(&TensorData::from_f32(Vec::new(), &[updates as f32]))?,
        )];
        for (kind, prefix) in [("exp_avg", FIRST_MOMENT), ("exp_avg_sq", SECOND_MOMENT)] {
            let stored = format!("{prefix}{name}");
            let data = file.read(&stored)?;
            let values = data.to_f32();
            let values = values.ok_or_else(|| ConvertError::tensor(&path, &stored, "holds no real numbers"))?;
            let tensor = writer.tensor(&TensorData::from_f32(data.shape, &values))?;
            entry.push((PythonObject::text(kind), tensor));
        }
        state.push((PythonObject::Int(place as i64), PythonObject::Dict(entry)));
    }
    let settings = AdamWRecord::of(&file).unwrap_or_else(AdamWRecord::published);
    let group = parameter_group(settings, listed.len());
    Ok(Some(PythonObject::Dict(vec![
        (PythonObject::text("state"), PythonObject::Dict(state)),
        (PythonObject::text("param_groups"), PythonObject::List(vec![group])),
    ])))
}

/// The one group of a `torch.optim.AdamW`, with every setting that it has.
fn parameter_group(settings: AdamWRecord, parameters: usize) -> PythonObject {
    let places = (0..parameters).map(|place| PythonObject::Int(place as i64));
    let betas = [settings.beta1, settings.beta2].map(PythonObject::Float);
    let entries = [
        ("lr", PythonObject::Float(settings.learning_rate)),
        ("betas", PythonObject::Tuple(betas.to_vec())),
        ("eps", PythonObject::Float(settings.epsilon)),
        ("weight_decay", PythonObject::Float(settings.weight_decay)),
        ("amsgrad", PythonObject::Bool(false)),
        ("maximize", PythonObject::Bool(false)),
        ("foreach", PythonObject::None),
        ("capturable", PythonObject::Bool(false)),
        ("differentiable", PythonObject::Bool(false)),
        ("fused", PythonObject::None),
        ("decoupled_weight_decay", PythonObject::Bool(true)),
        ("params", PythonObject::List(places.collect())),
    ];
    PythonObject::Dict(
        entries
            .into_iter()
            .map(|(name, value)| (PythonObject::text(name), value))
            .collect(),
    )
}
