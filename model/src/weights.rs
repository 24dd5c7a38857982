//! Weights by name: from safetensors into a network and back.

use std::borrow::Cow;

use dfdx::prelude::Dtype;
use half::{bf16, f16};
use safetensors::{Dtype as FileType, SafeTensors};
use serde::Deserialize;

use crate::config::NetworkConfig;
use crate::error::{ModelError, WeightsError};
use crate::network::Network;
use crate::ops::{scalar, Operators, Vector};
use crate::parameters::Parameter;

/// Names of the two tables that fine-tuning may make anew.
const CLASS_TABLE: &str = "y_embedder.embedding_table.weight";
const POSITION_TABLE: &str = "pos_embed";
/// What the names of projectors begin with.
const PROJECTORS: &str = "projectors.";

/// What decides what a network computes and shows in no name and no shape of a tensor; `None` where nobody says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetworkFacts {
    /// [`NetworkConfig::heads`].
    pub heads: Option<usize>,
    /// [`NetworkConfig::branch_ends`].
    pub branch_ends: Option<Vec<usize>>,
    /// [`NetworkConfig::legacy_scaling`].
    pub legacy_scaling: Option<bool>,
}

/// Tensors by name, whatever file or prefix they come from.
pub trait WeightSource {
    /// Number type and shape of the tensor of this name.
    fn describe(&self, name: &str) -> Option<(FileType, Vec<usize>)>;
    /// The values of a tensor that [`describe`](Self::describe) knows: little-endian, row by row.
    ///
    /// # Errors
    /// [`WeightsError::Unreadable`].
    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightsError>;
    /// All names, sorted.
    fn names(&self) -> Vec<String>;
    /// What the weights say of their network besides.
    fn facts(&self) -> NetworkFacts {
        NetworkFacts::default()
    }
}

impl WeightSource for SafeTensors<'_> {
    fn describe(&self, name: &str) -> Option<(FileType, Vec<usize>)> {
        let view = self.tensor(name).ok()?;
        Some((view.dtype(), view.shape().to_vec()))
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightsError> {
        match self.tensor(name) {
            Ok(view) => Ok(Cow::Borrowed(view.data())),
            Err(error) => Err(WeightsError::Unreadable {
                name: name.to_string(),
                problem: error.to_string(),
            }),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = SafeTensors::names(self).into_iter().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }
}

/// What loading left as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters that the source lacks and that can do without: kept at their initial values.
    pub kept: Vec<String>,
    /// Tensors of projectors, which the configuration does not have: alignment is a matter of training alone.
    pub ignored: Vec<String>,
}

/// What starting from another network's weights left as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FineTuneReport {
    /// Rows of the class table in the source, when they are not as many as here: the table starts anew.
    pub class_table_remade_from: Option<usize>,
    /// Tokens in the source, when they are not as many as here: the position table is the one of the new resolution.
    pub positions_recomputed_from: Option<usize>,
    /// As for plain loading.
    pub loaded: LoadReport,
}

impl<E: Dtype, D: Operators<E>> Network<E, D> {
    /// Takes the weights of every parameter from `source`. Nothing changes unless everything fits.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with the first tensor that is missing, has another shape or has no place, or with the
    /// first key by which the source says that its network computes something else.
    pub fn load_weights(&mut self, source: &impl WeightSource) -> Result<LoadReport, ModelError> {
        self.load_except(source, |_, _| false)
    }

    /// Takes the weights of a network that was trained with another number of classes or another resolution: a class
    /// table of another size stays as initialised, a position table of another size as computed. Projectors that the
    /// source lacks stay as initialised, too: training may begin to align.
    ///
    /// # Errors
    /// As [`load_weights`](Self::load_weights), for every other tensor.
    pub fn start_from(&mut self, source: &impl WeightSource) -> Result<FineTuneReport, ModelError> {
        let mut report = FineTuneReport::default();
        let width = self.config().width;
        report.loaded = self.load_except(source, |parameter, found| {
            let Some(found) = found else {
                return parameter.name().starts_with(PROJECTORS);
            };
            let another_size = found != parameter.shape();
            match (parameter.name(), found) {
                (CLASS_TABLE, &[rows, columns]) if another_size && columns == width => {
                    report.class_table_remade_from = Some(rows);
                    true
                }
                (POSITION_TABLE, &[1, tokens, columns]) if another_size && columns == width => {
                    report.positions_recomputed_from = Some(tokens);
                    true
                }
                _ => false,
            }
        })?;
        Ok(report)
    }

    /// Loads all parameters but those for which `keep(parameter, shape in the source, if it is there)` says that they stay.
    fn load_except(
        &mut self,
        source: &impl WeightSource,
        keep: impl FnMut(&Parameter<E, D>, Option<&[usize]>) -> bool,
    ) -> Result<LoadReport, ModelError> {
        let Selection { taken, report } = self.select(source, keep)?;
        let parameters = self.parameters_mut().into_iter();
        fill(source, &taken, parameters.map(|parameter| &mut parameter.values))?;
        Ok(report)
    }

