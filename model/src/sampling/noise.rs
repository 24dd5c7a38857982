//! Where the samplers' normal draws come from.

use deepflow_datasets::random::{Purpose, Stream};

/// Normal draws for the samples of a batch.
pub trait NoiseSource {
    /// The state at t = 1 of sample number `sample` of the batch.
    fn initial(&self, sample: usize, out: &mut [f64]);
    /// The draw of sample number `sample` at step `step`, counted from 0.
    fn step(&self, step: usize, sample: usize, out: &mut [f64]);
}

/// Draws that are a function of (seed, index of the sample, step) only.
#[derive(Clone, Debug)]
pub struct IndexedNoise {
    /// Seed of all samples.
    pub seed: u64,
    /// Index of every sample of the batch among all samples of this seed.
    pub indices: Vec<u64>,
}

impl IndexedNoise {
    fn fill(&self, purpose: Purpose, step: usize, sample: usize, out: &mut [f64]) {
        let mut draws = vec![0f32; out.len()];
        Stream::new(self.seed, purpose, step as u32, self.indices[sample]).fill_normal(&mut draws);
        out.iter_mut().zip(draws).for_each(|(out, draw)| *out = draw.into());
    }
}

impl NoiseSource for IndexedNoise {
    fn initial(&self, sample: usize, out: &mut [f64]) {
        self.fill(Purpose::SampleNoise, 0, sample, out);
    }

    fn step(&self, step: usize, sample: usize, out: &mut [f64]) {
        self.fill(Purpose::SamplerStep, step, sample, out);
    }
}
