//! The autoencoder against diffusers: every `vae_*` case of DEEPFLOW_GOLDEN_DIR, or of the project's own fixtures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use deepflow_model::autoencoder::{AutoencoderConfig, AutoencoderKl};
use deepflow_model::convert::SafetensorsFile;
use deepflow_model::torch_pickle::TensorData;
use safetensors::tensor::TensorView;
use safetensors::Dtype;

fn golden_directory() -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or(fixtures, PathBuf::from)
}

/// Folders `vae_*` with the numbers in `vae_*_io.safetensors` beside them.
fn cases() -> Vec<(PathBuf, PathBuf)> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(golden_directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.retain(|path| path.is_dir() && path.file_name().unwrap().to_string_lossy().starts_with("vae_"));
    folders.sort();
    assert!(!folders.is_empty(), "no vae_* case in {}", golden_directory().display());
    folders
        .into_iter()
        .map(|folder| {
            let io = format!("{}_io.safetensors", folder.file_name().unwrap().to_string_lossy());
            (folder.clone(), folder.with_file_name(io))
        })
        .collect()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn spread(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

/// Encodes and decodes the pictures of `io` and compares with what diffusers made of them.
fn check(folder: &Path, io: &Path) {
    let autoencoder = AutoencoderKl::load(folder).unwrap();
    let io = SafetensorsFile::open(io).unwrap();
    let tensor = |name: &str| io.read(name).unwrap();
    let pixels = tensor("in.pixels");
    let &[batch, channels, height, width] = pixels.shape.as_slice() else {
        panic!("in.pixels {:?}", pixels.shape)
    };
    let pictures: Vec<f32> = pixels
        .to_f32()
        .unwrap()
        .iter()
        .map(|pixel| pixel / 127.5 - 1.0)
        .collect();
    let [mean, std, decoded, bytes] =
        ["out.mean", "out.std", "out.decoded", "out.pixels_f32"].map(|name| tensor(name).to_f32().unwrap());
    for image in 0..batch {
        let part = |values: &'_ [f32]| {
            let len = values.len() / batch;
            values[image * len..(image + 1) * len].to_vec()
        };
        let posterior = autoencoder.encode(&part(&pictures), height, width).unwrap();
        let [_, rows, columns] = posterior.shape;
        let found = autoencoder.decode(&part(&mean), rows, columns).unwrap();
        assert_eq!(found.len(), channels * height * width);
        let errors = [
            largest_difference(&posterior.mean, &part(&mean)),
            largest_difference(&posterior.std, &part(&std)),
            largest_difference(&found, &part(&decoded)) / spread(&part(&decoded)),
        ];
        println!(
            "{} image {image}: mean, std, decoded off by {errors:?}",
            folder.display()
        );
        assert!(
            errors[0] < 2e-5 && errors[1] < 2e-5 && errors[2] < 1e-4,
            "{}: {errors:?}",
            folder.display()
        );
        let levels: Vec<f32> = found
            .iter()
            .map(|value| ((value + 1.0) * 127.5).clamp(0.0, 255.0).round())
            .collect();
        assert!(largest_difference(&levels, &part(&bytes)) <= 1.0);
    }
}

#[test]
fn every_golden_case_is_encoded_and_decoded_as_by_diffusers() {
    for (folder, io) in cases() {
        check(&folder, &io);
    }
}

/// The interpreter with diffusers, or `None` with a line that says so.
fn python_with_diffusers() -> Option<String> {
    let python = std::env::var("DEEPFLOW_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let works = Command::new(&python)
        .args(["-c", "import diffusers, safetensors"])
        .output();
    if works.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!("SKIPPED: {python} has no diffusers (set DEEPFLOW_PYTHON to an interpreter that has)");
    None
}

/// Makes an autoencoder in every format diffusers writes, with what diffusers makes of a picture.
const MAKE_AUTOENCODERS: &str = r#"
import sys, torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
torch.manual_seed(7)
root = sys.argv[1]
# Names, sizes and formats that differ from the golden cases: SDXL's scale, 16 channels and a shift as in SD3, no quant
# convolutions, an odd number of 8 pixels, and Stable Diffusion's widths, whose sums are the longest.
kinds = {
    "four_channels": dict(latent_channels=4, block_out_channels=[32, 48, 64, 64], norm_num_groups=16, layers_per_block=2, scaling_factor=0.13025),
    "sixteen_channels": dict(latent_channels=16, block_out_channels=[32, 64, 64, 64], norm_num_groups=32, layers_per_block=1,
        shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
    "full_width": dict(latent_channels=4, block_out_channels=[128, 256, 512, 512], norm_num_groups=32, layers_per_block=1),
    "sharded_bin": dict(latent_channels=4, block_out_channels=[24, 48], norm_num_groups=8, layers_per_block=2),
    "without_attention": dict(latent_channels=4, block_out_channels=[20, 40], norm_num_groups=4, layers_per_block=1, mid_block_add_attention=False),
}
for name, config in kinds.items():
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels, **config).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
        pixels = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
        posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
        decoded = vae.decode(posterior.mean).sample
    shards = {"max_shard_size": "300KB"} if name in ("sixteen_channels", "sharded_bin") else {}
    pickled = name in ("without_attention", "sharded_bin")
    vae.save_pretrained(f"{root}/{name}", safe_serialization=not pickled, **shards)
    save_file({"in.pixels": pixels, "out.mean": posterior.mean.contiguous(), "out.std": posterior.std.contiguous(),
        "out.decoded": decoded.contiguous(), "out.pixels_f32": ((decoded + 1) * 127.5).clamp(0, 255).contiguous()}, f"{root}/{name}_io.safetensors")
"#;

#[test]
fn fresh_autoencoders_of_diffusers_are_encoded_and_decoded_alike() {
    let Some(python) = python_with_diffusers() else { return };
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(python)
        .args(["-c", MAKE_AUTOENCODERS])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for name in ["sixteen_channels", "sharded_bin"] {
        let files = std::fs::read_dir(folder.path().join(name)).unwrap().count();
        assert!(files > 3, "the weights of {name} came in one file");
    }
    for name in [
        "four_channels",
        "sixteen_channels",
        "full_width",
        "sharded_bin",
        "without_attention",
    ] {
        check(
            &folder.path().join(name),
            &folder.path().join(format!("{name}_io.safetensors")),
        );
    }
}

/// A copy of the first golden case whose weights went through `change`.
fn changed(change: impl Fn(&mut BTreeMap<String, TensorData>)) -> tempfile::TempDir {
    let (folder, _) = cases().remove(0);
    let weights = SafetensorsFile::open(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    let names: Vec<String> = weights.tensors().map(|(name, _, _)| name.to_owned()).collect();
    let mut tensors = names
        .into_iter()
        .map(|name| (name.clone(), weights.read(&name).unwrap()))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, tensor)| {
        (
            name,
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap(),
        )
    });
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), copy.path().join("config.json")).unwrap();
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(copy.path().join("diffusion_pytorch_model.safetensors"), bytes).unwrap();
    copy
}

