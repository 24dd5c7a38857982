//! Where pictures come from: an ordered list of them, each readable by itself and from any thread.
//!
//! [`Sources::open`] looks at what it is given and lists every picture with its key, its class and its place; the bytes are
//! read later, one picture at a time, without unpacking anything to disk. The order is that of the names (and inside
//! archives that of the archive), so it is the same on every machine.

mod archive;
mod classes;
mod error;
mod folder;
mod idx;
mod keys;
mod labels;
mod webdataset;

use std::fs::File;
use std::path::{Path, PathBuf};

use deepflow_datasets::{hex, Class};
use sha2::{Digest, Sha256};

use crate::picture::{Colour, Pixels};
use archive::read_range;
pub use error::SourceError;
use idx::IdxPictures;

/// One picture: which it is and where its bytes are.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key of its sample: a path without extension, unique among the sources.
    pub key: String,
    /// Index into [`Sources::classes`].
    pub class: u32,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    File {
        path: Box<Path>,
        bytes: u64,
    },
    Member {
        archive: u32,
        offset: u64,
        bytes: u64,
        name: Box<str>,
    },
    Idx {
        file: u32,
        index: usize,
    },
}

/// The content of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes of a JPEG, PNG or WebP file.
    File(Vec<u8>),
    /// Pixels that were stored as such.
    Pixels(Pixels),
}

/// What to read besides the pictures themselves.
#[derive(Clone, Debug, Default)]
pub struct SourceOptions {
    /// A file with the classes of a folder or archive that is not divided into class folders: a label a line in the order
    /// of the file names, or `NAME LABEL` lines; labels are numbers from 0 or class folder names such as `n01440764`.
    pub labels: Option<PathBuf>,
    /// A file with `FOLDER what people call it` lines, in class order if `labels` holds numbers.
    pub class_names: Option<PathBuf>,
}

/// A file that is not read, because nothing says that it is a picture of the data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// Where it is: a path inside the source.
    pub name: String,
    /// Why it is not read.
    pub reason: &'static str,
}

impl Ignored {
    const NO_PICTURE: &'static str = "its name does not end in .jpg, .jpeg, .jpe, .png or .webp";
    const NO_CLASS: &'static str = "it lies beside the class folders, in none of them";
    const NO_SHARD: &'static str = "it lies beside tars, in none of them";
    const BESIDE_IDX: &'static str = "it lies beside an IDX file, which is read instead";
    const SECOND: &'static str = "its sample has another picture before it";
}

/// Every picture of a data set, in order.
pub struct Sources {
    entries: Vec<Entry>,
    ignored: Vec<Ignored>,
    classes: Vec<Class>,
    archives: Vec<Archive>,
    idx: Vec<IdxPictures>,
}

struct Archive {
    path: PathBuf,
    file: File,
}

/// A list of pictures while it is being made: like [`Sources`], with classes still by name.
#[derive(Default)]
struct Listing {
    pictures: Vec<Listed>,
    ignored: Vec<Ignored>,
    archives: Vec<Archive>,
    idx: Vec<IdxPictures>,
    /// Class folders in order, where the source has such; they count even if nothing is in them.
    folders: Vec<String>,
}

struct Listed {
    /// Path inside the source, with extension; it becomes the key.
    name: String,
    class: Label,
    place: Place,
}

/// How a source says which class a picture has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    None,
    Number(u32),
    Folder(String),
}

impl Sources {
    /// Lists the pictures of `path`:
    /// - a folder of class folders (`train/n01440764/x.JPEG`), or of pictures (one class, or those of `options.labels`);
    /// - a tar of class folders or of pictures, and a tar of tars (`ILSVRC2012_img_train.tar`), read in place;
    /// - a WebDataset tar (pictures beside `.cls` or `.json` members), or a folder of them;
    /// - a `…-images-idx3-ubyte[.gz]` file, its labels beside it.
    ///
    /// # Errors
    /// When something cannot be read, nothing is found, a class folder is empty or labels do not fit.
    pub fn open(path: &Path, options: &SourceOptions) -> Result<Self, SourceError> {
        let metadata = std::fs::metadata(path).map_err(SourceError::io(path, "open"))?;
        let mut listing = if metadata.is_dir() {
            folder::list(path)?
        } else if idx::is_idx(path) {
            idx::list(path)?
        } else {
            archive::list(path)?
        };
        if listing.pictures.is_empty() {
            return Err(SourceError::Empty { path: path.to_owned() });
        }
        if let Some(labels) = &options.labels {
            labels::apply(labels, &mut listing)?;
        }
        let (classes, numbers) = classes::assign(path, &listing, options.class_names.as_deref())?;
        let keys = keys::unique(listing.pictures.iter().map(|picture| picture.name.as_str()));
        let entries = listing.pictures.into_iter().zip(keys).zip(numbers);
        let entries = entries
            .map(|((picture, key), class)| Entry {
                key,
                class,
                place: picture.place,
            })
            .collect();
        Ok(Self {
            entries,
            ignored: listing.ignored,
            classes,
            archives: listing.archives,
            idx: listing.idx,
        })
    }

