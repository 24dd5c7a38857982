//! One shard of latents to PNG files: reading, decoding and compressing overlap.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context;
use crossbeam_channel::{bounded, Receiver, Sender};
use deepflow_datasets::{Index, Limits, ShardReader};
use deepflow_preprocess::codec::Codec;
use deepflow_preprocess::picture::{write_png, Pixels, PngCompression};

use super::places::Places;
use crate::files::{make_folder, write_atomically_unsynced};
use crate::interrupt::Interrupt;
use crate::latent::latent_of;
use crate::progress::Progress;
use crate::time_split::TimeSplit;

/// Batches that may wait between two steps.
const BATCHES_AHEAD: usize = 2;

/// The shard to decode, and how.
pub(super) struct Work<'a> {
    pub(super) shards: &'a Path,
    pub(super) shard: usize,
    pub(super) places: &'a Places,
    pub(super) codec: &'a dyn Codec,
    pub(super) compression: PngCompression,
    pub(super) batch: usize,
}

/// Latents that are decoded together, and the files they become.
#[derive(Default)]
struct Batch {
    latents: Vec<f32>,
    files: Vec<PathBuf>,
}

impl Work<'_> {
    /// Writes the pictures that are not there yet; returns how many these were.
    pub(super) fn run(
        &self,
        progress: &Progress,
        interrupt: &Interrupt,
        time: &mut TimeSplit,
    ) -> anyhow::Result<usize> {
        let (latents, to_decode) = bounded::<anyhow::Result<Batch>>(BATCHES_AHEAD);
        let writers = rayon::current_num_threads();
        let (decoded, to_write) = bounded::<(Pixels, PathBuf)>(writers * 4);
        thread::scope(|scope| {
            let reader = scope.spawn(|| self.read(latents, progress, interrupt));
            let writing: Vec<_> = (0..writers)
                .map(|_| {
                    let to_write = to_write.clone();
                    scope.spawn(move || self.write(&to_write, progress))
                })
                .collect();
            // The writers must see the channel close when the last of them stops for an error.
            drop(to_write);
            time.threads = writers;
            let outcome = self.decode(to_decode, decoded, interrupt, time);
            let mut written = 0;
            for writer in writing {
                let (count, seconds) = join(writer)?;
                written += count;
                time.write_s += seconds;
            }
            time.read_s += join(reader);
            outcome.map(|()| written)
        })
    }

    /// Sends all batches, or the error that ended the reading; seconds spent.
    fn read(&self, batches: Sender<anyhow::Result<Batch>>, progress: &Progress, interrupt: &Interrupt) -> f64 {
        let mut waits = 0.0;
        let mut seconds = 0.0;
        TimeSplit::add(&mut seconds, || {
            // A send fails only when the receiver has stopped, which then reports its own reason.
            match self.read_batches(&batches, progress, interrupt, &mut waits) {
                Ok(()) => {}
                Err(error) => drop(batches.send(Err(error))),
            }
        });
        seconds - waits
    }

    fn read_batches(
        &self,
        batches: &Sender<anyhow::Result<Batch>>,
        progress: &Progress,
        interrupt: &Interrupt,
        waits: &mut f64,
    ) -> anyhow::Result<()> {
        let index = Index::load(self.shards)?;
        let name = &index.shards[self.shard].name;
        let shape = self.codec.identity().latent_shape;
        let mut batch = Batch::default();
        for sample in ShardReader::open(&self.shards.join(name), Limits::default())? {
            interrupt.check()?;
            let sample = sample?;
            let file = self.places.picture(self.shard, sample.class(name)?, &sample.key);
            if file.exists() {
                progress.advance(1);
                continue;
            }
            batch.latents.extend(latent_of(&sample, name, shape)?);
            batch.files.push(file);
            if batch.files.len() == self.batch {
                let full = std::mem::take(&mut batch);
                if TimeSplit::add(waits, || batches.send(Ok(full))).is_err() {
                    return Ok(());
                }
            }
        }
        if !batch.files.is_empty() {
            // As above: whoever stopped listening has a reason of its own.
            let _ = batches.send(Ok(batch));
        }
        Ok(())
    }

    fn decode(
        &self,
        batches: Receiver<anyhow::Result<Batch>>,
        decoded: Sender<(Pixels, PathBuf)>,
        interrupt: &Interrupt,
        time: &mut TimeSplit,
    ) -> anyhow::Result<()> {
        while let Ok(batch) = TimeSplit::add(&mut time.codec_waits_s, || batches.recv()) {
            let Batch { latents, files } = batch?;
            interrupt.check()?;
            let pictures = TimeSplit::add(&mut time.codec_s, || self.codec.decode(&latents))?;
            for picture in pictures.into_iter().zip(files) {
                if TimeSplit::add(&mut time.codec_blocked_s, || decoded.send(picture)).is_err() {
                    // All writers have stopped, each with its own error.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Writes what comes; pictures written and seconds spent.
    fn write(&self, pictures: &Receiver<(Pixels, PathBuf)>, progress: &Progress) -> anyhow::Result<(usize, f64)> {
        let (mut written, mut seconds) = (0, 0.0);
        for (pixels, file) in pictures {
            TimeSplit::add(&mut seconds, || {
                if let Some(folder) = file.parent() {
                    make_folder(folder)?;
                }
                let png = write_png(&pixels, self.compression).with_context(|| file.display().to_string())?;
                write_atomically_unsynced(&file, &png)
            })?;
            progress.advance(1);
            written += 1;
        }
        Ok((written, seconds))
    }
}

fn join<R>(thread: thread::ScopedJoinHandle<R>) -> R {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
