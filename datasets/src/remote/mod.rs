//! Shards on other machines: `http(s)://`, `s3://`, `gs://`, `az://`, through `object_store` on a tokio runtime of two
//! threads. A shard is fetched whole, in ranges, several at a time; each range is tried again when the connection
//! drops, stalls, ends early or the server says 5xx.

mod cache;
mod store;

pub use cache::CacheOptions;

use crate::{hash, Error, Result, ShardRecord};
use cache::ShardCache;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// How often a waiting thread looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// How remote shards are fetched.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// Settings of the store by `object_store`'s names, for example `("aws_endpoint", "http://localhost:9000")`. They
    /// override those of the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`). An endpoint that begins with `http://`
    /// permits connections without encryption.
    pub settings: Vec<(String, String)>,
    /// Bytes of one request. Default: 8 MiB.
    pub range_bytes: u64,
    /// Requests under way for one shard. Default: 4.
    pub concurrency: usize,
    /// How often a range is tried. Default: 6.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles from attempt to attempt. Default: 200 ms.
    pub backoff: Duration,
    /// How long one request may take, so that a stalled connection is given up. Default: 30 s.
    pub request_timeout: Duration,
    /// Where fetched shards are kept, if anywhere.
    pub cache: Option<CacheOptions>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            settings: Vec::new(),
            range_bytes: 8 << 20,
            concurrency: 4,
            attempts: 6,
            backoff: Duration::from_millis(200),
            request_timeout: Duration::from_secs(30),
            cache: None,
        }
    }
}

/// A remote folder of shards.
pub(crate) struct RemoteFolder {
    url: String,
    store: Arc<dyn ObjectStore>,
    folder: ObjectPath,
    runtime: Runtime,
    options: RemoteOptions,
    cache: Option<ShardCache>,
}

impl RemoteFolder {
    pub(crate) fn open(url: &str, options: RemoteOptions) -> Result<Self> {
        let (store, folder) = store::connect(url, &options.settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("deepflow-remote")
            .enable_all()
            .build()
            .map_err(Error::io(url, "start the runtime for"))?;
        let cache = options.cache.clone().map(ShardCache::new).transpose()?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self {
            url,
            store,
            folder,
            runtime,
            options,
            cache,
        })
    }

    /// The address of the folder.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The address of a file of the folder.
    pub(crate) fn address(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// A file of unknown size.
    pub(crate) fn fetch(&self, name: &str) -> Result<Vec<u8>> {
        let stop = AtomicBool::new(false);
        let location = self.folder.clone().join(name);
        let (store, place) = (Arc::clone(&self.store), location.clone());
        let head = move || {
            let (store, place) = (Arc::clone(&store), place.clone());
            async move { store.head(&place).await.map(|meta| meta.size) }
        };
        let size = self.stoppable(attempt(self.address(name), self.options.clone(), head), &stop)?;
        self.stoppable(self.fetch_ranges(name, location, size), &stop)
    }

    /// A shard, from the cache if it is there undamaged. Gives up soon after `stop` is set.
    ///
    /// What the cache gives is always checked against the record's SHA-256, what the store gives if `verify` is set.
    pub(crate) fn fetch_shard(&self, record: &ShardRecord, verify: bool, stop: &AtomicBool) -> Result<Vec<u8>> {
        let Some(cache) = &self.cache else {
            return self.download(record, verify, stop);
        };
        if let Some(cached) = cache.get(record) {
            return Ok(cached);
        }
        // Ranks on one machine need the same shards at the same time: one fetches, the others wait for it.
        let _claim = cache.claim(record, stop)?;
        if let Some(cached) = cache.get(record) {
            return Ok(cached);
        }
        let bytes = self.download(record, true, stop)?;
        cache.put(record, &bytes);
        Ok(bytes)
    }

    fn download(&self, record: &ShardRecord, verify: bool, stop: &AtomicBool) -> Result<Vec<u8>> {
        let mut tried_again = false;
        loop {
            let location = self.folder.clone().join(record.name.as_str());
            let fetched = self.stoppable(self.fetch_ranges(&record.name, location, record.bytes), stop);
            let bytes = fetched.map_err(|error| match error {
                Error::NotFound { .. } => Error::ShardMissing {
                    shard: record.name.clone(),
                    location: self.url.clone(),
                },
                other => other,
            })?;
            if !verify {
                return Ok(bytes);
            }
            match hash::check(&bytes, record) {
                Ok(()) => return Ok(bytes),
                Err(error) if tried_again => return Err(error),
                // The network's own checksums are weak: what was damaged on the way arrives whole the second time.
                Err(error) => tracing::warn!("{error}; fetching the shard again"),
            }
            tried_again = true;
        }
    }

    async fn fetch_ranges(&self, name: &str, location: ObjectPath, size: u64) -> Result<Vec<u8>> {
        let step = self.options.range_bytes.max(1);
        let mut starts = (0..size).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        let mut bytes = Vec::new();
        let mut running = JoinSet::new();
        let begin = |start: u64| {
            let range = start..(start + step).min(size);
            let (store, location) = (Arc::clone(&self.store), location.clone());
            let (address, options) = (self.address(name), self.options.clone());
            async move { fetch_range(store, location, range, address, options).await }
        };
        for start in starts.by_ref().take(self.options.concurrency.max(1)) {
            running.spawn(begin(start));
        }
        while let Some(joined) = running.join_next().await {
            let fetched = joined.map_err(|_| Error::FetchPanicked { shard: name.to_owned() })?;
            let (start, part) = match fetched {
                Err(Error::RangesNotServed { .. }) => return self.fetch_at_once(name, location.clone()).await,
                other => other?,
            };
            // Room is made as the parts arrive: the size is the index's claim.
            let end = start as usize + part.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start as usize..end].copy_from_slice(&part);
            if let Some(start) = starts.next() {
                running.spawn(begin(start));
            }
        }
        Ok(bytes)
    }

