//! The metrics against golden numbers and against properties they must have.
#![allow(clippy::unwrap_used)]

use deepflow::evaluate::metrics::*;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

struct Case {
    path: PathBuf,
    bytes: Vec<u8>,
    expected: HashMap<String, String>,
}

impl Case {
    fn load(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let expected = metadata.metadata().clone().unwrap();
        Self { path, bytes, expected }
    }

    fn features(&self, name: &str) -> Features<f64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F64);
        let values = tensor
            .data()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        Features {
            width: tensor.shape()[1],
            values,
        }
    }

    fn check(&self, name: &str, found: f64, tolerance: f64) {
        let expected: f64 = self.expected[name].parse().unwrap();
        let error = (found - expected).abs() / expected.abs();
        assert!(
            error <= tolerance,
            "{}: {name} = {found}, expected {expected}",
            self.path.display()
        );
    }
}

fn cases() -> Vec<Case> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let folder = std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or(default, PathBuf::from);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("metrics"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no metrics* in {}", folder.display());
    paths.into_iter().map(Case::load).collect()
}

fn gaussian(features: &Features<f64>, batch: usize) -> Gaussian {
    let mut accumulator = GaussianAccumulator::new(features.width);
    features
        .values
        .chunks(features.width * batch)
        .for_each(|rows| accumulator.add(rows));
    accumulator.finish().unwrap()
}

fn distance(first: &Gaussian, second: &Gaussian) -> f64 {
    frechet_distance(first, second).unwrap().distance
}

