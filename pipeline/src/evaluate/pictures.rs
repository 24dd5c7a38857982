//! A set of pictures, wherever it lies: a folder of files, tars, latent shards (decoded on the way), or an npz.

use super::content_hash::content_hash;
use super::npz::PictureArray;
use crate::codecs;
use crate::decode::{RECORD_FILE, SHEET_FILE};
use crate::interrupt::Interrupt;
use crate::latent::latent_of;
use anyhow::{bail, ensure, Context};
use deepflow_datasets::{Index, Limits, ShardReader, INDEX_FILE};
use deepflow_preprocess::codec::Codec;
use deepflow_preprocess::picture::{decode, Colour, DecodeOptions, Pixels};
use deepflow_preprocess::sources::{is_picture, PICTURE_EXTENSIONS};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Pictures that all have one size.
pub struct PictureSet {
    path: PathBuf,
    source: Source,
}

enum Source {
    Files(Vec<PathBuf>),
    Tars(Vec<PathBuf>),
    Latents(Box<dyn Codec>, Box<Index>),
    Array(PictureArray),
}

impl PictureSet {
    /// The pictures below a folder (PNG, JPEG, WebP, in the order of their paths), in a tar, in a folder of tars, or those
    /// that a folder of latent shards decodes to; `codec_weights` is the codec's file, where it is not beside the index. The
    /// contact sheet of a folder that decode wrote is none of them.
    ///
    /// # Errors
    /// When there is nothing of the kind, or the codec of latent shards cannot be opened.
    pub fn open(path: &Path, codec_weights: Option<&Path>) -> anyhow::Result<Self> {
        let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        let source = if path.join(INDEX_FILE).exists() {
            let index = Index::load(path)?;
            Source::Latents(codecs::open(&index.codec, path, codec_weights, None)?, Box::new(index))
        } else if metadata.is_dir() {
            let mut files = files_below(path)?;
            if path.join(RECORD_FILE).is_file() {
                // It shows the pictures beside it once more.
                let sheet = path.join(SHEET_FILE);
                files.retain(|file| *file != sheet);
            }
            let pick = |keep: fn(&str) -> bool| {
                let kept = files.iter().filter(|file| keep(name_of(file)));
                kept.cloned().collect::<Vec<_>>()
            };
            match (pick(is_picture), pick(is_tar)) {
                (pictures, _) if !pictures.is_empty() => Source::Files(pictures),
                (_, tars) if !tars.is_empty() => Source::Tars(tars),
                _ => bail!(
                    "{}: no pictures (png, jpg, webp) and no tars below this folder",
                    path.display()
                ),
            }
        } else if is_tar(name_of(path)) {
            Source::Tars(vec![path.to_owned()])
        } else {
            bail!(
                "{}: expected a folder of pictures or tars, a .tar, .tar.zst or .npz",
                path.display()
            );
        };
        Ok(Self {
            path: path.to_owned(),
            source,
        })
    }

