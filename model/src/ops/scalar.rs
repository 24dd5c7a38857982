//! A constant of the formulas in the precision of the tensors.

use dfdx::dtypes::Dtype;

/// A constant of the formulas in the precision of the tensors.
pub(crate) fn scalar<E: Dtype>(value: f64) -> E {
    // Every floating-point type converts (possibly to infinity); integer tensors never reach the network.
    E::from_f64(value).unwrap_or_default()
}
