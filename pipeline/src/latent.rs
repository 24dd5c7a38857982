//! The latent of a sample, for whatever decodes or judges it.

use anyhow::{bail, ensure};
use deepflow_datasets::{Sample, LATENT, MOMENTS};

/// The latent itself where it was generated, else the mean of the posterior where it was encoded.
///
/// # Errors
/// The sample has neither, or the array has another shape than a latent of `shape` says.
pub fn latent_of(sample: &Sample, shard: &str, shape: [usize; 3]) -> anyhow::Result<Vec<f32>> {
    let [channels, height, width] = shape;
    let (member, mut array, expected) = if let Some(array) = sample.array(LATENT, shard)? {
        (LATENT, array, shape)
    } else if let Some(array) = sample.array(MOMENTS, shard)? {
        (MOMENTS, array, [2 * channels, height, width])
    } else {
        bail!(
            "{shard}: key {}: neither {LATENT} nor {MOMENTS}, expected one of them",
            sample.key
        );
    };
    ensure!(
        array.shape == expected,
        "{shard}: key {}: {member} has shape {:?}, expected {expected:?}",
        sample.key,
        array.shape
    );
    // Of moments the first half is the mean.
    array.data.truncate(channels * height * width);
    Ok(array.data)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deepflow_datasets::Dtype;

    #[test]
    fn a_generated_latent_goes_before_moments() {
        let moments = Sample::new("a").with_array(MOMENTS, &[1.0, 2.0], &[2, 1, 1], Dtype::F32);
        let mut sample = moments.unwrap();
        assert_eq!(latent_of(&sample, "s.tar", [1, 1, 1]).unwrap(), [1.0]);
        sample = sample.with_array(LATENT, &[3.0], &[1, 1, 1], Dtype::F32).unwrap();
        assert_eq!(latent_of(&sample, "s.tar", [1, 1, 1]).unwrap(), [3.0]);
        let error = latent_of(&sample, "s.tar", [2, 1, 1]).unwrap_err().to_string();
        assert_eq!(
            error,
            "s.tar: key a: latent.npy has shape [1, 1, 1], expected [2, 1, 1]"
        );
        let error = latent_of(&Sample::new("b"), "s.tar", [1, 1, 1])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "s.tar: key b: neither latent.npy nor moments.npy, expected one of them"
        );
    }
}
