//! Remote shards from real servers on loopback: an HTTP server that misbehaves on purpose, and an S3 server.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::write;
use deepflow_datasets::{
    CacheOptions, Compression, Dataset, Error, Loader, LoaderConfig, LoaderState, OpenOptions, RemoteOptions, Shuffle,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What the server does to a request.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Serve,
    /// Says 503.
    Refuse,
    /// Promises everything, sends half, closes.
    Drop,
    /// Promises everything, sends half, then nothing more.
    Stall,
    /// Sends half of the range as if that were all.
    Short,
    /// Flips a bit.
    Corrupt,
}

struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// Serves a folder; `behaviour` is given a file's name and the number of earlier requests for it.
    fn start(folder: &Path, behaviour: impl Fn(&str, usize) -> Behaviour + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let (folder, behaviour, counted) = (folder.to_owned(), Arc::new(behaviour), Arc::clone(&requests));
        let seen = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, behaviour) = (folder.clone(), Arc::clone(&behaviour));
                let (seen, counted) = (Arc::clone(&seen), Arc::clone(&counted));
                thread::spawn(move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let choose = |name: &str| {
                        let mut seen = seen.lock().unwrap();
                        let count = seen.entry(name.to_owned()).or_default();
                        *count += 1;
                        behaviour(name, *count - 1)
                    };
                    // The client may hang up at any time.
                    let _ = answer(stream, &folder, choose);
                });
            }
        });
        Self { port, requests }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/shards", self.port)
    }
}

fn answer(mut stream: TcpStream, folder: &Path, choose: impl Fn(&str) -> Behaviour) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (start, end) = value.trim().split_once('-').unwrap();
            range = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().unwrap() + 1));
        }
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let name = path.rsplit('/').next().unwrap_or_default();
    let Ok(content) = fs::read(folder.join(name)) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let behaviour = if method == "HEAD" {
        Behaviour::Serve
    } else {
        choose(name)
    };
    if behaviour == Behaviour::Refuse {
        return stream.write_all(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let (start, end) = range.unwrap_or((0, content.len()));
    let mut body = content[start..end.min(content.len())].to_vec();
    match behaviour {
        Behaviour::Short => body.truncate(body.len() / 2),
        Behaviour::Corrupt => body[0] ^= 1,
        _ => {}
    }
    let status = if range.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    )?;
    write!(
        stream,
        "Last-Modified: Sun, 01 Jan 2023 00:00:00 GMT\r\nETag: \"{name}\"\r\n"
    )?;
    if range.is_some() {
        write!(
            stream,
            "Content-Range: bytes {start}-{}/{}\r\n",
            (start + body.len()).max(1) - 1,
            content.len()
        )?;
    }
    stream.write_all(b"\r\n")?;
    if method == "HEAD" {
        return Ok(());
    }
    match behaviour {
        Behaviour::Drop => stream.write_all(&body[..body.len() / 2]),
        Behaviour::Stall => {
            stream.write_all(&body[..body.len() / 2])?;
            // Until the client hangs up.
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.read(&mut [0]).map(drop)
        }
        _ => stream.write_all(&body),
    }
}

fn options_with(change: impl FnOnce(&mut RemoteOptions)) -> OpenOptions {
    let mut remote = RemoteOptions {
        range_bytes: 5000,
        backoff: Duration::from_millis(5),
        request_timeout: Duration::from_millis(400),
        ..RemoteOptions::default()
    };
    change(&mut remote);
    OpenOptions {
        table_cache: None,
        remote,
        ..OpenOptions::default()
    }
}

fn open(server: &Server, change: impl FnOnce(&mut RemoteOptions)) -> Dataset {
    Dataset::open_location(&server.url(), options_with(change)).unwrap()
}

fn loader(dataset: Dataset) -> Result<Loader, Error> {
    let shuffle = Shuffle::Block { samples: 20 };
    let config = LoaderConfig {
        batch_size: 8,
        epochs: Some(1),
        seed: 3,
        shuffle,
        ..LoaderConfig::default()
    };
    Loader::new(Arc::new(dataset), &config, LoaderState::default())
}

type Rows = Vec<(String, Vec<u32>)>;

fn rows(dataset: Dataset) -> Result<Rows, Error> {
    let mut rows = Vec::new();
    for batch in loader(dataset)? {
        let batch = batch?;
        for (row, key) in batch.keys.iter().enumerate() {
            rows.push((
                key.clone(),
                batch.latent(row).iter().map(|value| value.to_bits()).collect(),
            ));
        }
    }
    Ok(rows)
}

fn local_rows(folder: &Path) -> Rows {
    rows(Dataset::open(folder, options_with(|_| ())).unwrap()).unwrap()
}

fn only_shards(behaviour: Behaviour) -> impl Fn(&str, usize) -> Behaviour {
    move |name, _| {
        if name.contains(".tar") {
            behaviour
        } else {
            Behaviour::Serve
        }
    }
}

#[test]
fn a_server_that_refuses_drops_stalls_and_falls_short_changes_nothing() {
    for compression in [Compression::None, Compression::Zstd(1)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[9, 8, 15], compression);
        let server = Server::start(folder.path(), |_, request| match request % 6 {
            0 => Behaviour::Refuse,
            1 => Behaviour::Drop,
            2 => Behaviour::Stall,
            3 => Behaviour::Short,
            _ => Behaviour::Serve,
        });
        let dataset = open(&server, |remote| remote.attempts = 60);
        assert!(!dataset.is_random_access());
        assert_eq!(rows(dataset).unwrap(), local_rows(folder.path()));
    }
}

