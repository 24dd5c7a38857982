//! Writing a data set: independent shards first, the index last.

use crate::shard_writer::{table_path, ShardWriter};
use crate::{files, hash, Class, Codec, Compression, Error, Index, OffsetTable, Result, ShardRecord, INDEX_FILE};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What decides the bytes of a data set, beside its samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetPlan {
    /// The name the shards begin with: `NAME-000000.tar`.
    pub name: String,
    /// How the shards are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How the latents are made.
    pub codec: Codec,
    /// The classes, by index.
    #[serde(default)]
    pub classes: Vec<Class>,
}

/// Writes the shards of a data set, in any order, from any number of threads or processes.
///
/// Shard `i` depends on nothing but its own samples, so a run that was killed is continued by asking
/// [`Self::is_complete`] for each shard and redoing the others; the result is the same bytes.
///
/// ```
/// use deepflow_datasets::{Codec, Compression, DatasetPlan, DatasetWriter, Dtype, Sample};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// let codec = Codec {
///     name: "identity".into(), weights_sha256: None, scale_factor: 1.0,
///     latent_shape: [1, 2, 2], dtype: Dtype::F32, resolution: 2, settings: Default::default(),
/// };
/// let plan = DatasetPlan { name: "latents".into(), compression: Compression::None, codec, classes: vec![] };
/// let writer = DatasetWriter::create(folder, plan)?;
/// for i in 0..2 {
///     if writer.is_complete(i)? {
///         continue;
///     }
///     let mut shard = writer.begin_shard(i)?;
///     let sample = Sample::new(format!("{i:08}"));
///     shard.write(&sample.with_array("moments.npy", &[0.0; 8], &[2, 2, 2], Dtype::F32)?.with_class(0))?;
///     shard.finish()?;
/// }
/// let index = writer.finish(2)?;
/// assert_eq!(index.samples, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DatasetWriter {
    folder: PathBuf,
    plan: DatasetPlan,
    /// The folder, locked for as long as somebody may write shards into it, where its file system has locks.
    _lock: Option<Arc<File>>,
}

/// Whether the plan that an earlier run left in the folder may give way to another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EarlierPlan {
    Stays,
    /// Nobody works by it, so it matters only if a shard was finished by it.
    StaysIfShardsDo,
}

