//! `deepflow-evaluate` as its users run it.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_datasets::{Codec, Compression, DatasetPlan, DatasetWriter, Dtype, Sample};
use deepflow_model::inception::{Inception, InceptionError, WeightSource};
use deepflow_preprocess::codec::{Codec as _, IdentityCodec};
use deepflow_preprocess::picture::{write_png, Colour, Pixels, PngCompression};
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

fn evaluate(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("deepflow-evaluate").unwrap();
    command.args(arguments);
    command
}

/// The JSON line of a run that must succeed.
fn report(arguments: &[&str]) -> Value {
    let output = evaluate(arguments).arg("--json").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// The one line of a run that must fail.
fn refusal(arguments: &[&str]) -> String {
    let output = evaluate(arguments).arg("--quiet").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Name, shape and bytes.
type WrittenTensor = (String, Vec<usize>, Vec<u8>);

/// Makes up weights, and remembers them so that they can be written to a file.
#[derive(Default)]
struct RandomWeights(RefCell<Vec<WrittenTensor>>);

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InceptionError> {
        let mut tensors = self.0.borrow_mut();
        let inputs: usize = shape[1..].iter().product();
        let bound = match shape.len() {
            1 => 0.1,
            _ => (6.0 / inputs as f32).sqrt(),
        };
        let mut values = vec![0f32; shape.iter().product()];
        Stream::new(0, Purpose::Synthetic, 0, tensors.len() as u64).fill_uniform(&mut values);
        let ones = if name.ends_with("running_var") || name.ends_with("bn.weight") {
            1.0
        } else {
            0.0
        };
        values
            .iter_mut()
            .for_each(|value| *value = ones + (2.0 * *value - 1.0) * bound);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((name.to_owned(), shape.to_vec(), bytes));
        Ok(values)
    }
}

fn write_inception_weights(path: &Path) {
    let weights = RandomWeights::default();
    Inception::new(&weights).unwrap();
    let tensors = weights.0.into_inner();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.clone(),
            TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn picture(size: usize, seed: u64) -> Pixels {
    let mut noise = vec![0f32; size * size * 3];
    Stream::new(1, Purpose::Synthetic, 0, seed).fill_uniform(&mut noise);
    let bytes = noise
        .into_iter()
        .enumerate()
        .map(|(i, v)| (v * 200.0) as u8 / 2 + (i / 97 % 100) as u8)
        .collect();
    Pixels::new(size, size, Colour::Rgb, bytes).unwrap()
}

fn write_folder(folder: &Path, size: usize, seeds: std::ops::Range<u64>) {
    std::fs::create_dir_all(folder.join("inner")).unwrap();
    for seed in seeds {
        let png = write_png(&picture(size, seed), PngCompression::Fast).unwrap();
        std::fs::write(folder.join(format!("inner/{seed:03}.png")), png).unwrap();
    }
}

fn write_tar(path: &Path, size: usize, seeds: std::ops::Range<u64>) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for seed in seeds {
        let png = write_png(&picture(size, seed), PngCompression::Fast).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(png.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{seed:03}.png"), png.as_slice())
            .unwrap();
    }
    tar.finish().unwrap();
}

fn write_npz(path: &Path, size: usize, seeds: std::ops::Range<u64>) {
    use npyz::WriterBuilder;
    let count = seeds.end - seeds.start;
    let mut npy = Vec::new();
    let shape = [count, size as u64, size as u64, 3];
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&shape)
        .writer(&mut npy)
        .begin_nd()
        .unwrap();
    for seed in seeds {
        writer.extend(picture(size, seed).into_data()).unwrap();
    }
    writer.finish().unwrap();
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    zip.start_file("arr_0.npy", zip::write::SimpleFileOptions::default())
        .unwrap();
    std::io::copy(&mut npy.as_slice(), &mut zip).unwrap();
    zip.finish().unwrap();
}

#[test]
fn pictures_are_measured_the_same_wherever_they_lie() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let (weights, cache, statistics) = (at("inception.safetensors"), at("cache"), at("statistics.npz"));
    write_inception_weights(&weights);
    write_folder(&at("real"), 40, 0..6);
    write_folder(&at("fake"), 40, 100..105);
    write_tar(&at("fake.tar"), 40, 100..105);
    write_npz(&at("fake.npz"), 40, 100..105);
    write_identity_latents(&at("fake-latents"), 40, 100..105);

    let run = |generated: &str, reference: &Path, more: &[&str]| {
        let generated = at(generated);
        let mut arguments = vec![
            text(&generated),
            "--reference",
            text(reference),
            "--weights",
            text(&weights),
        ];
        arguments.extend(["--cache", text(&cache)]);
        arguments.extend(more);
        report(&arguments)
    };
    let from_folder = run("fake", &at("real"), &["--save-statistics", text(&statistics)]);
    for number in [
        "fid",
        "sfid",
        "inception_score",
        "precision",
        "recall",
        "kid",
        "kid_deviation",
    ] {
        assert!(
            from_folder[number].as_f64().unwrap().is_finite(),
            "{number}: {from_folder}"
        );
    }
    assert!(from_folder["fid"].as_f64().unwrap() > 0.0);
    assert_eq!(from_folder["generated"]["count"], 5);
    let trust = from_folder["trust"].to_string();
    assert!(
        trust.contains("rank-deficient") && trust.contains("not the public file"),
        "{trust}"
    );

    // The second run finds the reference's statistics in the cache.
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
    for same in ["fake", "fake.tar", "fake.npz", "fake-latents"] {
        let again = run(same, &at("real"), &[]);
        for number in ["fid", "sfid", "inception_score", "precision", "recall", "kid"] {
            assert_eq!(again[number], from_folder[number], "{same}: {number}");
        }
    }
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);

    // Statistics in ADM's form give the same distances, and no manifolds.
    let from_statistics = run("fake", &statistics, &[]);
    for number in ["fid", "sfid"] {
        let (found, expected) = (
            from_statistics[number].as_f64().unwrap(),
            from_folder[number].as_f64().unwrap(),
        );
        assert!(
            (found - expected).abs() <= 1e-9 * expected,
            "{number}: {found} != {expected}"
        );
    }
    assert!(from_statistics["precision"].is_null());
    // The file does not say of how many pictures; the covariance does.
    let trust = from_statistics["trust"].to_string();
    assert!(
        trust.contains("their covariance has rank 5 of 2048, as of 6 pictures or fewer"),
        "{trust}"
    );
    assert_ne!(
        run("fake", &at("real"), &["--resize", "half-pixel"])["fid"],
        from_folder["fid"]
    );

    write_folder(&at("larger"), 48, 0..2);
    write_folder(&at("mixed"), 40, 0..2);
    write_folder(&at("mixed"), 48, 2..3);
    write_folder(&at("single"), 40, 0..1);
    write_folder(&at("none"), 40, 0..0);
    let refused = |generated: &str, reference: &Path, weights: &Path| {
        let generated = at(generated);
        refusal(&[
            text(&generated),
            "--reference",
            text(reference),
            "--weights",
            text(weights),
            "--no-cache",
        ])
    };
    for (generated, expected) in [
        ("larger", "larger: pictures of 48x48, the reference"),
        ("mixed", "002.png: 48x48 pixels, expected 40x40"),
        ("single", "single: 1 pictures, expected at least 2"),
        ("none", "none: no pictures (png, jpg, webp) and no tars"),
        (
            "statistics.npz",
            "statistics.npz: statistics only, expected pictures in arr_0",
        ),
        ("absent", "absent: No such file"),
    ] {
        let line = refused(generated, &at("real"), &weights);
        assert!(line.contains(expected), "{line}");
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/metrics.safetensors");
    let line = refused("fake", &at("real"), &golden);
    assert!(
        line.contains("metrics.safetensors: tensor `Conv2d_1a_3x3.conv.weight` is missing"),
        "{line}"
    );
    std::fs::write(at("fake/inner/999.png"), b"not a picture").unwrap();
    let line = refused("fake", &at("real"), &weights);
    assert!(line.contains("999.png: not a JPEG, PNG or WebP picture"), "{line}");
}

