//! The contact sheet: the first pictures of the first classes, a row a class.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use deepflow_datasets::{Index, Limits, ShardReader};
use deepflow_preprocess::picture::{contact_sheet, decode, write_png, Colour, DecodeOptions, PngCompression};

use super::places::Places;
use crate::files::{make_folder, write_atomically};

/// A sheet shows at most this many classes.
const ROWS: usize = 10;
/// Classes are looked for in at most this many samples, so that a data set of one class is not read to its end.
const SAMPLES_LOOKED_AT: usize = 20_000;

/// A picture of the sheet.
pub(super) struct Tile {
    row: usize,
    column: usize,
    shard: usize,
    class: Option<u32>,
    key: String,
}

/// Chooses the tiles: a function of the latents alone, so that every process and every restart chooses the same.
pub(super) fn plan(shards: &Path, index: &Index, columns: usize) -> anyhow::Result<Vec<Tile>> {
    let mut classes: BTreeMap<Option<u32>, Vec<(usize, String)>> = BTreeMap::new();
    let mut looked_at = 0;
    'shards: for (shard, record) in index.shards.iter().enumerate() {
        for sample in ShardReader::open(&shards.join(&record.name), Limits::default())? {
            let full = classes.len() == ROWS && classes.values().all(|tiles| tiles.len() == columns);
            if columns == 0 || full || looked_at == SAMPLES_LOOKED_AT {
                break 'shards;
            }
            looked_at += 1;
            let sample = sample?;
            let class = sample.class(&record.name)?;
            if classes.len() == ROWS && !classes.contains_key(&class) {
                continue;
            }
            let tiles = classes.entry(class).or_default();
            if tiles.len() < columns {
                tiles.push((shard, sample.key));
            }
        }
    }
    let rows = classes.into_iter().enumerate();
    Ok(rows
        .flat_map(|(row, (class, tiles))| {
            tiles.into_iter().enumerate().map(move |(column, (shard, key))| Tile {
                row,
                column,
                shard,
                class,
                key,
            })
        })
        .collect())
}

/// Keeps the tiles of a shard whose pictures have just been written, before they are packed away.
pub(super) fn keep(places: &Places, shard: usize, tiles: &[Tile]) -> anyhow::Result<()> {
    for tile in tiles.iter().filter(|tile| tile.shard == shard) {
        let picture = places.picture(shard, tile.class, &tile.key);
        let png = fs::read(&picture).with_context(|| picture.display().to_string())?;
        let kept = places.sheet_tile(tile.row, tile.column);
        if let Some(folder) = kept.parent() {
            make_folder(folder)?;
        }
        write_atomically(&kept, &png)?;
    }
    Ok(())
}

/// Writes the sheet from the tiles that were kept; `None` when none was asked for.
pub(super) fn write(places: &Places, tiles: &[Tile]) -> anyhow::Result<Option<PathBuf>> {
    let path = places.sheet();
    if tiles.is_empty() || path.exists() {
        return Ok(path.exists().then_some(path));
    }
    let mut rows: Vec<Vec<_>> = Vec::new();
    for tile in tiles {
        let kept = places.sheet_tile(tile.row, tile.column);
        let png = fs::read(&kept).with_context(|| kept.display().to_string())?;
        let picture = decode(&png, &DecodeOptions::default()).with_context(|| kept.display().to_string())?;
        rows.resize_with(rows.len().max(tile.row + 1), Vec::new);
        rows[tile.row].push(picture.pixels.into_colour(Colour::Rgb));
    }
    let sheet = contact_sheet(&rows).with_context(|| path.display().to_string())?;
    write_atomically(&path, &write_png(&sheet, PngCompression::Small)?)?;
    Ok(Some(path))
}
