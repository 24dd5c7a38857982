//! Seconds Inception-v3 takes for a picture, as one JSON line: `inception [BATCH] [STEPS]`.
//!
//! The script `peers/inception.py` runs it in turn with torchvision's network, from which pytorch-fid's is made.
#![allow(clippy::unwrap_used)]

use deepflow_model::inception::{Inception, InceptionError, WeightSource, INPUT_SIZE};
use std::time::Instant;

/// Numbers of the size that trained weights have; the time does not depend on them.
struct MadeUp;

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InceptionError> {
        let inputs: usize = shape[1..].iter().product();
        let value = |index: usize| (index as f32 * 0.7).sin();
        let count = shape.iter().product();
        Ok(if name.ends_with("running_var") {
            vec![1.0; count]
        } else {
            (0..count).map(|index| value(index) / (inputs as f32).sqrt()).collect()
        })
    }
}

fn main() {
    // `cargo bench` and `cargo test --benches` add options of their own.
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let number = |index: usize, default: usize| numbers.get(index).copied().unwrap_or(default);
    let (batch, steps) = (number(0, 16), number(1, 3));
    let network = Inception::new(&MadeUp).unwrap();
    let pictures: Vec<f32> = (0..batch * 3 * INPUT_SIZE * INPUT_SIZE)
        .map(|i| (i % 256) as f32)
        .collect();
    let mut seconds: Vec<f64> = (0..=steps)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(network.features(&pictures).unwrap());
            start.elapsed().as_secs_f64() / batch as f64
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!(
        "{{\"what\": \"inception\", \"batch\": {batch}, \"threads\": {}, \"median_s\": {}, \"best_s\": {}}}",
        rayon::current_num_threads(),
        seconds[steps / 2],
        seconds[0],
    );
}
