//! The named parameters of a network: checkpoint names, shapes, and how each is initialised.

use dfdx::prelude::{Device, Dtype, HasShape, ReshapeTo};

use crate::init::Initial;
use crate::ops::{Matrix, Vector};

/// One parameter. Its values are kept flat; views in two dimensions are the same tensor to the tape.
#[derive(Clone, Debug)]
pub struct Parameter<E: Dtype, D: Device<E>> {
    name: String,
    shape: Vec<usize>,
    trained: bool,
    /// The values, `(product of the shape,)`.
    pub values: Vector<E, D>,
}

impl<E: Dtype, D: Device<E>> Parameter<E, D> {
    /// The name in checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape in checkpoints.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.shape().0
    }

    /// Whether there are no values at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the loss reaches this parameter. The others (the position table, and in a network without branches the
    /// heads of inner branches and the gap embedder) are kept for checkpoints and never move.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    pub(crate) fn vector(&self) -> &Vector<E, D> {
        &self.values
    }

    /// The values as `(first dimension, all others)`.
    pub(crate) fn matrix(&self) -> Result<Matrix<E, D>, D::Err> {
        self.as_matrix(self.shape[0])
    }

    /// The values as `(rows, all others)`.
    pub(crate) fn as_matrix(&self, rows: usize) -> Result<Matrix<E, D>, D::Err> {
        self.values.clone().try_reshape_like(&(rows, self.len() / rows))
    }
}

/// Anything with parameters, in the order of the checkpoint.
pub(crate) trait HasParameters<E: Dtype, D: Device<E>> {
    fn collect<'a>(&'a self, into: &mut Vec<&'a Parameter<E, D>>);
    fn collect_mut<'a>(&'a mut self, into: &mut Vec<&'a mut Parameter<E, D>>);
}

impl<E: Dtype, D: Device<E>> HasParameters<E, D> for Parameter<E, D> {
    fn collect<'a>(&'a self, into: &mut Vec<&'a Parameter<E, D>>) {
        into.push(self);
    }

    fn collect_mut<'a>(&'a mut self, into: &mut Vec<&'a mut Parameter<E, D>>) {
        into.push(self);
    }
}

impl<E: Dtype, D: Device<E>, M: HasParameters<E, D>> HasParameters<E, D> for Vec<M> {
    fn collect<'a>(&'a self, into: &mut Vec<&'a Parameter<E, D>>) {
        self.iter().for_each(|module| module.collect(into));
    }

    fn collect_mut<'a>(&'a mut self, into: &mut Vec<&'a mut Parameter<E, D>>) {
        self.iter_mut().for_each(|module| module.collect_mut(into));
    }
}

impl<E: Dtype, D: Device<E>, M: HasParameters<E, D>> HasParameters<E, D> for Option<M> {
    fn collect<'a>(&'a self, into: &mut Vec<&'a Parameter<E, D>>) {
        self.iter().for_each(|module| module.collect(into));
    }

    fn collect_mut<'a>(&'a mut self, into: &mut Vec<&'a mut Parameter<E, D>>) {
        self.iter_mut().for_each(|module| module.collect_mut(into));
    }
}

/// The parameters of a module are those of its fields, in the given order.
macro_rules! parameters_of {
    ($module:ident: $($field:ident),+) => {
        impl<E: dfdx::prelude::Dtype, D: $crate::ops::Operators<E>>
            $crate::parameters::HasParameters<E, D> for $module<E, D>
        {
            fn collect<'a>(&'a self, into: &mut Vec<&'a $crate::parameters::Parameter<E, D>>) {
                $($crate::parameters::HasParameters::collect(&self.$field, into);)+
            }

            fn collect_mut<'a>(
                &'a mut self,
                into: &mut Vec<&'a mut $crate::parameters::Parameter<E, D>>,
            ) {
                $($crate::parameters::HasParameters::collect_mut(&mut self.$field, into);)+
            }
        }
    };
}
pub(crate) use parameters_of;

/// Makes parameters under a path of names.
pub(crate) struct Builder<'a, E: Dtype, D: Device<E>> {
    device: &'a D,
    seed: u64,
    path: String,
    trained: bool,
    outline: bool,
    element: std::marker::PhantomData<E>,
}

impl<'a, E: Dtype, D: Device<E>> Builder<'a, E, D> {
    pub(crate) fn new(device: &'a D, seed: u64) -> Self {
        Self {
            device,
            seed,
            path: String::new(),
            trained: true,
            outline: false,
            element: std::marker::PhantomData,
        }
    }

    /// Makes parameters that have names and shapes but no values.
    pub(crate) fn outline(device: &'a D) -> Self {
        Self {
            outline: true,
            ..Self::new(device, 0)
        }
    }

    /// The same below the part `name`.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            path: self.join(name),
            ..*self
        }
    }

    /// The same for parameters that the loss reaches only if `trained`.
    pub(crate) fn trained(&self, trained: bool) -> Self {
        Self {
            path: self.path.clone(),
            trained,
            ..*self
        }
    }

    /// A new parameter named `name` below the current path.
    pub(crate) fn parameter(&self, name: &str, shape: &[usize], initial: Initial) -> Result<Parameter<E, D>, D::Err> {
        let name = self.join(name);
        let values = if self.outline {
            Vec::new()
        } else {
            initial.values(self.seed, &name, shape)
        };
        let length = values.len();
        Ok(Parameter {
            values: self.device.try_tensor_from_vec(values, (length,))?,
            name,
            shape: shape.to_vec(),
            trained: self.trained,
        })
    }

    fn join(&self, name: impl std::fmt::Display) -> String {
        if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}
