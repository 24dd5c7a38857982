//! Writing one shard, whole or not at all.

use crate::hash::HashingWriter;
use crate::offsets::OffsetTableBuilder;
use crate::{files, key, Compression, Error, Place, Result, Sample, ShardRecord};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tar::Header;

const BLOCK: u64 = 512;

/// Writes samples to `.NAME.partial`; [`Self::finish`] gives the shard its name and writes its offset table.
///
/// A writer that is dropped removes what it wrote. The same samples always give the same bytes.
pub struct ShardWriter {
    path: PathBuf,
    name: String,
    compressed: bool,
    tar: tar::Builder<Tarball>,
    table: OffsetTableBuilder,
    cleanup: RemoveOnDrop,
}

impl ShardWriter {
    /// Begins the shard `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written to.
    pub fn create(path: &Path, compression: Compression) -> Result<Self> {
        let temporary = files::partial_name(path);
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        let cleanup = RemoveOnDrop(Some(temporary));
        let sink = HashingWriter::new(BufWriter::with_capacity(256 << 10, file));
        let encoder = match compression {
            Compression::None => Encoder::Plain(sink),
            Compression::Zstd(level) => Encoder::Zstd(zstd_encoder(sink, level).map_err(Error::io(path, "compress"))?),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            path: path.to_owned(),
            compressed: matches!(compression, Compression::Zstd(_)),
            tar: tar::Builder::new(Tarball { encoder, position: 0 }),
            table: OffsetTableBuilder::new(&name),
            name,
            cleanup,
        })
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`Error::InvalidSample`] for keys and extensions that readers would divide elsewhere, [`Error::DuplicateKey`]
    /// if the shard has the key, [`Error::Io`].
    pub fn write(&mut self, sample: &Sample) -> Result<()> {
        let invalid = |reason: String| Error::InvalidSample {
            key: sample.key.clone(),
            reason,
        };
        if let Some(reason) = key::unwritable(&sample.key) {
            return Err(invalid(reason.to_owned()));
        }
        if sample.members.is_empty() {
            return Err(invalid("it has no members".to_owned()));
        }
        for member in &sample.members {
            let extension = &member.extension;
            let path = format!("{}.{extension}", sample.key);
            if key::split(&path) != Some((&sample.key, extension.clone())) || key::refusal(&path).is_some() {
                return Err(invalid(format!("{extension:?} is not an extension in lower case")));
            }
            let header_offset = self.tar.get_ref().position;
            let size = member.data.len() as u64;
            let mut header = Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            header.set_mtime(0);
            self.tar
                .append_data(&mut header, &path, member.data.as_slice())
                .map_err(Error::io(&self.path, "write"))?;
            let data_offset = self.tar.get_ref().position - size.next_multiple_of(BLOCK);
            self.table
                .push(&sample.key, extension, header_offset, data_offset, size)?;
        }
        Ok(())
    }

    /// Completes the shard: end marks, sync, offset table, name.
    ///
    /// # Errors
    /// [`Error::Io`]; the shard then does not exist.
    pub fn finish(mut self) -> Result<ShardRecord> {
        let io = |action| Error::io(&self.path, action);
        let tarball = self.tar.into_inner().map_err(io("write"))?;
        let sink = tarball.encoder.finish().map_err(io("compress"))?;
        let (buffered, sha256, bytes) = sink.finish();
        let file = buffered.into_inner().map_err(|error| io("write")(error.into_error()))?;
        let mut table = self.table.finish();
        table.shard_bytes = bytes;
        table.shard_sha256.clone_from(&sha256);
        let samples = table.len() as u64;
        // The table comes first: a shard that has its name has its table, which is how a later run knows it is whole.
        files::write_atomically(&table_path(&self.path), &table.to_bytes())?;
        if let Some(temporary) = self.cleanup.0.take() {
            files::commit(file, &temporary, &self.path)?;
        }
        Ok(ShardRecord {
            name: self.name,
            samples,
            bytes,
            sha256,
            compressed: self.compressed,
        })
    }

    /// A place in this shard, for errors about the sample that would come next.
    pub fn place(&self, key: &str) -> Place {
        Place::new(&self.name, key, self.tar.get_ref().position)
    }
}

/// The sidecar file that holds a shard's offset table.
pub(crate) fn table_path(shard: &Path) -> PathBuf {
    let name = shard.file_name().unwrap_or_default().to_string_lossy();
    shard.with_file_name(format!("{name}.offsets"))
}

type Sink = HashingWriter<BufWriter<File>>;

fn zstd_encoder(sink: Sink, level: i32) -> io::Result<zstd::Encoder<'static, Sink>> {
    let mut encoder = zstd::Encoder::new(sink, level)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

enum Encoder {
    Plain(Sink),
    Zstd(zstd::Encoder<'static, Sink>),
}

impl Encoder {
    fn finish(self) -> io::Result<Sink> {
        match self {
            Self::Plain(sink) => Ok(sink),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// Counts the bytes of the tar before they are compressed.
struct Tarball {
    encoder: Encoder,
    position: u64,
}

impl Write for Tarball {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.encoder {
            Encoder::Plain(sink) => sink.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.encoder {
            Encoder::Plain(sink) => sink.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Removes the partial file of a shard that was given up.
struct RemoveOnDrop(Option<PathBuf>);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}