/// The same pictures as latents of the identity codec, which are decoded on the way.
fn write_identity_latents(folder: &Path, size: usize, seeds: std::ops::Range<u64>) {
    let identity = IdentityCodec::new(size, Colour::Rgb);
    let codec = Codec {
        name: "identity".into(),
        weights_sha256: None,
        scale_factor: 1.0,
        latent_shape: [3, size, size],
        dtype: Dtype::F32,
        resolution: size,
        settings: std::collections::BTreeMap::default(),
    };
    let plan = DatasetPlan {
        name: "fake".into(),
        compression: Compression::None,
        codec,
        classes: Vec::new(),
    };
    let writer = DatasetWriter::create(folder, plan).unwrap();
    let mut shard = writer.begin_shard(0).unwrap();
    for seed in seeds {
        let latent = identity.encode(&[picture(size, seed)]).unwrap().mean;
        let sample = Sample::new(format!("{seed:06}"));
        shard
            .write(
                &sample
                    .with_array("latent.npy", &latent, &[3, size, size], Dtype::F32)
                    .unwrap(),
            )
            .unwrap();
    }
    shard.finish().unwrap();
    writer.finish(1).unwrap();
}

const LATENT_SHAPE: [usize; 3] = [2, 4, 4];

/// Latents whose class decides their mean; `moments` as encoded, otherwise as sampled.
fn write_latents(folder: &Path, count: usize, moments: bool, seed: u64, shift: f32) {
    let codec = Codec {
        name: "identity".into(),
        weights_sha256: None,
        scale_factor: 1.0,
        latent_shape: LATENT_SHAPE,
        dtype: Dtype::F32,
        resolution: 4,
        settings: std::collections::BTreeMap::default(),
    };
    let plan = DatasetPlan {
        name: "latents".into(),
        compression: Compression::None,
        codec,
        classes: Vec::new(),
    };
    let writer = DatasetWriter::create(folder, plan).unwrap();
    let mut shard = writer.begin_shard(0).unwrap();
    for sample in 0..count {
        let class = sample % 3;
        let mut values = vec![0f32; 32];
        Stream::new(seed, Purpose::Synthetic, 0, sample as u64).fill_normal(&mut values);
        for (index, value) in values.iter_mut().enumerate() {
            *value += shift + if index % 3 == class { 2.0 } else { 0.0 };
        }
        let sample = Sample::new(format!("{sample:06}"));
        let sample = if moments {
            values.extend([0.1; 32]);
            sample.with_array("moments.npy", &values, &[4, 4, 4], Dtype::F32)
        } else {
            sample.with_array("latent.npy", &values, &LATENT_SHAPE, Dtype::F32)
        };
        shard.write(&sample.unwrap().with_class(class as u32)).unwrap();
    }
    shard.finish().unwrap();
    writer.finish(1).unwrap();
}