fn refusal(folder: &Path) -> String {
    AutoencoderKl::load(folder)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default()
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = changed(|tensors| {
        let moved = tensors.remove("encoder.conv_in.bias").unwrap();
        tensors.insert("encoder.conv_in.bios".to_owned(), moved);
        let transposed = tensors.get_mut("encoder.conv_in.weight").unwrap();
        transposed.shape.reverse();
    });
    let message = refusal(folder.path());
    for part in [
        "missing encoder.conv_in.bias",
        "unexpected encoder.conv_in.bios",
        "encoder.conv_in.weight has shape [3, 3, 3, ",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        message.starts_with(&folder.path().display().to_string()) && !message.contains('\n'),
        "{message}"
    );
}

#[test]
fn half_precision_and_compvis_names_load_alike() {
    let (folder, _) = cases().remove(0);
    let levels = AutoencoderKl::load(&folder).unwrap().config().block_out_channels.len();
    let compvis = |name: &str| {
        let mut name = format!("first_stage_model.{name}");
        for level in 0..levels {
            let (up, down) = (format!("up_blocks.{level}."), format!("down_blocks.{level}."));
            name = name
                .replace(&up, &format!("up.{}.", levels - 1 - level))
                .replace(&down, &format!("down.{level}."));
        }
        for (ours, theirs) in [
            ("mid_block.attentions.0.", "mid.attn_1."),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("resnets.", "block."),
            ("upsamplers.0", "upsample"),
            ("downsamplers.0", "downsample"),
            ("group_norm", "norm"),
            ("to_out.0", "proj_out"),
            ("to_", ""),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
        ] {
            name = name.replace(ours, theirs);
        }
        name
    };
    let renamed = changed(|tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (compvis(&name), tensor))
            .collect();
        let attention = tensors
            .get_mut("first_stage_model.encoder.mid.attn_1.q.weight")
            .unwrap();
        attention.shape.extend([1, 1]);
        for other in [
            "model.diffusion_model.out.0.bias",
            "conditioner.embedders.0.bias",
            "alphas_cumprod",
        ] {
            tensors.insert(other.to_owned(), TensorData::from_f32(vec![1], &[0.0]));
        }
    });
    let autoencoder = AutoencoderKl::load(&folder).unwrap();
    let picture: Vec<f32> = (0..3 * 32 * 48).map(|i| (i as f32 * 0.37).sin()).collect();
    let expected = autoencoder.encode(&picture, 32, 48).unwrap();
    let found = AutoencoderKl::load(renamed.path()).unwrap();
    assert_eq!(found.encode(&picture, 32, 48).unwrap(), expected);
    assert_ne!(found.weights_sha256(), autoencoder.weights_sha256());

    let halved = changed(|tensors| {
        for tensor in tensors.values_mut() {
            let values = tensor.to_f32().unwrap();
            tensor.bytes = values
                .iter()
                .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
                .collect();
            tensor.dtype = Dtype::F16;
        }
    });
    let found = AutoencoderKl::load(halved.path())
        .unwrap()
        .encode(&picture, 32, 48)
        .unwrap();
    let error = largest_difference(&found.mean, &expected.mean);
    assert!(error > 0.0 && error < 1e-2, "f16 weights change the mean by {error}");
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let (folder, _) = cases().remove(0);
    let autoencoder = AutoencoderKl::load(folder).unwrap();
    let factor = autoencoder.config().factor();
    let message = autoencoder
        .encode(&[0.0; 3], factor, factor + 1)
        .unwrap_err()
        .to_string();
    assert!(message.contains(&format!("multiples of {factor}")), "{message}");
    assert!(autoencoder.encode(&[0.0; 3], factor, factor).is_err());
    assert!(autoencoder.decode(&[0.0; 3], 1, 1).is_err());
}

