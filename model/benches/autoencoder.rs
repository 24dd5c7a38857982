//! Seconds to encode or decode one picture, as one JSON line: `autoencoder <encode|decode> [SIZE] [STEPS] [FOLDER]`.
//!
//! Without a diffusers folder it runs Stable Diffusion's architecture with random weights. The script
//! `peers/autoencoder.py` runs it in turn with diffusers.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use deepflow_model::autoencoder::{AutoencoderConfig, AutoencoderKl};

fn main() {
    // `cargo bench` and `cargo test --benches` add options of their own.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let Some(what @ ("encode" | "decode")) = arguments.first().map(String::as_str) else {
        println!("usage: autoencoder <encode|decode> [SIZE] [STEPS] [FOLDER]");
        return;
    };
    let number = |index: usize, default: usize| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (size, steps) = (number(1, 256), number(2, 3));
    let autoencoder = match arguments.get(3) {
        Some(folder) => AutoencoderKl::load(folder).unwrap(),
        None => AutoencoderKl::random(AutoencoderConfig::default(), 1).unwrap(),
    };
    let config = autoencoder.config();
    let side = if what == "encode" { size } else { size / config.factor() };
    let channels = if what == "encode" {
        config.in_channels
    } else {
        config.latent_channels
    };
    let input: Vec<f32> = (0..channels * side * side).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut seconds: Vec<f64> = (0..=steps)
        .map(|_| {
            let start = Instant::now();
            if what == "encode" {
                std::hint::black_box(autoencoder.encode(&input, side, side).unwrap());
            } else {
                std::hint::black_box(autoencoder.decode(&input, side, side).unwrap());
            }
            start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!(
        "{{\"what\": \"{what}\", \"size\": {size}, \"threads\": {}, \"median_s\": {}, \"best_s\": {}, \"peak_rss_bytes\": {}}}",
        rayon::current_num_threads(),
        seconds[steps / 2],
        seconds[0],
        peak_rss_bytes().unwrap_or(0),
    );
}

fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}
