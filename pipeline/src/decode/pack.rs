//! Pictures that were decoded one by one, packed as others want them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{bail, Context};
use deepflow_datasets::{commit, partial_name, Compression, Index, Limits, Sample, ShardReader, ShardWriter, CLASS};
use deepflow_preprocess::picture::{decode, Colour, DecodeOptions};
use npyz::WriterBuilder;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::places::Places;
use crate::files::remove_folder;

/// Packs the pictures of a shard as a WebDataset tar, each with its class, in the order of the latents.
pub(super) fn tar(shards: &Path, places: &Places, shard: usize) -> anyhow::Result<()> {
    let index = Index::load(shards)?;
    let name = &index.shards[shard].name;
    let mut tar = ShardWriter::create(&places.tar(shard), Compression::None)?;
    for sample in ShardReader::open(&shards.join(name), Limits::default())? {
        let sample = sample?;
        let picture = places.picture(shard, None, &sample.key);
        let png = fs::read(&picture).with_context(|| picture.display().to_string())?;
        let mut packed = Sample::new(sample.key.clone()).with_member("png", png);
        if let Some(class) = sample.member(CLASS) {
            packed = packed.with_member(CLASS, class.data.clone());
        }
        tar.write(&packed)?;
    }
    tar.finish()?;
    // A shard without samples has made none.
    remove_folder(&places.shard_work(shard))
}

/// Packs all pictures as `arr_0`, uint8 (N, H, W, 3), in the order of the latents: the array the ADM evaluator reads.
pub(super) fn npz(shards: &Path, index: &Index, places: &Places, side: usize) -> anyhow::Result<()> {
    let path = places.npz();
    if path.exists() {
        return Ok(());
    }
    let partial = partial_name(&path);
    let write = || -> anyhow::Result<File> {
        let file = BufWriter::new(File::create(&partial)?);
        let mut archive = ZipWriter::new(file);
        let stored = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        archive.start_file("arr_0.npy", stored)?;
        write_array(&mut archive, shards, index, places, side)?;
        let file = archive.finish()?.into_inner();
        Ok(file.map_err(io::IntoInnerError::into_error)?)
    };
    let written = write().with_context(|| path.display().to_string());
    // The pictures it was made of are removed next: its name must be on the disk before.
    let kept = written.and_then(|file| Ok(commit(file, &partial, &path)?));
    kept.inspect_err(|_| {
        // Half an archive helps nobody; the first error is the one to report.
        let _ = fs::remove_file(&partial);
    })
}

fn write_array(
    archive: &mut impl Write,
    shards: &Path,
    index: &Index,
    places: &Places,
    side: usize,
) -> anyhow::Result<()> {
    let mut array = npyz::WriteOptions::<u8>::new()
        .default_dtype()
        .shape(&[index.samples, side as u64, side as u64, 3])
        .writer(BufWriter::with_capacity(1 << 20, archive))
        .begin_nd()?;
    for (shard, record) in index.shards.iter().enumerate() {
        for sample in ShardReader::open(&shards.join(&record.name), Limits::default())? {
            let picture = places.picture(shard, None, &sample?.key);
            let png = fs::read(&picture).with_context(|| picture.display().to_string())?;
            let pixels = decode(&png, &DecodeOptions::default())
                .with_context(|| picture.display().to_string())?
                .pixels
                .into_colour(Colour::Rgb);
            if (pixels.width(), pixels.height()) != (side, side) {
                bail!(
                    "{}: {}×{} pixels, expected {side}×{side}",
                    picture.display(),
                    pixels.width(),
                    pixels.height()
                );
            }
            array.extend(pixels.into_data())?;
        }
    }
    array.finish()?;
    Ok(())
}