    /// For servers that know no ranges, such as Python's `http.server`.
    async fn fetch_at_once(&self, name: &str, location: ObjectPath) -> Result<Vec<u8>> {
        let request = || {
            let (store, location) = (Arc::clone(&self.store), location.clone());
            async move { Ok(store.get(&location).await?.bytes().await?.to_vec()) }
        };
        attempt(self.address(name), self.options.clone(), request).await
    }

    fn stoppable<T>(&self, work: impl Future<Output = Result<T>>, stop: &AtomicBool) -> Result<T> {
        self.runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                if let Ok(result) = tokio::time::timeout(STOP_INTERVAL, work.as_mut()).await {
                    return result;
                }
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::Stopped);
                }
            }
        })
    }
}

async fn fetch_range(
    store: Arc<dyn ObjectStore>,
    location: ObjectPath,
    range: Range<u64>,
    address: String,
    options: RemoteOptions,
) -> Result<(u64, Vec<u8>)> {
    let wanted = range.end - range.start;
    let request = || {
        let (store, location, range) = (Arc::clone(&store), location.clone(), range.clone());
        async move {
            let part = store.get_range(&location, range).await?;
            if part.len() as u64 == wanted {
                return Ok(part.to_vec());
            }
            let reason = format!("{} bytes arrived, expected {wanted}", part.len());
            Err(object_store::Error::Generic {
                store: "range",
                source: reason.into(),
            })
        }
    };
    Ok((range.start, attempt(address, options, request).await?))
}

/// Repeats a request, with growing pauses, until it succeeds or fails for a reason that time does not cure.
async fn attempt<T, F>(address: String, options: RemoteOptions, request: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    use object_store::Error as Remote;
    let mut pause = options.backoff;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (reason, lasting) = match tokio::time::timeout(options.request_timeout, request()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(Remote::NotFound { .. })) => return Err(Error::NotFound { url: address }),
            Ok(Err(Remote::NotSupported { .. })) => return Err(Error::RangesNotServed { url: address }),
            Ok(Err(error)) => (one_line(&error), is_lasting(&error)),
            Err(_) => (format!("no answer within {:?}", options.request_timeout), false),
        };
        if lasting || attempts >= options.attempts {
            return Err(Error::Remote {
                url: address,
                reason,
                attempts,
            });
        }
        tracing::debug!("{address}: {reason}; trying again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

fn is_lasting(error: &object_store::Error) -> bool {
    use object_store::Error as Remote;
    matches!(
        error,
        Remote::InvalidPath { .. }
            | Remote::PermissionDenied { .. }
            | Remote::Unauthenticated { .. }
            | Remote::UnknownConfigurationKey { .. }
    )
}

fn one_line(error: &object_store::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