#[test]
fn a_server_that_never_recovers_is_an_error_with_the_address() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Stall));
    let error = rows(open(&server, |remote| remote.attempts = 2)).unwrap_err();
    assert!(matches!(&error, Error::Remote { attempts: 2, .. }), "{error}");
    assert!(
        error.to_string().contains("/shards/latents-000000.tar") && !error.to_string().contains('\n'),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), |_, _| Behaviour::Serve);
    let error = Dataset::open_location(&server.url(), options_with(|_| ()))
        .err()
        .unwrap();
    assert!(matches!(&error, Error::Remote { attempts: 1, .. }), "{error}");
    let error = Dataset::open_location("gopher://host/shards", options_with(|_| ()))
        .err()
        .unwrap();
    assert!(matches!(&error, Error::UnknownLocation { .. }), "{error}");
}

#[test]
fn a_bit_that_flips_on_the_way_is_found() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Corrupt));
    let error = rows(open(&server, |_| ())).unwrap_err();
    assert!(matches!(&error, Error::HashMismatch { .. }), "{error}");
}

#[test]
fn dropping_a_loader_does_not_wait_for_a_stalled_server() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9, 9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Stall));
    let loader = loader(open(&server, |remote| remote.request_timeout = Duration::from_secs(25))).unwrap();
    // The loader has begun to fetch: planning starts with the loader, not with the first batch.
    // The first two requests are for the index.
    while server.requests.load(Ordering::Relaxed) < 3 {
        thread::sleep(Duration::from_millis(10));
    }
    let began = Instant::now();
    drop(loader);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "dropping took {:?}",
        began.elapsed()
    );
}

fn cached_shards(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.file_name().unwrap().len() == 64 + ".shard".len())
        .collect()
}

#[test]
fn the_cache_serves_shards_within_its_size_and_leaves_other_files_alone() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = write(folder.path(), &[9, 8, 10, 7], Compression::None);
    let largest = index.shards.iter().map(|shard| shard.bytes).max().unwrap();
    let server = Server::start(folder.path(), |_, _| Behaviour::Serve);
    let with_room_for = |bytes| {
        open(&server, |remote| {
            remote.cache = Some(CacheOptions {
                folder: cache.path().to_owned(),
                bytes,
            })
        })
    };
    fs::write(cache.path().join("notes.txt"), "mine").unwrap();
    fs::write(cache.path().join("mine.shard"), vec![0; 1 << 20]).unwrap();
    let expected = local_rows(folder.path());

    assert_eq!(rows(with_room_for(1 << 30)).unwrap(), expected);
    assert_eq!(cached_shards(cache.path()).len(), 4);
    let before = server.requests.load(Ordering::Relaxed);
    assert_eq!(rows(with_room_for(1 << 30)).unwrap(), expected);
    let fetched = server.requests.load(Ordering::Relaxed) - before;
    assert!(
        fetched <= 3,
        "the second run fetched more than the index: {fetched} requests"
    );

    // A damaged file is fetched again, and a small cache keeps to its size.
    cached_shards(cache.path())
        .iter()
        .for_each(|shard| fs::write(shard, "damaged").unwrap());
    assert_eq!(rows(with_room_for(1 << 30)).unwrap(), expected);
    cached_shards(cache.path())
        .iter()
        .for_each(|shard| fs::remove_file(shard).unwrap());
    assert_eq!(rows(with_room_for(2 * largest)).unwrap(), expected);
    let kept: u64 = cached_shards(cache.path())
        .iter()
        .map(|shard| fs::metadata(shard).unwrap().len())
        .sum();
    assert!(kept > 0 && kept <= 2 * largest, "{kept} bytes are kept");
    assert!(cache.path().join("notes.txt").exists() && cache.path().join("mine.shard").exists());
}

struct Moto(Child);

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the S3 server of the `moto` package, if the Python interpreter has it.
fn moto() -> Option<(Moto, String)> {
    let python = std::env::var("DEEPFLOW_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python)
        .args(["-c", "import moto.server, flask"])
        .stderr(Stdio::null())
        .status();
    if !has.is_ok_and(|status| status.success()) {
        let message = "has no moto[server]; set DEEPFLOW_PYTHON to test against an S3 server";
        eprintln!("SKIPPED: {python} {message}");
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(&python);
    command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
    let server = Moto(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    for _ in 0..600 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some((server, format!("http://127.0.0.1:{port}")));
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("the S3 server does not start");
}

#[test]
fn shards_are_read_from_an_s3_server() {
    use object_store::ObjectStoreExt;
    let Some((_server, endpoint)) = moto() else { return };
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9, 8, 15], Compression::Zstd(1));
    let settings = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_access_key_id", "test"),
        ("aws_secret_access_key", "test"),
        ("aws_region", "us-east-1"),
        ("aws_allow_http", "true"),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let mut bucket = TcpStream::connect(endpoint.trim_start_matches("http://")).unwrap();
    bucket
        .write_all(b"PUT /bucket HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .unwrap();
    bucket.read_to_string(&mut String::new()).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let url = url::Url::parse("s3://bucket/some/shards").unwrap();
    let (store, prefix) = object_store::parse_url_opts(&url, settings.clone()).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        runtime
            .block_on(store.put(&prefix.clone().join(name), fs::read(&path).unwrap().into()))
            .unwrap();
    }
    let options = options_with(|remote| {
        remote.settings = settings;
        remote.request_timeout = Duration::from_secs(20);
    });
    let dataset = Dataset::open_location(url.as_str(), options).unwrap();
    assert_eq!(rows(dataset).unwrap(), local_rows(folder.path()));
}