#[test]
fn a_folder_of_another_network_is_refused_by_its_key() {
    let (folder, _) = cases().remove(0);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    for (found, replaced, key) in [
        ("\"AutoencoderKL\"", "\"AsymmetricAutoencoderKL\"", "_class_name"),
        ("\"silu\"", "\"relu\"", "act_fn"),
        (
            "\"DownEncoderBlock2D\"",
            "\"AttnDownEncoderBlock2D\"",
            "down_block_types",
        ),
        (
            "\"latents_mean\": null",
            "\"latents_mean\": [0.0, 0.0, 0.0, 0.0]",
            "latents_mean",
        ),
        ("\"norm_num_groups\": 8", "\"norm_num_groups\": 7", "norm_num_groups"),
    ] {
        assert!(config.contains(found), "{found}");
        let copy = changed(|_| {});
        std::fs::write(copy.path().join("config.json"), config.replacen(found, replaced, 1)).unwrap();
        let message = refusal(copy.path());
        assert!(message.contains(&format!("config.json: {key}: found")), "{message}");
    }
    assert!(refusal(tempfile::tempdir().unwrap().path()).contains("config.json"));
}

/// Stable Diffusion's architecture in a process of its own, whose peak memory is measured.
#[cfg(target_os = "linux")]
#[test]
fn decoding_256_pixels_takes_less_than_900_megabytes() {
    const CHILD: &str = "DEEPFLOW_TEST_MEASURE_MEMORY";
    if std::env::var_os(CHILD).is_some() {
        let autoencoder = AutoencoderKl::random(AutoencoderConfig::default(), 1).unwrap();
        let picture = autoencoder.decode(&vec![0.1; 4 * 32 * 32], 32, 32).unwrap();
        assert!(picture.len() == 3 * 256 * 256 && picture.iter().all(|value| value.is_finite()));
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        println!("{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "decoding_256_pixels_takes_less_than_900_megabytes",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}");
    let line = output.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes * 1024 < 900_000_000, "{kilobytes} KiB");
}