fn manifolds<T: Copy + Into<f64> + Sync>(real: &Features<T>, generated: &Features<T>) -> Option<PrecisionRecall> {
    let seen = std::sync::atomic::AtomicU64::new(0);
    let watch = |pairs| -> Result<(), std::convert::Infallible> {
        seen.fetch_add(pairs, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    };
    let found = precision_recall(real, generated, &watch).unwrap();
    let expected = found.map_or(0, |_| manifold_pairs(real.len(), generated.len()));
    assert_eq!(seen.into_inner(), expected);
    found
}

#[test]
fn golden_numbers() {
    for case in cases() {
        let [real, fake, few] = ["real", "fake", "few"].map(|name| case.features(name));
        let [real_fit, fake_fit, few_fit] = [&real, &fake, &few].map(|features| gaussian(features, 100));
        case.check("frechet_real_fake", distance(&real_fit, &fake_fit), 1e-6);
        case.check("frechet_real_fake", distance(&fake_fit, &real_fit), 1e-6);
        case.check("frechet_real_few", distance(&real_fit, &few_fit), 1e-3);
        let rank = |fit: &Gaussian| frechet_distance(fit, &real_fit).unwrap().first_rank;
        assert_eq!([rank(&few_fit), rank(&real_fit)], [few.len() - 1, real.width]);

        let both = manifolds(&real, &fake).unwrap();
        case.check("precision_k3", both.precision, 1e-6);
        case.check("recall_k3", both.recall, 1e-6);

        let logits = case.features("logits");
        for (name, split) in [
            ("inception_score_split250", 250),
            ("inception_score_split300_last_short", 300),
        ] {
            let mut score = InceptionScoreAccumulator::new(logits.width, split);
            (0..logits.len()).for_each(|row| score.add(&softmax(logits.row(row))));
            case.check(name, score.finish().unwrap().mean, 1e-6);
        }
    }
}

#[test]
fn who_watches_precision_and_recall_can_end_it() {
    let real = cases()[0].features("real");
    assert_eq!(precision_recall(&real, &real, &|_| Err("enough")), Err("enough"));
}

#[test]
fn batches_do_not_change_a_bit_of_the_statistics() {
    let real = cases()[0].features("real");
    let whole = gaussian(&real, real.len());
    assert_eq!(gaussian(&real, 1), whole);
    assert_eq!(gaussian(&real, 37), whole);
}

#[test]
fn a_set_is_at_no_distance_from_itself() {
    let case = &cases()[0];
    for name in ["real", "few"] {
        let features = case.features(name);
        let fit = gaussian(&features, 100);
        let scale: f64 = (0..fit.width()).map(|i| fit.covariance[(i, i)]).sum();
        assert!(distance(&fit, &fit).abs() < 1e-6 * scale, "{name}");
        assert_eq!(
            manifolds(&features, &features),
            Some(PrecisionRecall {
                precision: 1.0,
                recall: 1.0
            })
        );
    }
    let real = case.features("real");
    let half = real.values.len() / 2;
    let [first, second] = [&real.values[..half], &real.values[half..]].map(|values| Features {
        width: real.width,
        values: values.to_vec(),
    });
    let floor = kernel_distance(&first, &second, 175, 0).unwrap();
    let apart = kernel_distance(&real, &case.features("fake"), 300, 0).unwrap();
    assert!(floor.mean.abs() < 3.0 * floor.deviation.max(1e-3), "{floor:?}");
    assert!(apart.mean > 3.0 * floor.deviation, "{apart:?} {floor:?}");
    assert_eq!(apart, kernel_distance(&real, &case.features("fake"), 300, 0).unwrap());
}

#[test]
fn the_kernel_distance_of_all_vectors_is_the_textbook_sum() {
    let case = &cases()[0];
    let few = case.features("few");
    let fake = case.features("fake");
    let other = Features {
        width: fake.width,
        values: fake.values[..few.values.len()].to_vec(),
    };
    let kernel = |x: &[f64], y: &[f64]| {
        let product: f64 = x.iter().zip(y).map(|(a, b)| a * b).sum();
        (product / x.len() as f64 + 1.0).powi(3)
    };
    let n = few.len();
    let mut expected = 0.0;
    for i in 0..n {
        for j in 0..n {
            if i != j {
                let within = kernel(few.row(i), few.row(j)) + kernel(other.row(i), other.row(j));
                expected += within / (n * (n - 1)) as f64;
            }
            expected -= 2.0 * kernel(few.row(i), other.row(j)) / (n * n) as f64;
        }
    }
    // With as many vectors as a subset holds, every subset is the whole set.
    let found = kernel_distance(&few, &other, n, 5).unwrap();
    assert_eq!(found.subset_size, n);
    assert!(
        (found.mean - expected).abs() < 1e-9 * expected.abs(),
        "{} {expected}",
        found.mean
    );
}

/// FID would be NaN, and the program would call it done.
#[test]
fn a_mean_that_is_not_finite_has_no_distance() {
    let good = Gaussian {
        count: None,
        mean: vec![0.0, 1.0],
        covariance: faer::Mat::identity(2, 2),
    };
    for value in [f64::NAN, f64::INFINITY] {
        let bad = Gaussian {
            mean: vec![0.0, value],
            ..good.clone()
        };
        for (first, second) in [(&good, &bad), (&bad, &good)] {
            let error = frechet_distance(first, second).unwrap_err();
            assert_eq!(error.to_string(), "the statistics hold values that are not finite");
        }
    }
}

#[test]
fn what_has_no_answer_gives_none() {
    let one = Features {
        width: 2,
        values: vec![1.0f32, 2.0],
    };
    assert!(manifolds(&one, &one).is_none());
    assert!(kernel_distance(&one, &one, kernel_subset_size(1, 1), 0).is_none());
    assert!(InceptionScoreAccumulator::new(10, 5).finish().is_none());
    let mut single = GaussianAccumulator::new(2);
    single.add(&one.values);
    assert!(single.finish().is_none());
    let width = |width| Gaussian {
        count: None,
        mean: vec![0.0; width],
        covariance: faer::Mat::zeros(width, width),
    };
    let error = frechet_distance(&width(2), &width(3)).unwrap_err().to_string();
    assert_eq!(error, "statistics of 2 features against statistics of 3 features");
    let mut infinite = width(2);
    infinite.covariance[(0, 0)] = f64::NAN;
    assert_eq!(frechet_distance(&infinite, &width(2)), Err(FrechetError::NotFinite));
}
