//! A server that misbehaves on purpose, and reading from it.
#![allow(dead_code, clippy::unwrap_used)]

use deepflow_datasets::{Dataset, Error, Loader, LoaderConfig, LoaderState, OpenOptions, RemoteOptions, Shuffle};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the server does to a request.
#[derive(Clone, Copy, PartialEq)]
pub enum Behaviour {
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
    /// Sends the whole file whatever part was asked for, as Python's `http.server` does.
    Whole,
}

pub struct Server {
    pub port: u16,
    pub requests: Arc<AtomicUsize>,
}

impl Server {
    /// Serves a folder; `behaviour` is given a file's name and the number of earlier requests for it.
    pub fn start(folder: &Path, behaviour: impl Fn(&str, usize) -> Behaviour + Send + Sync + 'static) -> Self {
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

    pub fn url(&self) -> String {
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
    // Google's store is asked for `bucket/some%2Fshards%2Findex%2Ejson`.
    let path = path.replace("%2F", "/").replace("%2E", ".").replace("%2D", "-");
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
    if behaviour == Behaviour::Whole {
        range = None;
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

pub fn options_with(change: impl FnOnce(&mut RemoteOptions)) -> OpenOptions {
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

pub fn open(server: &Server, change: impl FnOnce(&mut RemoteOptions)) -> Dataset {
    Dataset::open_location(&server.url(), options_with(change)).unwrap()
}

pub fn loader(dataset: Dataset) -> Result<Loader, Error> {
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

pub type Rows = Vec<(String, Vec<u32>)>;

pub fn rows(dataset: Dataset) -> Result<Rows, Error> {
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

pub fn local_rows(folder: &Path) -> Rows {
    rows(Dataset::open(folder, options_with(|_| ())).unwrap()).unwrap()
}

pub fn only_shards(behaviour: Behaviour) -> impl Fn(&str, usize) -> Behaviour {
    move |name, _| {
        if name.contains(".tar") {
            behaviour
        } else {
            Behaviour::Serve
        }
    }
}
