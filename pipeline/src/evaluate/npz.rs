//! NumPy archives: sample batches (`arr_0`) and the reference statistics of ADM's evaluator (`mu`, `sigma`, `mu_s`,
//! `sigma_s`), both read and written.

use super::metrics::Gaussian;
use anyhow::{bail, ensure, Context};
use deepflow_datasets::{check_npy_header, LONGEST_NPY_HEADER};
use deepflow_model::inception::{POOL_FEATURES, SPATIAL_FEATURES};
use deepflow_preprocess::picture::{Colour, Pixels};
use faer::Mat;
use npyz::{DType, NpyFile, Order, TypeChar, WriterBuilder};
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Pictures of an archive's `arr_0`, `(N, height, width, 3)` bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureArray {
    path: PathBuf,
    /// Number of pictures.
    pub count: usize,
    /// Rows of a picture.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

/// Statistics of pooled and of spatial features.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceStatistics {
    /// `mu`, `sigma`: for FID.
    pub pool: Gaussian,
    /// `mu_s`, `sigma_s`: for sFID, in the order of
    /// [`InceptionFeatures::spatial`](deepflow_model::inception::InceptionFeatures::spatial).
    pub spatial: Option<Gaussian>,
}

/// What an archive holds of the two.
#[derive(Debug)]
pub struct NpzContent {
    /// `arr_0`, where it is there.
    pub pictures: Option<PictureArray>,
    /// `mu` and `sigma`, where they are there.
    pub statistics: Option<ReferenceStatistics>,
}

/// Looks into an archive.
///
/// # Errors
/// It is no npz, an array has another shape or element type than its name says, or statistics are of other features.
pub fn open(path: &Path) -> anyhow::Result<NpzContent> {
    let mut archive = archive(path)?;
    let has = |archive: &ZipArchive<_>, name: &str| archive.index_for_name(&format!("{name}.npy")).is_some();
    let pictures = if has(&archive, "arr_0") {
        Some(picture_array(path, &mut archive)?)
    } else {
        None
    };
    let statistics = if has(&archive, "mu") {
        let pool = gaussian(path, &mut archive, "mu", "sigma")?;
        ensure!(
            pool.width() == POOL_FEATURES,
            "{}: mu has {} numbers, expected {POOL_FEATURES}",
            path.display(),
            pool.width()
        );
        let spatial = if has(&archive, "mu_s") {
            let spatial = gaussian(path, &mut archive, "mu_s", "sigma_s")?;
            ensure!(
                spatial.width() == SPATIAL_FEATURES,
                "{}: mu_s has {} numbers, expected {SPATIAL_FEATURES}",
                path.display(),
                spatial.width()
            );
            Some(reordered(&spatial, channel_first))
        } else {
            None
        };
        Some(ReferenceStatistics { pool, spatial })
    } else {
        None
    };
    ensure!(
        pictures.is_some() || statistics.is_some(),
        "{}: holds neither arr_0 (pictures) nor mu and sigma (statistics)",
        path.display()
    );
    Ok(NpzContent { pictures, statistics })
}

fn archive(path: &Path) -> anyhow::Result<ZipArchive<BufReader<File>>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    ZipArchive::new(BufReader::new(file)).with_context(|| format!("{}: not an npz archive", path.display()))
}

/// Opens an array of an archive after a look at its header, whose parser is recursive.
fn array<R: Read>(mut file: R) -> anyhow::Result<NpyFile<impl Read>> {
    let mut beginning = Vec::new();
    file.by_ref()
        .take(LONGEST_NPY_HEADER as u64)
        .read_to_end(&mut beginning)?;
    check_npy_header(&beginning)?;
    Ok(NpyFile::new(Cursor::new(beginning).chain(file))?)
}

fn picture_array(path: &Path, archive: &mut ZipArchive<BufReader<File>>) -> anyhow::Result<PictureArray> {
    let name = || format!("{}: arr_0", path.display());
    let npy = array(archive.by_name("arr_0.npy").with_context(name)?).with_context(name)?;
    let shape = npy.shape().to_vec();
    let is_bytes =
        matches!(npy.dtype(), DType::Plain(kind) if kind.type_char() == TypeChar::Uint && kind.size_field() == 1);
    let &[count, height, width, 3] = shape.as_slice() else {
        bail!("{}: shape {shape:?}, expected (N, height, width, 3)", name());
    };
    let values = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n));
    let values = values.with_context(|| format!("{}: shape {shape:?} holds more pictures than memory", name()))?;
    ensure!(
        is_bytes && npy.order() == Order::C && values > 0,
        "{}: {} in {:?} order, expected at least one picture of bytes in C order",
        name(),
        npy.dtype().descr(),
        npy.order()
    );
    Ok(PictureArray {
        path: path.to_owned(),
        count: count as usize,
        height: height as usize,
        width: width as usize,
    })
}

