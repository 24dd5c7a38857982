//! The values of dfdx's CPU tensors as slices, without copying them.

use dfdx::prelude::{Cpu, CpuError, Gradients, HasShape, ReshapeTo, Shape, Tape, Tensor, TensorFromVec};

use crate::ops::plain::record::record;
use crate::ops::{Matrix, Vector};

/// The same matrix with its rows one after the other; a matrix that is so already is only borrowed again.
pub(super) fn contiguous<T: Tape<f32, Cpu>>(tape: &mut T, x: &Matrix<f32, Cpu>) -> Result<Matrix<f32, Cpu>, CpuError> {
    let shape = *x.shape();
    record(tape, x, |x| x.try_reshape_like(&shape))
}

/// [`contiguous`] for a vector, which may be one value broadcast.
pub(super) fn contiguous_vector<T: Tape<f32, Cpu>>(
    tape: &mut T,
    x: &Vector<f32, Cpu>,
) -> Result<Vector<f32, Cpu>, CpuError> {
    let shape = *x.shape();
    record(tape, x, |x| x.try_reshape_like(&shape))
}

/// Tensors whose values can be read as one slice. Only for tensors that are contiguous.
pub(super) trait Values {
    /// All values, row by row.
    fn values(&self) -> &[f32];
}

/// Tensors whose values can be written as one slice. Only for tensors that are contiguous.
pub(super) trait ValuesMut {
    /// All values. Copies them first if another tensor shares them.
    fn values_mut(&mut self) -> &mut [f32];
}

/// Index of the first value.
fn first<S: Shape>() -> S::Concrete {
    Default::default()
}

impl<S: Shape> Values for Tensor<S, f32, Cpu> {
    fn values(&self) -> &[f32] {
        let len = self.shape().num_elements();
        if len == 0 {
            return &[];
        }
        let start: *const f32 = &self[first::<S>()];
        // SAFETY: the tensor is contiguous: `contiguous` has seen to it, or an operator of this module made it, so its
        // buffer holds `len` values from the first on; the borrow of the tensor keeps the buffer.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl<S: Shape> ValuesMut for Tensor<S, f32, Cpu> {
    fn values_mut(&mut self) -> &mut [f32] {
        let len = self.shape().num_elements();
        if len == 0 {
            return &mut [];
        }
        let start: *mut f32 = &mut self[first::<S>()];
        // SAFETY: as in `values`; the index operator has made the buffer this tensor's own, and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

/// A tensor of the given values.
pub(super) fn matrix(device: &Cpu, values: Vec<f32>, shape: (usize, usize)) -> Result<Matrix<f32, Cpu>, CpuError> {
    device.try_tensor_from_vec(values, shape)
}

/// The gradient of a tensor, taken out of the store so that others can be borrowed beside it.
pub(super) fn taken<S: Shape>(
    gradients: &mut Gradients<f32, Cpu>,
    tensor: &Tensor<S, f32, Cpu>,
) -> Result<Vec<f32>, CpuError> {
    Ok(std::mem::take(&mut **gradients.get_or_alloc_mut(tensor)?))
}