    /// The pictures of an npz.
    pub fn from_array(path: &Path, array: PictureArray) -> Self {
        Self {
            path: path.to_owned(),
            source: Source::Array(array),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of pictures, where it is known before reading.
    pub fn count(&self) -> Option<usize> {
        match &self.source {
            Source::Files(files) => Some(files.len()),
            Source::Tars(_) => None,
            Source::Latents(_, index) => usize::try_from(index.samples).ok(),
            Source::Array(array) => Some(array.count),
        }
    }

    /// SHA-256 over names and contents of all files, and over `settings`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn content_hash(&self, settings: &[&str]) -> anyhow::Result<String> {
        match &self.source {
            Source::Files(files) | Source::Tars(files) => content_hash(&self.path, files, settings),
            Source::Array(_) => content_hash(&self.path, std::slice::from_ref(&self.path), settings),
            Source::Latents(codec, index) => {
                // The codec decides the pictures as much as the latents do.
                let identity = codec.identity();
                let settings = [settings, &[identity.weights_sha256.as_str()]].concat();
                content_hash(&self.path, &shard_paths(&self.path, index), &settings)
            }
        }
    }

    /// Reads all pictures in order, `batch` at a time, until the end or an interrupt. All must have one size.
    ///
    /// # Errors
    /// A file is no picture or has another size than the first; `visit` fails.
    pub fn for_each_batch(
        &self,
        batch: usize,
        interrupt: &Interrupt,
        mut visit: impl FnMut(&[Pixels]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut size = None;
        let mut checked = |named: Vec<(String, Pixels)>| -> anyhow::Result<()> {
            interrupt.check()?;
            let mut pictures = Vec::with_capacity(named.len());
            for (name, pixels) in named {
                let found = (pixels.width(), pixels.height());
                let (width, height) = *size.get_or_insert(found);
                ensure!(
                    found == (width, height),
                    "{name}: {}x{} pixels, expected {width}x{height} like the pictures before it",
                    found.0,
                    found.1
                );
                pictures.push(pixels);
            }
            visit(&pictures)
        };
        match &self.source {
            Source::Files(files) => {
                for chunk in files.chunks(batch) {
                    let read = |file: &PathBuf| {
                        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
                        decode_named(file.display().to_string(), &bytes)
                    };
                    checked(chunk.par_iter().map(read).collect::<anyhow::Result<_>>()?)?;
                }
                Ok(())
            }
            Source::Tars(tars) => {
                let mut encoded: Vec<(String, Vec<u8>)> = Vec::new();
                let mut flush = |encoded: &mut Vec<(String, Vec<u8>)>| {
                    let pictures = encoded.par_drain(..).map(|(name, bytes)| decode_named(name, &bytes));
                    checked(pictures.collect::<anyhow::Result<_>>()?)
                };
                for tar in tars {
                    for sample in ShardReader::open(tar, Limits::default())? {
                        let sample = sample?;
                        let is_picture = |extension: &str| PICTURE_EXTENSIONS.contains(&extension);
                        if let Some(member) = sample.members.into_iter().find(|m| is_picture(&m.extension)) {
                            let name = format!("{}: {}.{}", tar.display(), sample.key, member.extension);
                            encoded.push((name, member.data));
                        }
                        if encoded.len() == batch {
                            flush(&mut encoded)?;
                        }
                    }
                }
                if encoded.is_empty() {
                    return Ok(());
                }
                flush(&mut encoded)
            }
            Source::Latents(codec, index) => {
                let mut names = Vec::new();
                let mut latents = Vec::new();
                let mut flush = |names: &mut Vec<String>, latents: &mut Vec<f32>| {
                    let pictures = codec
                        .decode(latents)?
                        .into_iter()
                        .map(|pixels| pixels.into_colour(Colour::Rgb));
                    let named = names.drain(..).zip(pictures).collect();
                    latents.clear();
                    checked(named)
                };
                for record in &index.shards {
                    let shard = self.path.join(&record.name);
                    let shard_name = shard.display().to_string();
                    for sample in ShardReader::open(&shard, Limits::default())? {
                        let sample = sample?;
                        latents.extend(latent_of(&sample, &shard_name, index.codec.latent_shape)?);
                        names.push(format!("{shard_name}: {}", sample.key));
                        if names.len() == batch {
                            flush(&mut names, &mut latents)?;
                        }
                    }
                }
                if names.is_empty() {
                    return Ok(());
                }
                flush(&mut names, &mut latents)
            }
            Source::Array(array) => array.for_each_batch(batch, |pictures| {
                let name = format!("{}: arr_0", self.path.display());
                checked(pictures.into_iter().map(|pixels| (name.clone(), pixels)).collect())
            }),
        }
    }
}

/// The files of a folder of shards, in order.
pub(super) fn shard_paths(folder: &Path, index: &Index) -> Vec<PathBuf> {
    index.shards.iter().map(|shard| folder.join(&shard.name)).collect()
}

fn decode_named(name: String, bytes: &[u8]) -> anyhow::Result<(String, Pixels)> {
    let decoded = decode(
        bytes,
        &DecodeOptions {
            colour: Colour::Rgb,
            ..DecodeOptions::default()
        },
    );
    let pixels = decoded.with_context(|| name.clone())?.pixels;
    Ok((name, pixels))
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_tar(name: &str) -> bool {
    [".tar", ".tar.zst"].iter().any(|ending| name.ends_with(ending))
}

/// All files below a folder whose names do not start with a dot, sorted by path.
fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{OutputFormat, Precision};
    use crate::decode::{decode, DecodeOptions};
    use crate::share::Share;
    use deepflow_datasets::{Compression, DatasetPlan, DatasetWriter, Dtype, Sample, LATENT};
    use deepflow_preprocess::codec::IdentityCodec;
    use deepflow_preprocess::picture::PngCompression;

    #[test]
    fn every_ending_that_encode_reads_is_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        for extension in PICTURE_EXTENSIONS {
            std::fs::write(folder.path().join(format!("{extension}.{extension}")), "").unwrap();
        }
        std::fs::write(folder.path().join("index.html"), "").unwrap();
        let set = PictureSet::open(folder.path(), None).unwrap();
        assert_eq!(set.count(), Some(PICTURE_EXTENSIONS.len()));
        assert!(PICTURE_EXTENSIONS.contains(&"jpe"));
    }

    /// The number of pictures of what decode makes of seven latents in `format`.
    fn read_after_decode(format: OutputFormat) -> usize {
        const SIDE: usize = 4;
        let folder = tempfile::tempdir().unwrap();
        let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
        let codec = deepflow_datasets::Codec {
            name: "identity".into(),
            weights_sha256: None,
            scale_factor: 1.0,
            latent_shape: [3, SIDE, SIDE],
            dtype: Dtype::F32,
            resolution: SIDE,
            settings: std::collections::BTreeMap::default(),
        };
        let plan = DatasetPlan {
            name: "samples".into(),
            compression: Compression::None,
            codec,
            classes: Vec::new(),
        };
        let writer = DatasetWriter::create(&latents, plan).unwrap();
        let mut shard = writer.begin_shard(0).unwrap();
        for i in 0..7 {
            let latent = Sample::new(format!("{i:03}"));
            let latent = latent.with_array(LATENT, &[0.1; 3 * SIDE * SIDE], &[3, SIDE, SIDE], Dtype::F32);
            shard.write(&latent.unwrap()).unwrap();
        }
        shard.finish().unwrap();
        writer.finish(1).unwrap();
        let options = DecodeOptions {
            shards: latents,
            out: out.clone(),
            format,
            compression: PngCompression::Fast,
            sheet_columns: 10,
            batch: None,
            precision: Precision::F32,
            tf32: true,
            share: Share::WHOLE,
        };
        let codec = IdentityCodec::new(SIDE, Colour::Rgb);
        decode(&options, &codec, &Interrupt::default()).unwrap();
        assert!(out.join(SHEET_FILE).is_file());
        let mut count = 0;
        let mut read = |pictures: &[Pixels]| {
            count += pictures.len();
            Ok(())
        };
        let set = PictureSet::open(&out, None).unwrap();
        set.for_each_batch(4, &Interrupt::default(), &mut read).unwrap();
        count
    }

    #[test]
    fn the_folders_that_decode_writes_are_read_without_their_contact_sheet() {
        assert_eq!(read_after_decode(OutputFormat::Folders), 7);
    }

    #[test]
    fn the_tars_that_decode_writes_are_read_beside_their_contact_sheet() {
        assert_eq!(read_after_decode(OutputFormat::Tar), 7);
    }

    /// Only decode's is known to show the others again.
    #[test]
    fn a_picture_of_the_name_of_a_contact_sheet_is_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SHEET_FILE), "").unwrap();
        assert_eq!(PictureSet::open(folder.path(), None).unwrap().count(), Some(1));
    }
}
