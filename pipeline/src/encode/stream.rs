//! The threads of a run and the channels between them.
//!
//! A planner walks through the sources in order. For each it puts a job into the channel that all loaders share, and the
//! place where the answer will appear into the channel that the codec follows: so loaders finish in any order, the codec
//! sees the order of the sources, and what is in memory is bounded by the channels.

use std::ops::Range;
use std::thread;

use crossbeam_channel::{bounded, Receiver, Sender};
use deepflow_datasets::DatasetWriter;
use deepflow_preprocess::codec::Codec;
use deepflow_preprocess::picture::Pixels;
use deepflow_preprocess::sources::{Entry, Sources};

use super::load::{load, Picture, Unusable};
use super::shard::{Batch, Shards};
use super::skipped::Incident;
use super::{threads, EncodeOptions};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::time_split::TimeSplit;

/// Batches between the codec and the writer.
const BATCHES_AHEAD: usize = 2;

/// What a run works with.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub options: &'a EncodeOptions,
    pub sources: &'a Sources,
    pub codec: &'a dyn Codec,
    pub writer: &'a DatasetWriter,
}

/// What a run did.
#[derive(Default)]
pub(super) struct Done {
    pub samples: usize,
    pub shards_found: usize,
}

type Loaded = Result<Picture, Unusable>;

/// In the order of the sources.
enum Step<'a> {
    Picture {
        shard: usize,
        entry: &'a Entry,
        loaded: Receiver<Loaded>,
    },
    EndOfShard {
        shard: usize,
    },
}

/// From the codec to the writer.
enum Write<'a> {
    Batch { shard: usize, batch: Batch<'a> },
    EndOfShard { shard: usize, incidents: Vec<Incident> },
}

impl Job<'_> {
    /// The sources of a shard.
    pub(super) fn range(&self, shard: usize) -> Range<usize> {
        let start = shard * self.options.shard_samples;
        start..(start + self.options.shard_samples).min(self.sources.entries().len())
    }

    fn batch(&self) -> usize {
        self.options
            .batch
            .unwrap_or_else(|| self.codec.preferred_batch())
            .max(1)
    }
}

/// Encodes `shards`, those that are not whole yet.
pub(super) fn run(
    job: &Job,
    shards: &[usize],
    progress: &Progress,
    interrupt: &Interrupt,
    time: &mut TimeSplit,
) -> anyhow::Result<Done> {
    let loaders = threads(job.options);
    time.threads = loaders;
    let (job_sender, jobs) = bounded(loaders);
    // Enough for a batch to be gathered while another is in the codec.
    let (step_sender, steps) = bounded(2 * job.batch() + loaders);
    let (write_sender, writes) = bounded(BATCHES_AHEAD);
    thread::scope(|scope| {
        let planner = scope.spawn(|| plan(job, shards, job_sender, step_sender, progress, interrupt));
        for _ in 0..loaders {
            let jobs: Receiver<(&Entry, Sender<Loaded>)> = jobs.clone();
            scope.spawn(move || {
                for (entry, answer) in jobs {
                    // Nobody listens any more once the run has failed or was interrupted.
                    let _ = answer.send(load(job.options, job.sources, entry));
                }
            });
        }
        drop(jobs);
        let writer = scope.spawn(|| write(job, writes, progress));
        let encoded = encode(job, steps, write_sender, time);
        // The first cause counts: a writer that failed makes the codec stop, and the codec the planner.
        let (samples, write_s) = join(writer)??;
        time.write_s = write_s;
        encoded?;
        let shards_found = join(planner)??;
        Ok(Done { samples, shards_found })
    })
}

fn join<R>(thread: thread::ScopedJoinHandle<R>) -> anyhow::Result<R> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a thread of the encode stage failed without a reason; this is a defect"))
}