    /// The pictures in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The files that lie among the pictures and are none, hidden ones left out.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// An example of a folder inside a class folder, when no class folder holds a picture itself: then the classes may be
    /// one level further down than the folder that was opened.
    #[must_use]
    pub fn nested_classes(&self) -> Option<&str> {
        let inner = |entry: &Entry| match entry.place {
            Place::File { .. } => entry.key.matches('/').count() > 1,
            _ => false,
        };
        let first = &self.entries.first()?.key;
        let folder = first.rsplit_once('/').map(|(folder, _)| folder);
        folder.filter(|_| self.entries.iter().all(inner))
    }

    /// The classes by index: sorted folder names, or the numbers found.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Keeps the first `count` pictures.
    pub fn truncate(&mut self, count: usize) {
        self.entries.truncate(count);
    }

    /// Puts the pictures into the given order, a permutation of `0..entries().len()`.
    pub fn reorder(&mut self, order: &[usize]) {
        let mut entries: Vec<Option<Entry>> = self.entries.drain(..).map(Some).collect();
        self.entries = order
            .iter()
            .filter_map(|&index| entries.get_mut(index)?.take())
            .collect();
    }

    /// Where picture `entry` is, for messages and metadata: a file, or `archive: member`.
    #[must_use]
    pub fn describe(&self, entry: &Entry) -> String {
        match &entry.place {
            Place::File { path, .. } => path.display().to_string(),
            Place::Member { archive, name, .. } => {
                format!("{}: {name}", self.archives[*archive as usize].path.display())
            }
            Place::Idx { file, index } => format!("{}: picture {index}", self.idx[*file as usize].path().display()),
        }
    }

    /// The name of picture `entry` inside its folder or archive.
    #[must_use]
    pub fn file_name<'a>(&self, entry: &'a Entry) -> &'a str {
        match &entry.place {
            Place::File { path, .. } => path.file_name().and_then(|name| name.to_str()).unwrap_or(&entry.key),
            Place::Member { name, .. } => name,
            Place::Idx { .. } => &entry.key,
        }
    }

    /// The size in bytes of a picture as it is stored.
    #[must_use]
    pub fn bytes(&self, entry: &Entry) -> u64 {
        match &entry.place {
            Place::File { bytes, .. } | Place::Member { bytes, .. } => *bytes,
            Place::Idx { file, .. } => self.idx[*file as usize].picture_len() as u64,
        }
    }

    /// Reads one picture; may be called from any thread, in any order.
    ///
    /// # Errors
    /// When the file is gone, unreadable or shorter than it was.
    pub fn read(&self, entry: &Entry) -> Result<Content, SourceError> {
        match &entry.place {
            Place::File { path, .. } => std::fs::read(path)
                .map(Content::File)
                .map_err(SourceError::io(path, "read")),
            Place::Member {
                archive, offset, bytes, ..
            } => {
                let archive = &self.archives[*archive as usize];
                read_range(&archive.file, *offset, *bytes)
                    .map(Content::File)
                    .map_err(SourceError::io(&archive.path, "read"))
            }
            Place::Idx { file, index } => {
                let pictures = &self.idx[*file as usize];
                let (width, height) = pictures.size();
                Pixels::new(width, height, Colour::Grey, pictures.picture(*index).to_vec())
                    .map(Content::Pixels)
                    .ok_or_else(|| SourceError::Empty {
                        path: pictures.path().to_owned(),
                    })
            }
        }
    }

    /// A SHA-256 over keys, classes and stored sizes in order, by which a later run knows that the sources are the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for entry in &self.entries {
            hash.update(entry.key.as_bytes());
            hash.update([0]);
            hash.update(entry.class.to_le_bytes());
            hash.update(self.bytes(entry).to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

/// Endings of pictures' names, in lower case.
pub const PICTURE_EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "jpe", "png", "webp"];

/// Whether a file name ends like a picture's.
#[must_use]
pub fn is_picture(name: &str) -> bool {
    let extension = name
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| PICTURE_EXTENSIONS.contains(&extension.as_str()))
}

/// Hidden files, and the ones macOS leaves beside others.
fn is_hidden(name: &str) -> bool {
    name.split('/')
        .any(|part| part.starts_with('.') && part != "." || part == "__MACOSX")
}
