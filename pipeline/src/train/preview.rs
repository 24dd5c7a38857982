//! `samples/step-*.png`: pictures made on the way, always from the same noise, so that one sees the network learn.

use std::path::Path;

use anyhow::Context;
use deepflow_datasets::Codec as CodecRecord;
use deepflow_model::sampling::IndexedNoise;
use deepflow_model::training::Training;
use deepflow_preprocess::codec::Codec;
use deepflow_preprocess::picture::{contact_sheet, write_png, Pixels, PngCompression};

use super::data::{shift_factor, DataRecord};
use super::run_directory::RunDirectory;
use crate::codecs;
use crate::config::Config;
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::metrics::EventFile;
use crate::sample::sampler_settings;

/// Makes the sheets of a run; without a codec that can be opened there are none.
pub struct Preview {
    config: Config,
    codec: Option<(Box<dyn Codec>, CodecRecord)>,
}

impl Preview {
    /// Opens the codec of the data.
    pub fn open(config: &Config, run: &RunDirectory, data: &DataRecord) -> Self {
        let weights = config.codec.weights.as_deref();
        let open = |record: &CodecRecord| match codecs::open(record, run.root(), weights, None) {
            Ok(codec) => Some((codec, record.clone())),
            Err(reason) => {
                tracing::warn!("no sample pictures while training: {reason:#}");
                None
            }
        };
        let wanted = config.train.sample_every > 0 && config.train.sample_count > 0;
        let codec = data.codec.as_ref().filter(|_| wanted).and_then(open);
        Self {
            config: config.clone(),
            codec,
        }
    }

    /// Writes the sheet of the trainer's step, unless the work is to stop.
    pub fn draw(
        &self,
        trainer: &dyn Training,
        run: &RunDirectory,
        events: &mut EventFile,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let Some((codec, record)) = &self.codec else {
            return Ok(());
        };
        let count = self.config.train.sample_count;
        let labels: Vec<usize> = (0..count).map(|index| index % self.config.model.classes).collect();
        let noise = IndexedNoise {
            seed: self.config.sample.seed,
            indices: (0..count as u64).collect(),
        };
        let mut watch = |_| interrupt.flow();
        let (settings, averaged) = (sampler_settings(&self.config), self.config.sample.ema);
        let Some(latents) = trainer.generate(averaged, &settings, &labels, &noise, &mut watch)? else {
            return Ok(());
        };
        let (scale, shift) = (record.scale_factor, shift_factor(record));
        let latents: Vec<f32> = latents.iter().map(|value| (value / scale + shift) as f32).collect();
        let step = trainer.step_count();
        let file = run.samples_folder().join(format!("step-{step:07}.png"));
        write_sheet(&codec.decode(&latents)?, &file, events, step)
    }
}

fn write_sheet(pictures: &[Pixels], file: &Path, events: &mut EventFile, step: u64) -> anyhow::Result<()> {
    let columns = pictures.len().isqrt().max(1);
    let rows: Vec<Vec<Pixels>> = pictures.chunks(columns).map(<[Pixels]>::to_vec).collect();
    let sheet = contact_sheet(&rows)?;
    let png = write_png(&sheet, PngCompression::Fast).with_context(|| file.display().to_string())?;
    write_atomically(file, &png)?;
    events.image(
        step,
        "samples",
        u32::try_from(sheet.width())?,
        u32::try_from(sheet.height())?,
        &png,
    )?;
    Ok(())
}
