//! TensorBoard event files: a TFRecord framing (length, data, each with a masked CRC-32C) around protobuf events.
//!
//! The formats are described in TensorFlow's `record_writer.h` and `event.proto`; only what a training run needs is here.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use prost::Message;

/// `tensorflow.Event`
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `tensorflow.SessionLog`
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1 is START.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `tensorflow.Summary`
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

/// `tensorflow.Summary.Value`
#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<SummaryImage>,
}

/// `tensorflow.Summary.Image`
#[derive(Clone, PartialEq, Message)]
struct SummaryImage {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3 is RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// One event file of a run. Every start of the program begins a new one; TensorBoard shows them as one run.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Starts `events.out.tfevents.SECONDS.MICROSECONDS.PROCESS.deepflow` in `folder`, for a run that continues after
    /// `step`. TensorBoard forgets what earlier files say of later steps: a killed run had gone further than its last
    /// checkpoint, or had none yet.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn continue_after(folder: &Path, step: u64) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, microseconds, process) = (now.as_secs(), now.subsec_micros(), std::process::id());
        // Read in the order of their names, which is that of their times.
        let path = folder.join(format!(
            "events.out.tfevents.{seconds:010}.{microseconds:06}.{process}.deepflow"
        ));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        let mut events = Self { file, path };
        events.write(&Event {
            wall_time: wall_time(),
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::default()
        })?;
        events.write(&Event {
            wall_time: wall_time(),
            step: (step + 1).cast_signed(),
            session_log: Some(SessionLog { status: 1 }),
            ..Event::default()
        })?;
        Ok(events)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes numbers by tag, all at `step`.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn scalars<'a>(&mut self, step: u64, scalars: impl IntoIterator<Item = (&'a str, f64)>) -> anyhow::Result<()> {
        let value = |(tag, number): (&str, f64)| SummaryValue {
            tag: tag.to_owned(),
            simple_value: Some(number as f32),
            image: None,
        };
        self.summary(step, scalars.into_iter().map(value).collect())
    }

    /// Writes a PNG of `width` by `height` RGB pixels.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn image(&mut self, step: u64, tag: &str, width: u32, height: u32, png: &[u8]) -> anyhow::Result<()> {
        let image = SummaryImage {
            height: height.cast_signed(),
            width: width.cast_signed(),
            colorspace: 3,
            encoded_image_string: png.to_vec(),
        };
        self.summary(
            step,
            vec![SummaryValue {
                tag: tag.to_owned(),
                simple_value: None,
                image: Some(image),
            }],
        )
    }

    fn summary(&mut self, step: u64, value: Vec<SummaryValue>) -> anyhow::Result<()> {
        self.write(&Event {
            wall_time: wall_time(),
            step: step.cast_signed(),
            summary: Some(Summary { value }),
            ..Event::default()
        })
    }

    fn write(&mut self, event: &Event) -> anyhow::Result<()> {
        self.file
            .write_all(&record(&event.encode_to_vec()))
            .with_context(|| self.path.display().to_string())
    }
}

/// The TFRecord framing of `data`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut framed = Vec::with_capacity(data.len() + 16);
    framed.extend_from_slice(&length);
    framed.extend_from_slice(&masked_crc(&length).to_le_bytes());
    framed.extend_from_slice(data);
    framed.extend_from_slice(&masked_crc(data).to_le_bytes());
    framed
}

/// TensorFlow stores checksums rotated and shifted, so that a checksum of data holding checksums stays useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_carry_length_and_masked_checksums() {
        // The bytes tensorboard's own RecordWriter gives for b"deepflow".
        let expected = [
            8, 0, 0, 0, 0, 0, 0, 0, 255, 134, 36, 15, b'd', b'e', b'e', b'p', b'f', b'l', b'o', b'w', 239, 104, 198,
            153,
        ];
        assert_eq!(record(b"deepflow"), expected);
    }

    /// The events of a file, whose frames are checked on the way.
    fn read(events: &EventFile) -> Vec<Event> {
        let bytes = std::fs::read(events.path()).unwrap();
        let mut rest = &bytes[..];
        let mut read = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let data = &rest[12..12 + length];
            assert_eq!(record(data), rest[..16 + length]);
            read.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        read
    }

    #[test]
    fn events_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::continue_after(folder.path(), 6).unwrap();
        events
            .scalars(7, [("loss/total", 0.5), ("learning_rate", 1e-4)])
            .unwrap();
        let read = read(&events);
        assert_eq!(read[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((read[1].step, read[1].session_log.as_ref().unwrap().status), (7, 1));
        assert_eq!(read[2].step, 7);
        let values = &read[2].summary.as_ref().unwrap().value;
        assert_eq!(
            (values[0].tag.as_str(), values[0].simple_value),
            ("loss/total", Some(0.5))
        );
        assert_eq!(values[1].simple_value, Some(1e-4));
    }

    #[test]
    fn every_start_takes_back_what_was_said_of_the_steps_it_will_make() {
        for done in [0, 6] {
            let folder = tempfile::tempdir().unwrap();
            let events = EventFile::continue_after(folder.path(), done).unwrap();
            let start = &read(&events)[1];
            let status = start.session_log.as_ref().map(|log| log.status);
            assert_eq!((start.step, status), (done.cast_signed() + 1, Some(1)));
        }
    }
}
