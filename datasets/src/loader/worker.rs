//! Makes batches out of samples.

use super::batch::Line;
use super::decode::Decoder;
use super::find::{find, pieces, Found, AHEAD};
use super::schedule::BatchPlan;
use super::stats::Counters;
use super::window::Block;
use super::{AlignedBuffer, Batch, Features, OnError};
use crate::dataset::SampleRef;
use crate::{Dataset, Error, Result};
use crossbeam_channel::{Receiver, Sender};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// A batch to make, and where it is awaited.
pub(super) struct Job {
    pub(super) plan: BatchPlan,
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) result: Sender<Result<Batch>>,
}

/// What the reader threads share.
pub(super) struct Shared {
    pub(super) dataset: Arc<Dataset>,
    pub(super) latent_shape: [usize; 3],
    pub(super) features: bool,
    pub(super) on_error: OnError,
    pub(super) stop: AtomicBool,
    pub(super) counters: Counters,
    pub(super) empty_buffers: Receiver<Vec<Line>>,
    pub(super) return_buffers: Sender<Vec<Line>>,
}

/// What a reader thread has for itself.
struct Reader {
    decoder: Decoder,
    /// The bytes of a sample, where they have to be read.
    buffer: Vec<u8>,
}

/// The work of a reader thread: until the loader is dropped.
pub(super) fn run(shared: &Shared, decoder: Decoder, jobs: &Receiver<Job>) {
    let buffer = Vec::new();
    let mut reader = Reader { decoder, buffer };
    for Job { plan, blocks, result } in jobs {
        if shared.stop.load(Ordering::Relaxed) {
            continue;
        }
        // Nobody awaits the batch any more if the loader was dropped meanwhile.
        let _ = result.send(make_batch(shared, &mut reader, &plan, &blocks));
    }
}

fn make_batch(shared: &Shared, reader: &mut Reader, plan: &BatchPlan, blocks: &[Arc<Block>]) -> Result<Batch> {
    let rows = (plan.positions.end - plan.positions.start) as usize;
    let latent_length = shared.latent_shape.iter().product::<usize>();
    let lines = shared.empty_buffers.try_recv().unwrap_or_default();
    let mut batch = Batch {
        epoch: plan.epoch,
        positions: Vec::with_capacity(rows),
        keys: Vec::with_capacity(rows),
        classes: Vec::with_capacity(rows),
        latents: AlignedBuffer::recycled(lines, rows * latent_length, shared.return_buffers.clone()),
        latent_shape: shared.latent_shape,
        features: shared.features.then(|| Features {
            data: Vec::new(),
            shape: [0, 0],
        }),
        real: 0,
        skipped: 0,
        next: plan.next,
    };
    // A shard that cannot be read is the same reason for all its samples: once a batch is enough.
    let mut reported = String::new();
    for positions in pieces(&plan.positions, AHEAD) {
        let found = find(&shared.dataset, plan, blocks, &positions);
        for (position, found) in positions.zip(found) {
            if shared.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let row = batch.len();
            let latent = row * latent_length..(row + 1) * latent_length;
            let added = found.and_then(|found| add_row(shared, reader, plan, found, position, &mut batch, latent));
            match added {
                Ok(()) => batch.real += usize::from(position < plan.samples),
                Err(error) if shared.on_error == OnError::Skip && error.is_about_a_sample() => {
                    batch.skipped += 1;
                    let reason = error.to_string();
                    if reason != reported {
                        tracing::warn!("skipped: {reason}");
                        reported = reason;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    batch.latents.truncate(batch.len() * latent_length);
    shared
        .counters
        .made(batch.len() as u64, batch.skipped, (batch.latents.len() * 4) as u64);
    Ok(batch)
}

fn add_row(
    shared: &Shared,
    Reader { decoder, buffer }: &mut Reader,
    plan: &BatchPlan,
    (shard, index): Found,
    position: u64,
    batch: &mut Batch,
    latent: Range<usize>,
) -> Result<()> {
    let sample = shard.sample(index, buffer)?;
    if shard.is_mapped() {
        shared.dataset.residency().touch(&shard, sample.bytes());
    }
    let class = decoder.class(sample)?;
    decoder.latent(sample, plan.epoch, position, &mut batch.latents[latent])?;
    add_features(decoder, sample, batch)?;
    batch.positions.push(position);
    batch.keys.push(sample.key().to_owned());
    batch.classes.push(class);
    Ok(())
}

fn add_features(decoder: &mut Decoder, sample: SampleRef<'_>, batch: &mut Batch) -> Result<()> {
    let first = batch.positions.is_empty();
    if let Some(features) = &mut batch.features {
        features.shape = decoder.features(sample, &mut features.data, (!first).then_some(features.shape))?;
    }
    Ok(())
}