    /// Which parameters `source` has the values of. Everything is checked that can be without reading the values.
    pub(crate) fn select(
        &self,
        source: &impl WeightSource,
        mut keep: impl FnMut(&Parameter<E, D>, Option<&[usize]>) -> bool,
    ) -> Result<Selection, ModelError> {
        let mut report = LoadReport::default();
        let mut taken = Vec::new();
        for parameter in self.parameters() {
            let name = parameter.name().to_string();
            taken.push(match source.describe(&name) {
                Some((_, shape)) if keep(parameter, Some(&shape)) => None,
                Some((_, found)) if found != parameter.shape() => {
                    let expected = parameter.shape().to_vec();
                    return Err(WeightsError::Shape { name, found, expected }.into());
                }
                Some((file_type, _)) if !is_float(file_type) => {
                    let found = format!("{file_type:?}");
                    return Err(WeightsError::DataType { name, found }.into());
                }
                Some((file_type, _)) => Some((name, file_type)),
                None if !parameter.is_trained() || keep(parameter, None) => {
                    report.kept.push(name);
                    None
                }
                None => {
                    let expected = parameter.shape().to_vec();
                    return Err(WeightsError::Missing { name, expected }.into());
                }
            });
        }
        report.ignored = self.without_place(source)?;
        refuse_another_network(source.facts(), self.config())?;
        Ok(Selection { taken, report })
    }

    fn without_place(&self, source: &impl WeightSource) -> Result<Vec<String>, WeightsError> {
        let mut known: Vec<&str> = self.parameters().iter().map(|p| p.name()).collect();
        known.sort_unstable();
        let mut ignored = Vec::new();
        for name in source.names() {
            if known.binary_search(&name.as_str()).is_ok() {
                continue;
            }
            if !name.starts_with(PROJECTORS) {
                let found = source.describe(&name).map(|(_, shape)| shape);
                return Err(WeightsError::Unexpected {
                    name,
                    found: found.unwrap_or_default(),
                });
            }
            ignored.push(name);
        }
        Ok(ignored)
    }
}

/// The parameters of a network that a source has the values of.
pub(crate) struct Selection {
    /// For every parameter its name and number type in the source, if it is taken from there.
    pub(crate) taken: Vec<Option<(String, FileType)>>,
    report: LoadReport,
}

/// Refuses weights of a network that computes something else from parameters of the same names and shapes.
fn refuse_another_network(theirs: NetworkFacts, ours: &NetworkConfig) -> Result<(), WeightsError> {
    // Every key is named, so that a new one has to find its place.
    let NetworkConfig {
        heads,
        branch_ends,
        legacy_scaling,
        // What the names and the shapes of the tensors show, as far as the network uses it.
        width: _,
        depth: _,
        patch: _,
        latent_channels: _,
        mlp_ratio: _,
        acceleration_width: _,
        qk_norm: _,
        vera,
        // What may be another one in fine-tuning.
        latent_size: _,
        classes: _,
        class_dropout: _,
        alignment_width: _,
        projector_width: _,
    } = ours;
    same("model.heads", theirs.heads, heads)?;
    same("model.branch_ends", theirs.branch_ends, branch_ends)?;
    // Of one branch, or without the gap, there is nothing to clamp.
    let clamps = !branch_ends.is_empty() && vera.time_gap;
    same(
        "model.legacy_scaling",
        theirs.legacy_scaling.filter(|_| clamps),
        legacy_scaling,
    )
}

fn same<V: PartialEq + std::fmt::Debug>(key: &'static str, found: Option<V>, expected: &V) -> Result<(), WeightsError> {
    match found {
        Some(found) if found != *expected => Err(WeightsError::Network {
            key,
            found: format!("{found:?}"),
            expected: format!("{expected:?}"),
        }),
        _ => Ok(()),
    }
}

/// Reads what was selected, one tensor in memory at a time; `values` are of the network's parameters, in their order.
pub(crate) fn fill<'a, E: Dtype, D: Operators<E>>(
    source: &impl WeightSource,
    taken: &[Option<(String, FileType)>],
    values: impl Iterator<Item = &'a mut Vector<E, D>>,
) -> Result<(), WeightsError> {
    for (values, taken) in values.zip(taken) {
        if let Some((name, file_type)) = taken {
            values.copy_from(&decode::<E>(&source.read(name)?, *file_type));
        }
    }
    Ok(())
}

fn is_float(file_type: FileType) -> bool {
    matches!(
        file_type,
        FileType::F32 | FileType::F64 | FileType::F16 | FileType::BF16
    )
}

/// The values of a tensor of any floating-point type.
fn decode<E: Dtype>(bytes: &[u8], file_type: FileType) -> Vec<E> {
    fn each<E: Dtype, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<E> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|&chunk| scalar(value(chunk))).collect()
    }
    match file_type {
        FileType::F64 => each(bytes, f64::from_le_bytes),
        FileType::F16 => each(bytes, |b| f16::from_le_bytes(b).into()),
        FileType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).into()),
        _ => each(bytes, |b| f32::from_le_bytes(b).into()),
    }
}
