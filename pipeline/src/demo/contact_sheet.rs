//! `contact-sheet.png`: two rows a class, real pictures above and generated ones below, with the name of the class.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use image::imageops::{self, FilterType};
use image::{GrayImage, Rgb, RgbImage};
use plotters::prelude::*;

use super::loss_chart::{use_built_in_font, FONT};
use super::pictures::{real, CLASSES, PADDED_SIDE};

/// Times the pictures are enlarged.
const ENLARGED: u32 = 2;
/// Side of a picture on the sheet, the gap beside it, and between two classes.
const TILE: u32 = PADDED_SIDE as u32 * ENLARGED;
const GAP: u32 = 2;
const CLASS_GAP: u32 = 12;
/// Width of the names.
const NAMES: u32 = 150;
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// Draws `count` real and `count` generated pictures of each class; the generated ones are the files in the class folders
/// of `decoded`.
///
/// # Errors
/// When a class has no generated picture, or the sheet cannot be written.
pub fn draw(decoded: &Path, count: usize, sheet: &Path) -> anyhow::Result<()> {
    let columns = u32::try_from(count)?;
    let class_height = 2 * (TILE + GAP) + CLASS_GAP;
    let size = (
        NAMES + columns * (TILE + GAP),
        u32::try_from(CLASSES.len())? * class_height,
    );
    let mut canvas = RgbImage::from_pixel(size.0, size.1, BACKGROUND);
    for (class, real) in real(count)?.into_iter().enumerate() {
        let top = u32::try_from(class)? * class_height + CLASS_GAP / 2;
        for (column, pixels) in real.into_iter().enumerate() {
            let side = u32::try_from(pixels.width())?;
            let Some(picture) = GrayImage::from_raw(side, side, pixels.into_data()) else {
                continue;
            };
            paste(
                &mut canvas,
                &image::DynamicImage::ImageLuma8(picture).into_rgb8(),
                column,
                top,
            )?;
        }
        for (column, file) in generated(decoded, class, count)?.iter().enumerate() {
            let picture = image::open(file)
                .with_context(|| file.display().to_string())?
                .into_rgb8();
            paste(&mut canvas, &picture, column, top + TILE + GAP)?;
        }
    }
    write_names(&mut canvas, class_height)?;
    canvas.save(sheet).with_context(|| sheet.display().to_string())
}

/// The first `count` pictures of a class.
fn generated(decoded: &Path, class: usize, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    // Encode names the classes of IDX files by their label.
    let folder = decoded.join(class.to_string());
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "png"))
        .collect();
    if files.is_empty() {
        bail!("{}: found no picture, expected {count}", folder.display());
    }
    files.sort();
    files.truncate(count);
    Ok(files)
}

fn paste(canvas: &mut RgbImage, picture: &RgbImage, column: usize, top: u32) -> anyhow::Result<()> {
    let left = NAMES + u32::try_from(column)? * (TILE + GAP);
    let enlarged = imageops::resize(picture, TILE, TILE, FilterType::CatmullRom);
    imageops::replace(canvas, &enlarged, i64::from(left), i64::from(top));
    Ok(())
}

fn write_names(canvas: &mut RgbImage, class_height: u32) -> anyhow::Result<()> {
    use_built_in_font()?;
    let size = canvas.dimensions();
    let root = BitMapBackend::with_buffer(canvas, size).into_drawing_area();
    let style = |height: u32| (FONT, height).into_font().color(&BLACK);
    for (class, name) in CLASSES.iter().enumerate() {
        let top = i32::try_from(class)? * class_height.cast_signed() + (CLASS_GAP / 2).cast_signed();
        let middle = (TILE / 2).cast_signed();
        root.draw_text(name, &style(24), (10, top + middle - 12))?;
        root.draw_text(
            "generated",
            &style(17),
            (10, top + (TILE + GAP).cast_signed() + middle - 9),
        )?;
    }
    root.present()?;
    Ok(())
}
