//! Inception-v3 against golden numbers, with weights that a formula gives.
#![allow(clippy::unwrap_used)]

use deepflow_model::inception::{resize, Inception, InceptionError, ResizeMode, WeightSource};
use deepflow_model::inception::{POOL_FEATURES, SPATIAL_FEATURES};
use deepflow_model::torch_pickle::{PythonObject, TensorData, TorchWriter};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// The weights of ../shared/golden/README.md: splitmix64 of the index, salted by the name.
struct HashedWeights {
    seed: u64,
}

impl WeightSource for HashedWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InceptionError> {
        let mut crc = flate2::Crc::new();
        crc.update(name.as_bytes());
        let salt = (u64::from(crc.sum()) + 7919 * self.seed) & 0xffff_ffff;
        let uniform = |index: u64| {
            let mut z = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let inputs: usize = shape[1..].iter().product();
        let value = |u: f64| {
            let c = 2.0 * u - 1.0;
            match shape.len() {
                4 => c * (6.0 / inputs as f64).sqrt(),
                2 => c * (3.0 / inputs as f64).sqrt(),
                _ if name.ends_with("running_var") => 1.0 + 0.5 * u,
                _ if name.ends_with("bn.weight") => 1.0 + 0.1 * c,
                _ => 0.1 * c,
            }
        };
        Ok((0..shape.iter().product::<usize>() as u64)
            .map(|index| value(uniform(index)) as f32)
            .collect())
    }
}

fn golden_cases() -> Vec<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let folder = std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or(default, PathBuf::from);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("inception_"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no inception_* in {}", folder.display());
    paths
}

fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    match tensor.dtype() {
        Dtype::F32 => tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        Dtype::F64 => tensor
            .data()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32)
            .collect(),
        Dtype::U8 => tensor.data().iter().map(|&b| f32::from(b)).collect(),
        other => panic!("{other:?}"),
    }
}

/// Within a share of the spread (standard deviation) of the expected values.
fn check(what: &str, found: &[f32], expected: &[f32], share: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let variance = expected.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / expected.len() as f32;
    let error = found
        .iter()
        .zip(expected)
        .fold(0f32, |error, (a, b)| error.max((a - b).abs()));
    assert!(variance > 0.0);
    assert!(
        error <= share * variance.sqrt(),
        "{what}: error {error}, spread {}",
        variance.sqrt()
    );
}

#[test]
fn golden_outputs_within_a_thousandth_of_their_spread() {
    for path in golden_cases() {
        let bytes = std::fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let weights = &metadata.metadata().as_ref().unwrap()["weights"];
        let seed = serde_json::from_str::<serde_json::Value>(weights).unwrap()["seed"]
            .as_u64()
            .unwrap();
        let network = Inception::new(&HashedWeights { seed }).unwrap();
        let features = network.features(&f32s(&tensors, "in.image")).unwrap();
        let batch = features.pool.len() / POOL_FEATURES;
        assert_eq!(features.spatial.len(), batch * SPATIAL_FEATURES);
        check("pool", &features.pool, &f32s(&tensors, "out.pool"), 1e-3);
        check("spatial", &features.spatial, &f32s(&tensors, "out.spatial"), 1e-3);
        let bias = network.classifier_bias();
        let logits: Vec<f32> = features
            .logits_without_bias
            .chunks_exact(bias.len())
            .flat_map(|row| row.iter().zip(bias).map(|(logit, bias)| logit + bias))
            .collect();
        check("logits", &logits, &f32s(&tensors, "out.logits"), 1e-3);
    }
}

#[test]
fn golden_resizes() {
    for path in golden_cases() {
        let bytes = std::fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let input = tensors.tensor("resize.in").unwrap();
        let size = (input.shape()[2], input.shape()[3]);
        let mut compared = 0;
        for name in tensors.names() {
            let mode = if name.starts_with("resize.tf1") {
                ResizeMode::Tf1
            } else if name.starts_with("resize.half_pixel") {
                ResizeMode::HalfPixel
            } else {
                continue;
            };
            let target = tensors.tensor(name).unwrap().shape().to_vec();
            let resized = resize(input.data(), size, (target[2], target[3]), mode);
            for (found, expected) in resized.iter().zip(f32s(&tensors, name)) {
                assert!((found - expected).abs() < 1e-3, "{name}: {found} != {expected}");
            }
            compared += 1;
        }
        assert!(compared >= 2, "{}", path.display());
    }
}

