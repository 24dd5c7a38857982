//! SiT counts time from noise (0) to data (1) and predicts `data - noise`; ours runs the other way (network spec §1):
//! `v(x, t) = -v_sit(x, 1 - t)`. Both turns are linear in one layer each, so the converted weights are exactly that network.

use super::error::ConvertError;
use super::weights::Weights;
use crate::config::FOURIER_FEATURES;
use crate::torch_pickle::TensorData;

const TIME_LAYER: &str = "t_embedder.mlp.0.weight";

/// Makes the network count time the other way. The features of a time are `[cos(t·f), sin(t·f)]` and
/// `cos((1-t)f) = cos f·cos tf + sin f·sin tf`, `sin((1-t)f) = sin f·cos tf - cos f·sin tf`: a linear map of them, which is
/// multiplied into the first layer of the embedder. Doing it twice gives the first network back.
pub(super) fn reverse_time(weights: &mut Weights<'_>) -> Result<(), ConvertError> {
    let shape = weights.shape(TIME_LAYER).unwrap_or_default().to_vec();
    if shape.len() != 2 || shape[1] != FOURIER_FEATURES {
        let problem = format!("shape {shape:?}, expected (width, {FOURIER_FEATURES})");
        return Err(ConvertError::tensor(weights.path(), TIME_LAYER, problem));
    }
    let mut values = weights.read_f32(TIME_LAYER)?;
    let half = FOURIER_FEATURES / 2;
    for row in values.chunks_exact_mut(FOURIER_FEATURES) {
        let (cosines, sines) = row.split_at_mut(half);
        for (index, (cosine, sine)) in cosines.iter_mut().zip(sines).enumerate() {
            let frequency = (-(10_000f64.ln()) * index as f64 / half as f64).exp();
            let (sin, cos) = frequency.sin_cos();
            let (of_cosine, of_sine) = (f64::from(*cosine), f64::from(*sine));
            *cosine = (of_cosine * cos + of_sine * sin) as f32;
            *sine = (of_cosine * sin - of_sine * cos) as f32;
        }
    }
    weights.replace(TIME_LAYER, TensorData::from_f32(shape, &values));
    Ok(())
}

/// Turns the sign of what the last head gives.
pub(super) fn negate_head(weights: &mut Weights<'_>, head: &str) -> Result<(), ConvertError> {
    for part in ["weight", "bias"] {
        let name = format!("{head}.linear.{part}");
        let shape = weights.shape(&name).unwrap_or_default().to_vec();
        let values: Vec<f32> = weights.read_f32(&name)?.into_iter().map(|value| -value).collect();
        weights.replace(&name, TensorData::from_f32(shape, &values));
    }
    Ok(())
}

/// Drops the half of the output channels that predicts a variance. A token's outputs are ordered (row, column, channel),
/// so the halves lie within every pixel of the patch. Returns whether there was such a half.
pub(super) fn drop_variance(
    weights: &mut Weights<'_>,
    head: &str,
    pixels: usize,
    channels: usize,
) -> Result<bool, ConvertError> {
    let weight = format!("{head}.linear.weight");
    let rows = weights
        .shape(&weight)
        .and_then(|shape| shape.first().copied())
        .unwrap_or(0);
    if rows == pixels * channels {
        return Ok(false);
    }
    if rows != 2 * pixels * channels {
        let problem = format!(
            "{rows} outputs per token, expected {} or, with a learned variance, {}",
            pixels * channels,
            2 * pixels * channels
        );
        return Err(ConvertError::tensor(weights.path(), &weight, problem));
    }
    for name in [weight, format!("{head}.linear.bias")] {
        let mut shape = weights.shape(&name).unwrap_or_default().to_vec();
        let values = weights.read_f32(&name)?;
        if values.is_empty() || values.len() % rows != 0 {
            return Err(ConvertError::tensor(
                weights.path(),
                &name,
                format!("shape {shape:?}, expected {rows} rows"),
            ));
        }
        let pixel = values.len() / pixels;
        let kept: Vec<f32> = values
            .chunks_exact(pixel)
            .flat_map(|both| &both[..pixel / 2])
            .copied()
            .collect();
        shape[0] = rows / 2;
        weights.replace(&name, TensorData::from_f32(shape, &kept));
    }
    Ok(true)
}
