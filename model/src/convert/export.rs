//! Our weights to a torch file of the form the authors' trainer writes.

use super::error::ConvertError;
use super::import::{self, Imported, Source};
use super::names::registration_order;
use super::optimizer;
use super::weights::Weights;
use super::{Options, Report, WeightSet};
use crate::checkpoint::write_file_whole;
use crate::torch_pickle::{PythonObject, TensorData, TorchWriter};
use crate::NetworkConfig;
use std::path::Path;

/// A checkpoint folder brings `model`, `ema` and `opt`; a single file of weights becomes both of the first.
pub(super) fn to_torch(input: &Path, output: &Path, options: &Options) -> Result<Report, ConvertError> {
    let report = write_file_whole(output, |temporary| write(input, temporary, options))?;
    Ok(Report {
        written: vec![output.to_owned()],
        ..report
    })
}

fn write(input: &Path, temporary: &Path, options: &Options) -> Result<Report, ConvertError> {
    let source = Source::open(input, options.weights)?;
    let Imported {
        weights,
        config,
        step,
        source: kind,
        notes,
    } = import::import(&source, options.weights, options)?;
    let mut writer = TorchWriter::create(temporary)?;
    let [model, ema] = if input.is_dir() {
        [WeightSet::Model, WeightSet::Ema].map(|set| -> Result<_, ConvertError> {
            let source = Source::open(input, set)?;
            write_state_dict(&mut writer, &import::import(&source, set, options)?.weights)
        })
    } else {
        let both = write_state_dict(&mut writer, &weights)?;
        [Ok(both.clone()), Ok(both)]
    };
    let mut root = vec![(PythonObject::text("model"), model?), (PythonObject::text("ema"), ema?)];
    if input.is_dir() {
        let opt = optimizer::write_torch(&mut writer, input, &config)?;
        root.extend(opt.map(|opt| (PythonObject::text("opt"), opt)));
    }
    root.extend([
        (PythonObject::text("args"), arguments(&config)),
        (PythonObject::text("steps"), PythonObject::Int(step.unwrap_or(0) as i64)),
    ]);
    writer.finish(&PythonObject::Dict(root))?;
    Ok(Report {
        source: kind,
        written: Vec::new(),
        tensors: weights.names().len(),
        parameters: weights.parameters(),
        step,
        config,
        notes,
    })
}

/// Names in the order the authors' code registers its parameters.
pub(super) fn registered(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names.sort_by_cached_key(|name| registration_order(name));
    names
}

fn write_state_dict(writer: &mut TorchWriter, weights: &Weights<'_>) -> Result<PythonObject, ConvertError> {
    let mut pairs = Vec::new();
    for name in registered(weights.names().to_vec()) {
        let shape = weights.shape(&name).unwrap_or_default().to_vec();
        let tensor = writer.tensor(&TensorData::from_f32(shape, &weights.read_f32(&name)?))?;
        pairs.push((PythonObject::Text(name), tensor));
    }
    Ok(PythonObject::Dict(pairs))
}

/// What the authors' trainer keeps of its command line, as far as it describes the network.
fn arguments(config: &NetworkConfig) -> PythonObject {
    let ends: Vec<String> = config.branch_ends.iter().map(ToString::to_string).collect();
    PythonObject::Namespace(vec![
        (
            "df_idxs".to_owned(),
            PythonObject::text(format!("[{}]", ends.join(","))),
        ),
        ("num_classes".to_owned(), PythonObject::Int(config.classes as i64)),
        ("legacy_scaling".to_owned(), PythonObject::Bool(config.legacy_scaling)),
    ])
}
