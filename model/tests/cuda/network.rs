//! Networks on the CUDA device: what it refuses.

use deepflow_model::{ModelError, Network, NetworkConfig};
use dfdx::tensor::Cuda;
use half::f16;

use crate::emulation::device;

#[test]
fn heads_wider_than_the_kernels_take_are_refused_by_name() {
    let Some(cuda) = device() else { return };
    let config = |width| NetworkConfig {
        width,
        heads: 2,
        depth: 2,
        latent_size: 4,
        classes: 2,
        branch_ends: vec![1],
        acceleration_width: 8,
        ..NetworkConfig::default()
    };
    Network::<f32, Cuda>::new(config(256), cuda.clone(), 0).unwrap();
    let refused = [
        Network::<f32, Cuda>::new(config(260), cuda.clone(), 0).map(drop),
        Network::<f16, Cuda>::new(config(260), cuda, 0).map(drop),
    ];
    for refused in refused {
        let Err(ModelError::Config(error)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((error.key, error.found.as_str()), ("model.heads", "2"));
        assert!(error.rule.contains("heads of 130 columns"), "{error}");
    }
}