impl PictureArray {
    /// Reads the pictures one after the other, `batch` at a time.
    ///
    /// # Errors
    /// The archive ends early, or `visit` fails.
    pub fn for_each_batch(
        &self,
        batch: usize,
        mut visit: impl FnMut(Vec<Pixels>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let name = || format!("{}: arr_0", self.path.display());
        let mut archive = archive(&self.path)?;
        let npy = array(archive.by_name("arr_0.npy").with_context(name)?).with_context(name)?;
        let mut bytes = npy.data::<u8>().with_context(name)?;
        let mut left = self.count;
        while left > 0 {
            let mut pictures = Vec::new();
            for _ in 0..batch.min(left) {
                let data: Vec<u8> = bytes
                    .by_ref()
                    .take(self.height * self.width * 3)
                    .collect::<Result<_, _>>()
                    .with_context(name)?;
                let pixels = Pixels::new(self.width, self.height, Colour::Rgb, data);
                pictures.push(pixels.with_context(|| format!("{}: ends before its last picture", name()))?);
            }
            left -= pictures.len();
            visit(pictures)?;
        }
        Ok(())
    }
}

fn gaussian(
    path: &Path,
    archive: &mut ZipArchive<BufReader<File>>,
    mean: &str,
    covariance: &str,
) -> anyhow::Result<Gaussian> {
    let (shape, values) = floats(path, archive, mean)?;
    let &[width] = shape.as_slice() else {
        bail!("{}: {mean} has shape {shape:?}, expected one dimension", path.display());
    };
    let (shape, sigma) = floats(path, archive, covariance)?;
    ensure!(
        shape == [width, width],
        "{}: {covariance} has shape {shape:?}, expected [{width}, {width}] as {mean} says",
        path.display()
    );
    // A covariance is symmetric, so the order of its axes does not matter.
    let width = width as usize;
    let covariance = Mat::from_fn(width, width, |i, j| sigma[i * width + j]);
    Ok(Gaussian {
        count: None,
        mean: values,
        covariance,
    })
}

/// ADM's evaluator flattens (17, 17, 7), TensorFlow's order; the network here (7, 17, 17).
const SPATIAL_CHANNELS: usize = 7;
const SPATIAL_PLACES: usize = SPATIAL_FEATURES / SPATIAL_CHANNELS;

/// Where in ADM's order the `index`-th of our numbers stands.
fn channel_first(index: usize) -> usize {
    index % SPATIAL_PLACES * SPATIAL_CHANNELS + index / SPATIAL_PLACES
}

/// Where in our order the `index`-th of ADM's numbers stands.
fn channel_last(index: usize) -> usize {
    index % SPATIAL_CHANNELS * SPATIAL_PLACES + index / SPATIAL_CHANNELS
}

/// The same distribution with its numbers in another order: the `i`-th is the `source(i)`-th of before.
fn reordered(gaussian: &Gaussian, source: impl Fn(usize) -> usize) -> Gaussian {
    let width = gaussian.width();
    Gaussian {
        count: gaussian.count,
        mean: (0..width).map(|i| gaussian.mean[source(i)]).collect(),
        covariance: Mat::from_fn(width, width, |i, j| gaussian.covariance[(source(i), source(j))]),
    }
}

fn floats(path: &Path, archive: &mut ZipArchive<BufReader<File>>, name: &str) -> anyhow::Result<(Vec<u64>, Vec<f64>)> {
    let what = || format!("{}: {name}", path.display());
    let npy = array(archive.by_name(&format!("{name}.npy")).with_context(what)?).with_context(what)?;
    let shape = npy.shape().to_vec();
    let values = match npy.dtype() {
        DType::Plain(kind) if kind.type_char() == TypeChar::Float && kind.size_field() == 8 => {
            npy.into_vec::<f64>().with_context(what)?
        }
        DType::Plain(kind) if kind.type_char() == TypeChar::Float && kind.size_field() == 4 => npy
            .into_vec::<f32>()
            .with_context(what)?
            .into_iter()
            .map(f64::from)
            .collect(),
        other => bail!("{}: holds {}, expected f4 or f8", what(), other.descr()),
    };
    Ok((shape, values))
}

/// Writes statistics as ADM's evaluator stores and reads them.
///
/// # Errors
/// The disk is full.
pub fn write_statistics(path: &Path, statistics: &ReferenceStatistics) -> anyhow::Result<()> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    write_gaussian(&mut archive, "mu", "sigma", &statistics.pool)?;
    if let Some(spatial) = &statistics.spatial {
        write_gaussian(&mut archive, "mu_s", "sigma_s", &reordered(spatial, channel_last))?;
    }
    crate::files::write_atomically(path, &archive.finish()?.into_inner())
}

