//! The tests above can fail: a kernel with one thing wrong is caught by the test of its operator.
//!
//! Every fault is planted into a copy of the kernel file; this test binary is then run again, for the one test that has
//! to notice, on an emulation built from the faulty copy.

use std::process::Command;

use crate::emulation::{device, kernel_texts, FAULT};

/// Whether the named test still passes with `fault` planted.
fn survives(fault: &str, test: &str) -> bool {
    let fields: Vec<&str> = fault.split('|').collect();
    let texts = kernel_texts();
    let planted = texts
        .iter()
        .any(|(file, text)| file == fields[0] && text.contains(fields[1]));
    assert!(planted, "nowhere to plant: {fault}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FAULT, fault)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("running 1 test"), "no test named {test}: {report}");
    output.status.success()
}

fn on_emulation() -> bool {
    std::env::var_os("DEEPFLOW_CUDA_TESTS").is_none() && device().is_some()
}

/// The tests of which one has to notice a missing barrier.
fn tests_of(file: &str) -> &'static [&'static str] {
    match file {
        "attention.cu" => &["operators::attention"],
        "group_norm.cu" => &["convolution::group_norms"],
        "common.cuh" => &["operators::losses", "operators::gated_residual"],
        other => panic!("{other} has a barrier and no test to notice its absence"),
    }
}

/// Every barrier of every kernel file, removed one at a time.
#[test]
fn each_removed_barrier_is_noticed() {
    if !on_emulation() {
        return;
    }
    let mut removed = 0;
    for (file, text) in kernel_texts() {
        for barrier in ["__syncthreads();", "__syncwarp();"] {
            for occurrence in 0..text.matches(barrier).count() {
                let fault = format!("{file}|{barrier}||{occurrence}");
                let noticed = tests_of(&file).iter().any(|test| !survives(&fault, test));
                assert!(noticed, "nothing notices: {fault}");
                removed += 1;
            }
        }
    }
    assert!(removed > 10, "only {removed} barriers found");
}

#[test]
fn wrong_strides_and_formulas_are_noticed() {
    if !on_emulation() {
        return;
    }
    for (fault, test) in [
        // The row of a packed projection taken to be as long as a head's.
        (
            "layer_norm.cu|(size_t)(row / groups) * row_stride|(size_t)(row / groups) * width * groups",
            "operators::query_key_norm",
        ),
        (
            "attention.cu|(size_t)(sample * tokens + token) * stride|(size_t)(sample * tokens + token) * (stride - 1)",
            "operators::attention",
        ),
        ("attention.cu|head * head_width|head", "operators::attention"),
        // A tile written one column too far apart: past the end of shared memory or into the neighbour.
        (
            "attention.cu|memory += rows * tile.pitch|memory += rows * head_width",
            "operators::attention",
        ),
        (
            "residual.cu|sample * stride + gate|sample * width + gate",
            "operators::gated_residual",
        ),
        (
            "embedding.cu|to[i / width * to_stride + i % width]|to[i / width * width + i % width]",
            "operators::columns_positions_and_tables",
        ),
        // Half of the lanes left out of a sum.
        (
            "common.cuh|int offset = WARP / 2|int offset = WARP / 4",
            "operators::losses",
        ),
        // A gradient overwritten instead of added to.
        ("common.cuh|to_float(*sum) + value|value", "operators::linear"),
        (
            "layer_norm.cu|- normal * projected||0",
            "operators::plain_and_affine_layer_norm",
        ),
        (
            "layer_norm.cu|fabsf(scale) <= transform.limit|true",
            "operators::modulated_layer_norm",
        ),
        ("activation.cu|0.044715f|0.044f", "operators::activations_and_sums"),
        ("loss.cu|0.5f * time * time|time * time", "operators::losses"),
        // The scale never falls, the update is made all the same, gradients keep the scale, parts count as wholes.
        (
            "optimizer.cu|0.5f * next.loss_scale|next.loss_scale",
            "training::an_overflow_halves_the_scale_and_changes_nothing_else",
        ),
        (
            "optimizer.cu|if (factor == 0.0f) return;|",
            "training::a_batch_that_is_not_finite_is_skipped",
        ),
        (
            "optimizer.cu|finite_loss && isfinite(sum)|finite_loss",
            "training::an_overflow_halves_the_scale_and_changes_nothing_else",
        ),
        // The bias correction counts a step that was not taken.
        (
            "optimizer.cu|next.gradient_factor = 0.0f;|next.gradient_factor = 0.0f; next.taken += 1;",
            "optimizer::mixed_precision_steps",
        ),
        (
            "optimizer.cu|next.gradient_factor = 1.0f / next.loss_scale|next.gradient_factor = 1.0f",
            "training::mixed_precision_is_close_to_it",
        ),
        (
            "optimizer.cu|share * to_float(*loss)|to_float(*loss)",
            "training::in_f32_it_is_the_training_of_the_processor",
        ),
        // Noise of another epoch, noise mixed like data, columns of a patch taken for rows.
        (
            "diffusion.cu|epochs[sample]|epochs[0]",
            "samples::normal_numbers_are_those_of_the_processor_bit_for_bit",
        ),
        (
            "diffusion.cu|weights[2 * sample + 1] * noise|weights[2 * sample] * noise",
            "samples::data_and_noise_are_mixed_and_cut_into_patches",
        ),
        (
            "diffusion.cu|channel_first ? value % patch|channel_first ? value / patch % patch",
            "samples::data_and_noise_are_mixed_and_cut_into_patches",
        ),
        // An enlarged map read as it is, another picture's norm, the first band again, a stride forgotten, the padding taken
        // for the end of the line before.
        (
            "convolution.cu|seen_x >> window.enlarged|seen_x",
            "convolution::convolutions",
        ),
        (
            "convolution.cu|picture * 2 * window.channels|0 * picture",
            "convolution::convolutions",
        ),
        (
            "convolution.cu|row = first + blockIdx.x|row = blockIdx.x",
            "convolution::a_convolution_of_several_bands",
        ),
        (
            "convolution.cu|column * window.stride|column",
            "convolution::convolutions",
        ),
        ("convolution.cu|seen_x >= 0 && at_x|at_x", "convolution::convolutions"),
        // The deviation between chunks left out, a short chunk counted as a whole one, groups side by side.
        (
            "group_norm.cu|of_part[channels] + count * distance * distance|of_part[channels]",
            "convolution::group_norms",
        ),
        (
            "group_norm.cu|count * means[|chunk * means[",
            "convolution::group_norms",
        ),
        (
            "group_norm.cu|row % groups * width|row % groups",
            "convolution::group_norms",
        ),
        // Softmax of scores that are not all below the largest.
        (
            "softmax.cu|(expf(to_float(scores[i]) - largest) * factor|(expf(to_float(scores[i])) * factor",
            "convolution::attention_over_pixels",
        ),
        // The last rows forgotten when they do not fill a tile.
        ("attention.cu|token < side.tokens ?|true ?", "operators::attention"),
    ] {
        assert!(!survives(fault, test), "{test} does not notice: {fault}");
    }
}
