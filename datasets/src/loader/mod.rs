//! The streaming loader: reader threads → bounded channels → batches, in an order that nothing can change.
//!
//! The consumer plans: every call of [`Loader::next_batch`] tops up the channel of jobs with the next global batches and
//! then waits for the oldest one, so that batches arrive in order without a buffer for sorting, and so that no more than
//! `prefetch` of them exist. Each job is made by one thread from beginning to end. For shards that are read whole,
//! fetching threads work ahead by one block.

mod batch;
mod config;
mod decode;
mod fetch;
mod find;
mod schedule;
mod stats;
mod window;
mod worker;

pub use batch::{AlignedBuffer, Batch, Features};
pub use config::{LastBatch, LoaderConfig, LoaderState, OnError, Posterior, Shuffle};
pub use stats::LoaderStats;

use crate::{Dataset, Error, Result};
use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender};
use decode::Decoder;
use schedule::Schedule;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use window::Window;
use worker::{Job, Shared};

/// How long one look for a batch lasts where nobody has to be looked after meanwhile.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Streams the batches of a data set. Dropping it stops and joins its threads.
///
/// ```no_run
/// use deepflow_datasets::{Dataset, Loader, LoaderConfig, LoaderState, OpenOptions};
/// use std::sync::Arc;
///
/// let dataset = Arc::new(Dataset::open("latents".as_ref(), OpenOptions::default())?);
/// let config = LoaderConfig { seed: 42, batch_size: 64, ..LoaderConfig::default() };
/// let mut loader = Loader::new(dataset, &config, LoaderState::default())?;
/// while let Some(batch) = loader.next_batch()? {
///     println!("{} samples, the first is {}", batch.len(), batch.keys[0]);
///     let resume_from_here = batch.next;
/// }
/// # Ok::<(), deepflow_datasets::Error>(())
/// ```
pub struct Loader {
    schedule: Schedule,
    window: Window,
    pending: VecDeque<(u64, Receiver<Result<Batch>>)>,
    prefetch: usize,
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    state: LoaderState,
    failed: bool,
    /// Places of the epoch passed since a batch had rows.
    passed_in_vain: u64,
    batches: u64,
    waited: Duration,
    began: Instant,
}

/// What [`Loader::poll_batch`] has.
#[derive(Debug)]
pub enum Polled {
    /// The next batch.
    Batch(Box<Batch>),
    /// The batch is not made yet.
    Pending,
    /// The last epoch has ended.
    End,
}

impl Loader {
    /// Starts the threads; the first batch is the one at `state`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Io`] if the system gives no threads.
    pub fn new(dataset: Arc<Dataset>, config: &LoaderConfig, state: LoaderState) -> Result<Self> {
        config.check(&dataset)?;
        let scale = config
            .scale_factor
            .or(dataset.codec().map(|codec| codec.scale_factor))
            .unwrap_or(1.0);
        let known_classes = u32::try_from(dataset.classes()).ok().filter(|&classes| classes > 0);
        let classes = config.classes.or(known_classes);
        let latent_shape = dataset.latent_shape();
        let schedule = Schedule::new(&dataset, config, state);

        let (jobs, job_queue) = bounded(config.prefetch);
        // As many shards are asked for as the window holds, which is the bound.
        let (fetch, fetch_queue) = unbounded();
        let (return_buffers, empty_buffers) = bounded(config.prefetch + config.readers + 1);
        let shared = Arc::new(Shared {
            dataset,
            latent_shape,
            features: config.features,
            on_error: config.on_error,
            stop: AtomicBool::new(false),
            counters: stats::Counters::default(),
            empty_buffers,
            return_buffers,
        });
        let mut loader = Self {
            window: Window::new(fetch),
            pending: VecDeque::with_capacity(config.prefetch),
            prefetch: config.prefetch,
            jobs: Some(jobs),
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            state,
            failed: false,
            passed_in_vain: 0,
            batches: 0,
            waited: Duration::ZERO,
            began: Instant::now(),
            schedule,
        };
        for _ in 0..config.readers {
            let decoder = Decoder::new(config, scale, classes, latent_shape);
            let (shared, jobs) = (Arc::clone(&shared), job_queue.clone());
            loader.spawn("deepflow-reader", move || worker::run(&shared, decoder, &jobs))?;
            if loader.schedule.reads_whole_shards() {
                let (shared, jobs) = (Arc::clone(&loader.shared), fetch_queue.clone());
                loader.spawn("deepflow-fetch", move || {
                    fetch::run(&shared.dataset, &jobs, &shared.stop)
                })?;
            }
        }
        loader.plan_ahead();
        Ok(loader)
    }

