//! The same operator on the CUDA device, in both precisions, and as plain dfdx operations in f64.

use deepflow_datasets::random::{Purpose, Stream};
use half::f16;
use num_traits::{FromPrimitive, ToPrimitive};

/// Values of a named input, the same for every device.
pub fn values(name: u64, count: usize) -> Vec<f64> {
    let mut values = vec![0.0; count];
    Stream::new(7, Purpose::Synthetic, 0, name).fill_normal(&mut values);
    // Exact in half precision, so that every device starts from the same numbers.
    values
        .into_iter()
        .map(|value| f64::from(f16::from_f32(value)))
        .collect()
}

/// The same in the precision of a device.
pub fn values_as<E: FromPrimitive>(name: u64, count: usize) -> Vec<E> {
    let exact = values(name, count).into_iter();
    exact.map(|value| E::from_f64(value).unwrap()).collect()
}

/// Back again.
pub fn f64s<E: ToPrimitive>(values: Vec<E>) -> Vec<f64> {
    values.into_iter().map(|value| value.to_f64().unwrap()).collect()
}

/// What one device computed: the output and the gradient of every input.
#[derive(Debug)]
pub struct Results(pub Vec<(&'static str, Vec<f64>)>);

impl Results {
    /// Every number within `tolerance` of the reference, relative to the largest of its tensor, or, for gradients that
    /// cancel to almost nothing, to a hundredth of the largest gradient.
    #[track_caller]
    pub fn assert_close(&self, reference: &Self, tolerance: f64, case: &str) {
        let largest = |values: &[f64]| values.iter().fold(1e-30f64, |most, value| most.max(value.abs()));
        let gradients = reference.0.iter().skip(1).map(|(_, values)| largest(values));
        let floor = 0.01 * gradients.fold(0.0, f64::max);
        for ((name, found), (_, expected)) in self.0.iter().zip(&reference.0) {
            assert_eq!(found.len(), expected.len(), "{case}: length of {name}");
            let largest = largest(expected).max(floor);
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (found - expected).abs() / largest;
                assert!(
                    error <= tolerance,
                    "{case}: {name}[{i}] is {found}, expected {expected} ({error:.1e} of the largest)"
                );
            }
        }
    }
}

/// Largest deviations accepted.
pub const F32: f64 = 2e-5;
pub const F16: f64 = 2e-2;

/// Runs `$body` on one device in one precision with `$device`, `$tape` and the inputs bound; it returns an output and a
/// loss, from which the gradients of all inputs are computed. Inputs are `name: (rows, columns)` for matrices,
/// `name: (length,)` for vectors.
macro_rules! results_on {
    ($dev:expr, $D:ty, $E:ty, |$device:ident, $tape:ident| [$($name:ident: $shape:expr),*] $body:expr) => {{
        use dfdx::prelude::*;
        let $device: $D = $dev;
        let mut number = 0;
        $(
            let shape = $shape;
            number += 1;
            let $name: Tensor<_, $E, $D> = $device
                .try_tensor_from_vec(compare::values_as::<$E>(number, shape.num_elements()), shape)
                .unwrap();
        )*
        let mut owned = OwnedTape::<$E, $D>::default();
        let (out, loss) = {
            let $tape = &mut owned;
            $body
        };
        let mut gradients = loss.put_tape(owned).backward();
        compare::Results(vec![
            ("output", compare::f64s(out.as_vec())),
            $((concat!("gradient of ", stringify!($name)), {
                gradients.get_or_alloc_mut(&$name).unwrap();
                compare::f64s(gradients.get(&$name).as_vec())
            })),*
        ])
    }};
}

/// Compares an operator that gives a loss on the CUDA device in f32 and f16 with the plain one in f64.
macro_rules! check_loss {
    ($cuda:expr, $case:expr, |$device:ident, $tape:ident| [$($inputs:tt)*] $body:expr) => {
        check_both!($cuda, $case, |$device, $tape| [$($inputs)*] {
            let loss = $body;
            (loss.clone(), loss)
        })
    };
}

/// Compares an operator that gives a matrix; backwards from the mean square of its distance to a fixed target.
macro_rules! check {
    ($cuda:expr, $case:expr, |$device:ident, $tape:ident| [$($inputs:tt)*] $body:expr) => {
        check_both!($cuda, $case, |$device, $tape| [$($inputs)*] {
            let out = $body;
            let target = compare::values_as(99, out.shape().num_elements());
            let target = $device.try_tensor_from_vec(target, *out.shape()).unwrap();
            let loss = $device.mean_squared_error($tape, &out, &target).unwrap();
            (out, loss)
        })
    };
}

/// Compares what `check!` and `check_loss!` run.
macro_rules! check_both {
    ($cuda:expr, $case:expr, |$device:ident, $tape:ident| [$($inputs:tt)*] $body:expr) => {{
        let reference = results_on!(dfdx::tensor::Cpu::default(), dfdx::tensor::Cpu, f64, |$device, $tape| [$($inputs)*] $body);
        let single = results_on!($cuda.clone(), dfdx::tensor::Cuda, f32, |$device, $tape| [$($inputs)*] $body);
        single.assert_close(&reference, compare::F32, &format!("{} in f32", $case));
        let half = results_on!($cuda.clone(), dfdx::tensor::Cuda, half::f16, |$device, $tape| [$($inputs)*] $body);
        half.assert_close(&reference, compare::F16, &format!("{} in f16", $case));
    }};
}