#[test]
fn a_picture_of_the_right_size_is_left_as_it_is() {
    let pixels: Vec<u8> = (0..3 * 5 * 4).map(|value| value * 4).collect();
    let same: Vec<f32> = pixels.iter().map(|&value| f32::from(value)).collect();
    for mode in [ResizeMode::Tf1, ResizeMode::HalfPixel] {
        assert_eq!(resize(&pixels, (5, 4), (5, 4), mode), same);
    }
}

/// Hands on what another source gives, and remembers it.
struct Recorded<W>(W, RefCell<Vec<(String, TensorData)>>);

impl<W: WeightSource> WeightSource for Recorded<W> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InceptionError> {
        let values = self.0.tensor(name, shape)?;
        let data = TensorData::from_f32(shape.to_vec(), &values);
        self.1.borrow_mut().push((name.to_owned(), data));
        Ok(values)
    }
}

/// Writes weights as `torch.save(state_dict)` does: torchvision's names, and what the network here has no use for.
fn write_torch_file(path: &Path, tensors: &[(String, TensorData)]) {
    let mut writer = TorchWriter::create(path).unwrap();
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        entries.push((PythonObject::text(name), writer.tensor(tensor).unwrap()));
    }
    let count = TensorData {
        dtype: Dtype::I64,
        shape: Vec::new(),
        bytes: vec![0; 8],
    };
    for unused in ["Conv2d_1a_3x3.bn.num_batches_tracked", "AuxLogits.fc.bias"] {
        entries.push((PythonObject::text(unused), writer.tensor(&count).unwrap()));
    }
    writer.finish(&PythonObject::Dict(entries)).unwrap();
}

#[test]
fn a_torch_file_and_a_safetensors_file_give_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let recorded = Recorded(HashedWeights { seed: 3 }, RefCell::default());
    let expected = Inception::new(&recorded).unwrap();
    let mut tensors = recorded.1.into_inner();
    write_torch_file(&at("inception.pth"), &tensors);
    let views = tensors.iter().map(|(name, data)| {
        (
            name.clone(),
            TensorView::new(data.dtype, data.shape.clone(), &data.bytes).unwrap(),
        )
    });
    std::fs::write(
        at("inception.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();

    let picture: Vec<f32> = (0..3 * 299 * 299).map(|i| (i % 251) as f32).collect();
    let expected = expected.features(&picture).unwrap();
    for file in ["inception.pth", "inception.safetensors"] {
        let network = Inception::load(at(file)).unwrap();
        assert_eq!(network.features(&picture).unwrap(), expected, "{file}");
    }

    let classifier = tensors.iter_mut().find(|(name, _)| name == "fc.weight").unwrap();
    classifier.1.shape = vec![2048, 1008];
    write_torch_file(&at("other.pth"), &tensors);
    let refusal = Inception::load(at("other.pth")).err().unwrap().to_string();
    assert!(
        refusal.contains("other.pth: tensor `fc.weight` has shape [2048, 1008], expected [1008, 2048]"),
        "{refusal}"
    );
}

#[test]
fn weights_of_other_networks_are_refused_by_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let message = |path: &str| Inception::load(folder.join(path)).err().unwrap().to_string();
    let other = message("golden/sit_1t.safetensors");
    assert!(
        other.contains("sit_1t.safetensors: tensor `Conv2d_1a_3x3.conv.weight` is missing, expected [32, 3, 3, 3]"),
        "{other}"
    );
    let hostile = message("torch/hostile_zip.pt");
    assert!(hostile.contains("posix.system"), "{hostile}");
}