    /// The next batch; `None` after the last epoch, or after an error.
    ///
    /// # Errors
    /// What is wrong with a shard or a sample, at the place where its batch would stand; [`Error::NothingReadable`] if
    /// errors are skipped and nothing else is left.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        loop {
            match self.poll_batch(PATIENCE)? {
                Polled::Batch(batch) => return Ok(Some(*batch)),
                Polled::Pending => {}
                Polled::End => return Ok(None),
            }
        }
    }

    /// The next batch if it is there within `patience`, for consumers that must look after other things meanwhile.
    ///
    /// # Errors
    /// Those of [`Self::next_batch`].
    pub fn poll_batch(&mut self, patience: Duration) -> Result<Polled> {
        loop {
            self.plan_ahead();
            let Some((position, awaited)) = self.pending.front() else {
                return self.end();
            };
            let began = Instant::now();
            let received = awaited.recv_timeout(patience);
            let position = *position;
            self.waited += began.elapsed();
            if matches!(received, Err(RecvTimeoutError::Timeout)) {
                return Ok(Polled::Pending);
            }
            self.pending.pop_front();
            let batch = received
                .unwrap_or(Err(Error::ReaderPanicked { position }))
                .and_then(|batch| self.check_progress(batch))
                .inspect_err(|_| {
                    self.failed = true;
                    self.pending.clear();
                })?;
            self.state = batch.next;
            // A batch can be empty if all its samples were skipped.
            if !batch.is_empty() {
                self.batches += 1;
                self.plan_ahead();
                return Ok(Polled::Batch(Box::new(batch)));
            }
        }
    }

    /// An end without a single batch for all that was skipped is not a success.
    fn end(&mut self) -> Result<Polled> {
        if self.passed_in_vain > 0 && self.batches == 0 && !self.failed {
            self.failed = true;
            let samples = self.shared.dataset.len();
            return Err(Error::NothingReadable { samples });
        }
        Ok(Polled::End)
    }

    /// A data set of which nothing can be read must not be searched for ever.
    fn check_progress(&mut self, batch: Batch) -> Result<Batch> {
        self.passed_in_vain += self.schedule.global_batch();
        if !batch.is_empty() {
            self.passed_in_vain = 0;
        }
        let samples = self.shared.dataset.len();
        if self.passed_in_vain >= samples {
            return Err(Error::NothingReadable { samples });
        }
        Ok(batch)
    }

    /// Where to continue after the batch delivered last.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// What was done so far.
    pub fn stats(&self) -> LoaderStats {
        self.shared
            .counters
            .snapshot(self.batches, self.waited, self.began.elapsed())
    }

    /// Hands out the next batches until as many are under way as the configuration allows.
    fn plan_ahead(&mut self) {
        let Some(jobs) = self.jobs.as_ref().filter(|_| !self.failed) else {
            return;
        };
        while self.pending.len() < self.prefetch {
            let Some(plan) = self.schedule.next_batch() else { return };
            let position = plan.positions.start;
            let blocks = self.window.blocks_for(&plan);
            let (result, awaited) = bounded(1);
            // If all readers are gone the job is dropped, and the batch is found missing when its turn comes.
            let _ = jobs.send(Job { plan, blocks, result });
            self.pending.push_back((position, awaited));
        }
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(Error::io(name, "start a thread"))?);
        Ok(())
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.pending.clear();
        self.jobs = None;
        self.window.close();
        for thread in self.threads.drain(..) {
            // A panic of a reader was reported as an error of its batch.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