#[test]
fn a_classifier_of_the_users_own_latents_tells_good_sets_from_bad_ones() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    write_latents(&at("real"), 900, true, 1, 0.0);
    write_latents(&at("good"), 600, false, 2, 0.0);
    write_latents(&at("bad"), 600, false, 3, 1.0);
    let classifiers: Vec<PathBuf> = ["first.safetensors", "second.safetensors"].map(at).to_vec();
    for classifier in &classifiers {
        let fit = evaluate(&["fit-features", text(&at("real")), text(classifier), "--steps", "300"])
            .output()
            .unwrap();
        assert!(fit.status.success(), "{}", String::from_utf8_lossy(&fit.stderr));
        assert!(String::from_utf8(fit.stdout)
            .unwrap()
            .contains("held-out samples of 3 classes"));
    }
    assert_eq!(
        std::fs::read(&classifiers[0]).unwrap(),
        std::fs::read(&classifiers[1]).unwrap()
    );

    let cache = at("cache");
    let run = |generated: &str| {
        let (generated, reference) = (at(generated), at("real"));
        let files = [
            text(&generated),
            "--reference",
            text(&reference),
            "--weights",
            text(&classifiers[0]),
            "--cache",
            text(&cache),
        ];
        report(&[&files[..], &["--features", "classifier"]].concat())
    };
    let (good, bad) = (run("good"), run("bad"));
    let number = |report: &Value, name: &str| report[name].as_f64().unwrap();
    assert!(number(&good, "held_out_accuracy") > 0.95, "{good}");
    assert!(number(&good, "class_agreement") > 0.95, "{good}");
    assert!(
        number(&bad, "fd_classifier") > 5.0 * number(&good, "fd_classifier"),
        "{good} {bad}"
    );
    assert!(
        number(&bad, "fd_classifier") > 5.0 * number(&bad, "real_versus_real"),
        "{bad}"
    );
    assert!(good["trust"].to_string().contains("is not FID"));
    // The reference's statistics came from the cache the second time, and give the same numbers.
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(run("bad"), bad);
    assert_eq!(run("bad"), bad);
    // Another content is another set, under the same name.
    std::fs::remove_dir_all(at("real")).unwrap();
    write_latents(&at("real"), 900, true, 4, 0.0);
    assert_ne!(run("bad")["fd_classifier"], bad["fd_classifier"]);
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2);

    let (good, real) = (at("good"), at("real"));
    let line = refusal(&[
        text(&good),
        "-r",
        text(&real),
        "-w",
        text(&real.join("index.json")),
        "--features",
        "classifier",
    ]);
    assert!(
        line.contains("not a classifier that `deepflow-evaluate fit-features` wrote"),
        "{line}"
    );
    write_latents(&at("few"), 3, true, 1, 0.0);
    write_identity_latents(&at("pictures"), 4, 0..2);
    for (generated, reference, expected) in [
        ("none", "real", "none"),
        ("good", "few", "few: 3 samples, expected at least 4"),
        (
            "pictures",
            "real",
            "pictures: latents of shape [3, 4, 4], the classifier",
        ),
    ] {
        let (generated, reference) = (at(generated), at(reference));
        let files = [text(&generated), "-r", text(&reference), "-w", text(&classifiers[0])];
        let line = refusal(&[&files[..], &["--features", "classifier", "--no-cache"]].concat());
        assert!(line.contains(expected), "{line}");
    }
}

/// As everywhere: an empty variable is none.
#[test]
fn the_cache_is_in_the_home_folder_where_no_other_is_named() {
    for (cache, expected) in [("", "/home/someone/.cache"), ("/quick", "/quick")] {
        let mut command = evaluate(&["--help"]);
        let output = command
            .env("HOME", "/home/someone")
            .env("XDG_CACHE_HOME", cache)
            .output();
        let help = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(
            help.contains(&format!("[default: {expected}/deepflow/statistics]")),
            "{help}"
        );
    }
}

#[test]
fn a_command_line_without_a_reference_is_explained() {
    let output = evaluate(&["somewhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--reference"));
}