impl DatasetWriter {
    /// Begins or continues the data set in `folder`, which is created if need be. A run that ended before its first shard
    /// was finished leaves nothing that binds the next one to its plan.
    ///
    /// # Errors
    /// [`Error::OtherRun`] if the folder holds shards of another plan, [`Error::Io`], or the errors of
    /// [`Index::load`].
    pub fn create(folder: &Path, plan: DatasetPlan) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        let mut writer = Self {
            folder: folder.to_owned(),
            plan,
            _lock: None,
        };
        let lock = File::open(folder).ok();
        if lock.as_ref().is_some_and(|folder| folder.try_lock().is_ok()) {
            writer.agree(EarlierPlan::StaysIfShardsDo)?;
        }
        let lock = lock.filter(|folder| folder.lock_shared().is_ok());
        writer.agree(EarlierPlan::Stays)?;
        writer._lock = lock.map(Arc::new);
        Ok(writer)
    }

    /// Whether the data set `name` in `folder` is bound to the plan it was begun with: a shard of it is finished, or somebody
    /// works on it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_begun(folder: &Path, name: &str) -> Result<bool> {
        if folder.join(INDEX_FILE).exists() {
            return Ok(true);
        }
        match File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Ok(lock) => Ok(lock.try_lock().is_err() || has_shards(folder, name)?),
            Err(_) => has_shards(folder, name),
        }
    }

    /// Checks that the folder holds nothing of another plan, and leaves this one there.
    fn agree(&self, earlier: EarlierPlan) -> Result<()> {
        if self.folder.join(INDEX_FILE).exists() {
            let Index {
                name,
                compression,
                codec,
                classes,
                ..
            } = Index::load(&self.folder)?;
            let finished = DatasetPlan {
                name,
                compression,
                codec,
                classes,
            };
            return self.compare(&finished, &self.folder.join(INDEX_FILE));
        }
        let record = self.record_path();
        match fs::read(&record) {
            Ok(_) if earlier == EarlierPlan::StaysIfShardsDo && !has_shards(&self.folder, &self.plan.name)? => {
                self.write_record()
            }
            Ok(bytes) => {
                let reason = |error: serde_json::Error| Error::InvalidIndex {
                    path: record.to_string_lossy().into_owned(),
                    reason: error.to_string(),
                };
                self.compare(&serde_json::from_slice(&bytes).map_err(reason)?, &record)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write_record(),
            Err(error) => Err(Error::io(&record, "read")(error)),
        }
    }

    fn write_record(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.plan).unwrap_or_default();
        files::write_atomically(&self.record_path(), &bytes)
    }

    /// The file name of shard `i`.
    pub fn shard_name(&self, i: usize) -> String {
        format!("{}-{i:06}.{}", self.plan.name, self.plan.compression.extension())
    }

    /// Whether shard `i` was finished by an earlier run and is undamaged; anything else is to be written again.
    ///
    /// # Errors
    /// [`Error::Io`] if the shard is there but cannot be read.
    pub fn is_complete(&self, i: usize) -> Result<bool> {
        let path = self.folder.join(self.shard_name(i));
        let Some(table) = self.table(&path) else {
            return Ok(false);
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(&path, "open")(error)),
        };
        let bytes = file.metadata().map_err(Error::io(&path, "inspect"))?.len();
        if bytes != table.shard_bytes {
            return Ok(false);
        }
        let (sha256, _) = hash::sha256_of_reader(file).map_err(Error::io(&path, "read"))?;
        Ok(sha256 == table.shard_sha256)
    }

    /// Begins shard `i`, replacing what is there once it is finished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin_shard(&self, i: usize) -> Result<ShardWriter> {
        ShardWriter::create(&self.folder.join(self.shard_name(i)), self.plan.compression)
    }

    /// Writes the index over the shards `0..count`, all of which must be complete.
    ///
    /// # Errors
    /// [`Error::ShardMissing`] for a shard that is not there.
    pub fn finish(&self, count: usize) -> Result<Index> {
        let shards = (0..count).map(|i| self.shard_record(i)).collect::<Result<Vec<_>>>()?;
        let DatasetPlan {
            name,
            compression,
            codec,
            classes,
        } = self.plan.clone();
        let index = Index::new(name, compression, codec, classes, shards);
        index.save(&self.folder)?;
        let record = self.record_path();
        if record.exists() {
            fs::remove_file(&record).map_err(Error::io(&record, "remove"))?;
        }
        Ok(index)
    }

    fn shard_record(&self, i: usize) -> Result<ShardRecord> {
        let name = self.shard_name(i);
        let path = self.folder.join(&name);
        let missing = || Error::ShardMissing {
            shard: name.clone(),
            location: self.folder.display().to_string(),
        };
        let bytes = fs::metadata(&path).map_err(|_| missing())?.len();
        let table = self
            .table(&path)
            .filter(|table| table.shard_bytes == bytes)
            .ok_or_else(missing)?;
        Ok(ShardRecord {
            samples: table.len() as u64,
            bytes,
            sha256: table.shard_sha256,
            compressed: matches!(self.plan.compression, Compression::Zstd(_)),
            name,
        })
    }

    /// The table that was written with a shard; a damaged one is as good as none, for the shard is then redone.
    fn table(&self, shard: &Path) -> Option<OffsetTable> {
        let path = table_path(shard);
        OffsetTable::from_bytes(&fs::read(&path).ok()?, &path.to_string_lossy()).ok()
    }

    fn record_path(&self) -> PathBuf {
        self.folder.join(format!(".{}.plan.json", self.plan.name))
    }

    fn compare(&self, earlier: &DatasetPlan, path: &Path) -> Result<()> {
        let (found, expected) = (fields(earlier), fields(&self.plan));
        let names = found.keys().chain(expected.keys());
        match names.into_iter().find(|name| found.get(*name) != expected.get(*name)) {
            None => Ok(()),
            Some(field) => Err(Error::OtherRun {
                path: path.display().to_string(),
                field: field.clone(),
                found: shown(found.get(field)),
                expected: shown(expected.get(field)),
            }),
        }
    }
}

/// Whether a shard of the data set `name`, of any compression, was finished in `folder`.
fn has_shards(folder: &Path, name: &str) -> Result<bool> {
    let first = format!("{name}-");
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(Error::io(folder, "list"))?;
    let mut names = entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.any(|name| name.starts_with(&first) && (name.ends_with(".tar") || name.ends_with(".tar.zst"))))
}

/// The settings of a plan by their dotted names.
fn fields(plan: &DatasetPlan) -> BTreeMap<String, Value> {
    fn flatten(name: String, value: Value, fields: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(inner) => {
                for (key, value) in inner {
                    let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                    flatten(name, value, fields);
                }
            }
            value => drop(fields.insert(name, value)),
        }
    }
    let mut fields = BTreeMap::new();
    flatten(
        String::new(),
        serde_json::to_value(plan).unwrap_or_default(),
        &mut fields,
    );
    fields
}

/// A value that is short enough for a message.
fn shown(value: Option<&Value>) -> String {
    const MOST: usize = 80;
    let text = value.map_or_else(|| "absent".to_owned(), ToString::to_string);
    if text.chars().count() <= MOST {
        return text;
    }
    text.chars().take(MOST).chain("…".chars()).collect()
}
