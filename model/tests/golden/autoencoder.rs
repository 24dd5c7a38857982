//! The autoencoder on the CUDA device against diffusers: every `vae_*` case, in both precisions.

use deepflow_model::autoencoder::AutoencoderKl;
use deepflow_model::convert::SafetensorsFile;
use deepflow_model::device::AnyDevice;

use crate::case;
use crate::emulation::device;

/// How far the largest error may be: of mean and deviation, and of the picture against its spread.
struct Tolerances {
    posterior: f32,
    picture: f32,
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A number that is not one is no small difference.
    differences.fold(0.0, |most, found| if found <= most { most } else { found })
}

fn spread(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

fn check(device: &AnyDevice, half_precision: bool, tolerances: &Tolerances) {
    let mut cases = 0;
    for entry in std::fs::read_dir(case::directory()).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if !folder.is_dir() || !name.starts_with("vae_") {
            continue;
        }
        cases += 1;
        let autoencoder = AutoencoderKl::load_on(&folder, device, half_precision).unwrap();
        let io = SafetensorsFile::open(folder.with_file_name(format!("{name}_io.safetensors"))).unwrap();
        let [pixels, mean, std, decoded] =
            ["in.pixels", "out.mean", "out.std", "out.decoded"].map(|name| io.read(name).unwrap());
        let &[batch, _, height, width] = pixels.shape.as_slice() else {
            panic!("in.pixels {:?}", pixels.shape)
        };
        let pictures: Vec<f32> = pixels
            .to_f32()
            .unwrap()
            .iter()
            .map(|pixel| pixel / 127.5 - 1.0)
            .collect();
        let [mean, std, decoded] = [mean, std, decoded].map(|tensor| tensor.to_f32().unwrap());
        let posteriors = autoencoder.encode_batch(&pictures, height, width).unwrap();
        assert_eq!(posteriors.len(), batch);
        let [_, rows, columns] = posteriors[0].shape;
        let found = autoencoder.decode_batch(&mean, rows, columns).unwrap();
        let all = |values: fn(&deepflow_model::autoencoder::Posterior) -> &[f32]| -> Vec<f32> {
            posteriors.iter().flat_map(values).copied().collect()
        };
        let errors = [
            largest_difference(&all(|posterior| &posterior.mean), &mean),
            largest_difference(&all(|posterior| &posterior.std), &std),
            largest_difference(&found, &decoded) / spread(&decoded),
        ];
        println!("{name}: mean, std, decoded off by {errors:?}");
        assert!(
            errors[0] < tolerances.posterior && errors[1] < tolerances.posterior && errors[2] < tolerances.picture,
            "{name}: {errors:?}"
        );
    }
    assert!(cases > 0, "no vae_* case in {}", case::directory().display());
}

/// With the tolerances of the processor.
#[test]
fn in_f32_it_is_that_of_diffusers() {
    let Some(cuda) = device() else { return };
    let tolerances = Tolerances {
        posterior: 2e-5,
        picture: 1e-4,
    };
    check(&AnyDevice::Cuda(cuda), false, &tolerances);
}

#[test]
fn in_half_precision_it_is_close() {
    let Some(cuda) = device() else { return };
    let tolerances = Tolerances {
        posterior: 1e-2,
        picture: 5e-2,
    };
    check(&AnyDevice::Cuda(cuda), true, &tolerances);
}
