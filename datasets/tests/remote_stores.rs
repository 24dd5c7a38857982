//! Remote shards from stores of every kind, served on loopback.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::server::{local_rows, options_with, rows, Behaviour, Server};
use common::write;
use deepflow_datasets::{Compression, Dataset};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

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

/// The address of a folder in a store of each kind, and the settings that lead it to a server on loopback.
fn stores(port: u16) -> Vec<(&'static str, Vec<(String, String)>)> {
    let endpoint = format!("http://127.0.0.1:{port}");
    let settings = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    vec![
        (
            "s3://bucket/some/shards",
            settings(&[
                ("aws_endpoint", &endpoint),
                ("aws_region", "us-east-1"),
                ("aws_skip_signature", "true"),
            ]),
        ),
        (
            "gs://bucket/some/shards",
            settings(&[("google_base_url", &endpoint), ("google_skip_signature", "true")]),
        ),
        (
            "az://container/some/shards",
            settings(&[
                ("azure_storage_account_name", "account"),
                ("azure_storage_endpoint", &endpoint),
                ("azure_skip_signature", "true"),
            ]),
        ),
    ]
}

#[test]
fn stores_of_every_kind_are_read_through_refusals_and_lost_connections() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9, 8, 15], Compression::Zstd(1));
    let expected = local_rows(folder.path());
    let server = Server::start(folder.path(), |_, request| match request % 4 {
        0 => Behaviour::Refuse,
        1 => Behaviour::Drop,
        _ => Behaviour::Serve,
    });
    for (address, settings) in stores(server.port) {
        let options = options_with(|remote| {
            remote.settings = settings;
            remote.attempts = 60;
        });
        let dataset = Dataset::open_location(address, options).unwrap_or_else(|error| panic!("{address}: {error}"));
        let found = rows(dataset).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(found == expected, "{address}");
    }
}
