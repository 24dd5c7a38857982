//! IDX files, as MNIST and Fashion-MNIST come in: grey pictures in one file, their labels in another, often gzipped.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{Label, Listed, Listing, Place, SourceError};

/// The grey pictures of one IDX file, all of one size.
pub(super) struct IdxPictures {
    path: PathBuf,
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl IdxPictures {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    pub(super) fn picture_len(&self) -> usize {
        self.width * self.height
    }

    pub(super) fn picture(&self, index: usize) -> &[u8] {
        let length = self.picture_len();
        &self.data[index * length..(index + 1) * length]
    }
}

/// Whether a file is named like the pictures of such a set.
pub(super) fn is_idx(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.contains("idx3-ubyte")
}

/// Lists the pictures of `path`, with the labels of the file beside it whose name says `labels` and `idx1` instead.
pub(super) fn list(path: &Path) -> Result<Listing, SourceError> {
    let (shape, data) = read(path, 3)?;
    let (count, height, width) = (shape[0], shape[1], shape[2]);
    if height == 0 || width == 0 {
        let found = format!("pictures of {width}×{height}");
        return Err(SourceError::Format {
            path: path.to_owned(),
            found,
            expected: "at least one pixel".into(),
        });
    }
    let labels_path = labels_beside(path);
    let labels = match &labels_path {
        Some(labels_path) => {
            let (shape, labels) = read(labels_path, 1)?;
            if shape[0] != count {
                let found = format!("{} labels", shape[0]);
                let expected = format!("{count}, one for each picture of {}", path.display());
                return Err(SourceError::Labels {
                    path: labels_path.clone(),
                    found,
                    expected,
                });
            }
            Some(labels)
        }
        None => None,
    };
    let class = |index: usize| {
        labels
            .as_ref()
            .map_or(Label::None, |labels| Label::Number(labels[index].into()))
    };
    let pictures = (0..count).map(|index| Listed {
        name: format!("{index:06}.png"),
        class: class(index),
        place: Place::Idx { file: 0, index },
    });
    let pictures = pictures.collect();
    let idx = vec![IdxPictures {
        path: path.to_owned(),
        width,
        height,
        data,
    }];
    Ok(Listing {
        pictures,
        idx,
        ..Listing::default()
    })
}

/// The file of the labels of the pictures `path`, where it is there.
pub(super) fn labels_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = labels.trim_end_matches(".gz").to_owned();
    [labels.clone(), plain.clone(), format!("{plain}.gz")]
        .into_iter()
        .map(|name| path.with_file_name(name))
        .find(|candidate| candidate != path && candidate.is_file())
}

/// Reads an IDX file of unsigned bytes with `dimensions` axes: its shape and its data.
fn read(path: &Path, dimensions: u8) -> Result<(Vec<usize>, Vec<u8>), SourceError> {
    let file = File::open(path).map_err(SourceError::io(path, "open"))?;
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    let gzipped = std::io::BufRead::fill_buf(&mut reader).is_ok_and(|start| start.starts_with(&[0x1F, 0x8B]));
    let read = if gzipped {
        GzDecoder::new(reader).read_to_end(&mut bytes)
    } else {
        reader.read_to_end(&mut bytes)
    };
    read.map_err(SourceError::io(path, "read"))?;
    let wrong = |found: String, expected: String| SourceError::Format {
        path: path.to_owned(),
        found,
        expected,
    };
    let header = 4 + 4 * usize::from(dimensions);
    if bytes.len() < header || bytes[..4] != [0, 0, 8, dimensions] {
        let found = format!("it starts with {:?}", &bytes[..bytes.len().min(4)]);
        return Err(wrong(found, format!("an IDX file of bytes: [0, 0, 8, {dimensions}]")));
    }
    let shape: Vec<usize> = bytes[4..header]
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize)
        .collect();
    let length = shape
        .iter()
        .try_fold(1_usize, |product, &side| product.checked_mul(side));
    let data = bytes.split_off(header);
    if length != Some(data.len()) {
        return Err(wrong(
            format!("{} bytes of data", data.len()),
            format!("the product of {shape:?}: was it cut short?"),
        ));
    }
    Ok((shape, data))
}