fn write_gaussian(
    archive: &mut ZipWriter<impl Write + Seek>,
    mean: &str,
    covariance: &str,
    gaussian: &Gaussian,
) -> anyhow::Result<()> {
    let width = gaussian.width() as u64;
    write_array(archive, mean, &[width], gaussian.mean.iter().copied())?;
    let rows = 0..gaussian.width();
    let values = rows
        .clone()
        .flat_map(|i| rows.clone().map(move |j| gaussian.covariance[(i, j)]));
    write_array(archive, covariance, &[width, width], values)
}

fn write_array(
    archive: &mut ZipWriter<impl Write + Seek>,
    name: &str,
    shape: &[u64],
    values: impl Iterator<Item = f64>,
) -> anyhow::Result<()> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    archive.start_file(format!("{name}.npy"), options)?;
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(shape)
        .writer(&mut bytes)
        .begin_nd()?;
    writer.extend(values)?;
    writer.finish()?;
    std::io::copy(&mut bytes.as_slice().by_ref(), archive)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Mean `i` and covariance `diag(i + 1)` where `i` is the place in our order.
    fn numbered(width: usize) -> Gaussian {
        Gaussian {
            count: None,
            mean: (0..width).map(|i| i as f64).collect(),
            covariance: Mat::from_fn(width, width, |i, j| if i == j { i as f64 + 1.0 } else { 0.0 }),
        }
    }

    #[test]
    fn spatial_statistics_are_stored_in_tensorflows_order_and_come_back_in_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.npz");
        let statistics = ReferenceStatistics {
            pool: numbered(POOL_FEATURES),
            spatial: Some(numbered(SPATIAL_FEATURES)),
        };
        write_statistics(&path, &statistics).unwrap();
        let (_, stored) = floats(&path, &mut archive(&path).unwrap(), "mu_s").unwrap();
        // (row, column, channel) of 17×17×7, as `[..., :7]` of an NHWC tensor is flattened.
        for (row, column, channel) in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (16, 3, 5), (16, 16, 6)] {
            let theirs = (row * 17 + column) * 7 + channel;
            let ours = (channel * 17 + row) * 17 + column;
            assert_eq!(stored[theirs], ours as f64, "{row} {column} {channel}");
        }
        let read = open(&path).unwrap();
        assert!(read.pictures.is_none());
        assert_eq!(read.statistics.unwrap(), statistics);
    }

    #[test]
    fn statistics_of_other_features_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.npz");
        let refusal = |pool: usize, spatial: usize| {
            let statistics = ReferenceStatistics {
                pool: numbered(pool),
                spatial: None,
            };
            write_statistics(&path, &statistics).unwrap();
            if spatial > 0 {
                let mut archive =
                    ZipWriter::new_append(File::options().read(true).write(true).open(&path).unwrap()).unwrap();
                write_gaussian(&mut archive, "mu_s", "sigma_s", &numbered(spatial)).unwrap();
                archive.finish().unwrap();
            }
            open(&path).unwrap_err().to_string()
        };
        assert!(refusal(64, 0).ends_with("other.npz: mu has 64 numbers, expected 2048"));
        assert!(refusal(POOL_FEATURES, 9).ends_with("other.npz: mu_s has 9 numbers, expected 2023"));
    }

    /// An archive whose array `name` is nothing but a header.
    fn write_header(path: &Path, name: &str, header: &str) {
        let mut archive = ZipWriter::new(File::create(path).unwrap());
        archive
            .start_file(format!("{name}.npy"), SimpleFileOptions::default())
            .unwrap();
        archive.write_all(b"\x93NUMPY\x01\0").unwrap();
        archive
            .write_all(&u16::try_from(header.len()).unwrap().to_le_bytes())
            .unwrap();
        archive.write_all(header.as_bytes()).unwrap();
        archive.finish().unwrap();
    }

    #[test]
    fn a_header_that_nests_deeply_is_refused_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nested.npz");
        for name in ["arr_0", "mu"] {
            for (depth, expected) in [(9000, "header nests too deeply"), (60_000, "header claims 60010 bytes")] {
                write_header(&path, name, &"(".repeat(depth));
                let error = format!("{:#}", open(&path).unwrap_err());
                assert!(error.contains(&format!("nested.npz: {name}: {expected}")), "{error}");
                assert!(!error.contains('\n'), "{error}");
            }
        }
        let array = PictureArray {
            path,
            count: 1,
            height: 1,
            width: 1,
        };
        write_header(&array.path, "arr_0", &"(".repeat(9000));
        let error = array.for_each_batch(1, |_| Ok(())).unwrap_err();
        assert!(format!("{error:#}").contains("nests too deeply"), "{error:#}");
    }

    #[test]
    fn a_shape_of_more_pictures_than_memory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.npz");
        // 2^64 + 12 values, of which 12 would be left.
        let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (6148914691236517209, 1, 1, 3), }\n";
        write_header(&path, "arr_0", header);
        let error = open(&path).unwrap_err().to_string();
        assert!(
            error.contains("huge.npz: arr_0: shape [6148914691236517209, 1, 1, 3] holds more pictures than memory"),
            "{error}"
        );
    }
}