/// Hands out the sources of every shard that is not whole; the number of those that are.
fn plan<'a>(
    job: &Job<'a>,
    shards: &[usize],
    jobs: Sender<(&'a Entry, Sender<Loaded>)>,
    steps: Sender<Step<'a>>,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<usize> {
    let mut found = 0;
    for &shard in shards {
        interrupt.check()?;
        let range = job.range(shard);
        if job.writer.is_complete(shard)? {
            found += 1;
            progress.advance(range.len() as u64);
            continue;
        }
        for entry in &job.sources.entries()[range] {
            interrupt.check()?;
            let (answer, loaded) = bounded(1);
            // The other side hangs up only after an error, which it reports.
            if jobs.send((entry, answer)).is_err() || steps.send(Step::Picture { shard, entry, loaded }).is_err() {
                return Ok(found);
            }
        }
        if steps.send(Step::EndOfShard { shard }).is_err() {
            return Ok(found);
        }
    }
    Ok(found)
}

/// Gathers pictures into batches, none across two shards, and encodes them.
fn encode<'a>(
    job: &Job<'a>,
    steps: Receiver<Step<'a>>,
    writes: Sender<Write<'a>>,
    time: &mut TimeSplit,
) -> anyhow::Result<()> {
    let size = job.batch();
    let (mut entries, mut pictures, mut incidents) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let step = TimeSplit::add(&mut time.codec_waits_s, || {
            steps.recv().ok().map(|step| match step {
                Step::Picture { shard, entry, loaded } => (shard, Some((entry, loaded.recv()))),
                Step::EndOfShard { shard } => (shard, None),
            })
        });
        let Some((shard, picture)) = step else { return Ok(()) };
        let end_of_shard = picture.is_none();
        match picture {
            Some((entry, Ok(Ok(picture)))) => {
                time.add_load(picture.time);
                if picture.repaired {
                    incidents.push(Incident::Repaired {
                        key: entry.key.clone(),
                        source: job.sources.describe(entry),
                    });
                }
                entries.push(entry);
                pictures.push(picture);
            }
            Some((entry, Ok(Err(reason)))) => {
                let (key, source) = (entry.key.clone(), job.sources.describe(entry));
                let incident = Incident::Skipped {
                    key,
                    source,
                    reason: reason.to_string(),
                };
                tracing::warn!("skipped {incident}");
                incidents.push(incident);
            }
            // A loader is gone: the run is being given up.
            Some((_, Err(_))) => return Ok(()),
            None => {}
        }
        if !entries.is_empty() && (entries.len() == size || end_of_shard) {
            let batch = encode_batch(job, std::mem::take(&mut entries), std::mem::take(&mut pictures), time)?;
            let write = Write::Batch { shard, batch };
            if !TimeSplit::add(&mut time.codec_blocked_s, || writes.send(write).is_ok()) {
                return Ok(());
            }
        }
        if end_of_shard {
            let incidents = std::mem::take(&mut incidents);
            if writes.send(Write::EndOfShard { shard, incidents }).is_err() {
                return Ok(());
            }
        }
    }
}

fn encode_batch<'a>(
    job: &Job,
    entries: Vec<&'a Entry>,
    mut pictures: Vec<Picture>,
    time: &mut TimeSplit,
) -> anyhow::Result<Batch<'a>> {
    let pixels: Vec<Pixels> = pictures.iter().map(|picture| picture.pixels.clone()).collect();
    let mirrored: Vec<Pixels> = pictures
        .iter_mut()
        .filter_map(|picture| picture.mirrored.take())
        .collect();
    TimeSplit::add(&mut time.codec_s, || {
        let moments = job.codec.encode(&pixels)?;
        let mirrored = (!mirrored.is_empty())
            .then(|| job.codec.encode(&mirrored))
            .transpose()?;
        Ok(Batch {
            entries,
            pictures,
            moments,
            mirrored,
        })
    })
}

/// Writes what comes; samples written and seconds spent.
fn write(job: &Job, writes: Receiver<Write>, progress: &Progress) -> anyhow::Result<(usize, f64)> {
    let mut shards = Shards::new(job.options, job.sources, job.codec.identity(), job.writer);
    let mut seconds = 0.0;
    for step in writes {
        TimeSplit::add(&mut seconds, || match step {
            Write::Batch { shard, batch } => {
                shards.write(shard, &batch)?;
                progress.advance(batch.entries.len() as u64);
                Ok(())
            }
            Write::EndOfShard { shard, incidents } => {
                let skipped = incidents.iter().filter(|incident| incident.is_skipped()).count();
                progress.advance(skipped as u64);
                shards.finish(shard, &incidents)
            }
        })?;
    }
    Ok((shards.samples, seconds))
}
