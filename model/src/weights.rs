//! Weights by name: from safetensors into a network and back.

use dfdx::prelude::{Device, Dtype};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as FileType, SafeTensors};

use crate::error::{ModelError, WeightsError};
use crate::network::Network;
use crate::ops::{scalar, Operators};
use crate::parameters::Parameter;

/// Names of the two tables that fine-tuning may make anew.
const CLASS_TABLE: &str = "y_embedder.embedding_table.weight";
const POSITION_TABLE: &str = "pos_embed";
/// What the names of projectors begin with.
const PROJECTORS: &str = "projectors.";

/// Tensors by name, whatever file or prefix they come from.
pub trait WeightSource {
    /// The tensor of this name.
    fn tensor(&self, name: &str) -> Option<TensorView<'_>>;
    /// All names, sorted.
    fn names(&self) -> Vec<String>;
}

impl WeightSource for SafeTensors<'_> {
    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        SafeTensors::tensor(self, name).ok()
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
    /// [`ModelError::Weights`] with the first tensor that is missing, has another shape or has no place.
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
        mut keep: impl FnMut(&Parameter<E, D>, Option<&[usize]>) -> bool,
    ) -> Result<LoadReport, ModelError> {
        let mut report = LoadReport::default();
        let mut loaded = Vec::new();
        for parameter in self.parameters() {
            loaded.push(match source.tensor(parameter.name()) {
                Some(view) if keep(parameter, Some(view.shape())) => None,
                Some(view) => Some(values_for(parameter, &view)?),
                None if !parameter.is_trained() || keep(parameter, None) => {
                    report.kept.push(parameter.name().to_string());
                    None
                }
                None => {
                    return Err(WeightsError::Missing {
                        name: parameter.name().to_string(),
                        expected: parameter.shape().to_vec(),
                    }
                    .into())
                }
            });
        }
        report.ignored = self.without_place(source)?;
        for (parameter, values) in self.parameters_mut().into_iter().zip(loaded) {
            if let Some(values) = values {
                parameter.values.copy_from(&values);
            }
        }
        Ok(report)
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
                let found = source.tensor(&name).map(|view| view.shape().to_vec());
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

fn values_for<E: Dtype, D: Device<E>>(
    parameter: &Parameter<E, D>,
    view: &TensorView<'_>,
) -> Result<Vec<E>, WeightsError> {
    if view.shape() != parameter.shape() {
        return Err(WeightsError::Shape {
            name: parameter.name().to_string(),
            found: view.shape().to_vec(),
            expected: parameter.shape().to_vec(),
        });
    }
    decode(parameter.name(), view)
}

/// The values of a tensor of any floating-point type.
fn decode<E: Dtype>(name: &str, view: &TensorView<'_>) -> Result<Vec<E>, WeightsError> {
    fn each<E: Dtype, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<E> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|&chunk| scalar(value(chunk))).collect()
    }
    let bytes = view.data();
    Ok(match view.dtype() {
        FileType::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        FileType::F64 => each(bytes, f64::from_le_bytes),
        FileType::F16 => each(bytes, |b| f16::from_le_bytes(b).into()),
        FileType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).into()),
        other => {
            return Err(WeightsError::DataType {
                name: name.to_string(),
                found: format!("{other:?}"),
            })
        }
    })
}
