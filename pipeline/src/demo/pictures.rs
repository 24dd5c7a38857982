//! The pictures that ship with the program: the test set of Fashion-MNIST (assets/fashion-mnist/NOTICE).

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::bail;
use deepflow_preprocess::picture::{fit, Colour, Fit, Pixels};
use flate2::read::GzDecoder;

use crate::files::{make_folder, write_atomically};

const PICTURES: &[u8] = include_bytes!("../../assets/fashion-mnist/t10k-images-idx3-ubyte.gz");
const LABELS: &[u8] = include_bytes!("../../assets/fashion-mnist/t10k-labels-idx1-ubyte.gz");
const NOTICE: &[u8] = include_bytes!("../../assets/fashion-mnist/NOTICE");
const PICTURES_FILE: &str = "t10k-images-idx3-ubyte.gz";
const LABELS_FILE: &str = "t10k-labels-idx1-ubyte.gz";
/// Bytes before the first picture and before the first label of an IDX file.
const HEADERS: (usize, usize) = (16, 8);
const SIDE: usize = 28;
/// Side of the pictures as the demo trains on them.
pub const PADDED_SIDE: usize = 32;

/// What the ten classes are, by their label.
pub const CLASSES: [&str; 10] = [
    "T-shirt",
    "Trousers",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Writes the pictures as files for encode, and gives the one to name to it.
pub fn unpack(folder: &Path) -> anyhow::Result<PathBuf> {
    make_folder(folder)?;
    let names: String = CLASSES
        .iter()
        .enumerate()
        .map(|(label, name)| format!("{label} {name}\n"))
        .collect();
    let files = [
        (PICTURES_FILE, PICTURES),
        (LABELS_FILE, LABELS),
        ("NOTICE", NOTICE),
        ("class-names.txt", names.as_bytes()),
    ];
    for (name, content) in files {
        write_atomically(&folder.join(name), content)?;
    }
    Ok(folder.join(PICTURES_FILE))
}

/// The first `count` pictures of each class, padded as encode pads them.
pub fn real(count: usize) -> anyhow::Result<Vec<Vec<Pixels>>> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    GzDecoder::new(PICTURES).read_to_end(&mut pixels)?;
    GzDecoder::new(LABELS).read_to_end(&mut labels)?;
    let mut classes = vec![Vec::new(); CLASSES.len()];
    let pictures = pixels[HEADERS.0..].chunks_exact(SIDE * SIDE);
    for (picture, &label) in pictures.zip(&labels[HEADERS.1..]) {
        let class = &mut classes[usize::from(label)];
        if class.len() < count {
            let Some(pixels) = Pixels::new(SIDE, SIDE, Colour::Grey, picture.to_vec()) else {
                bail!("the built-in pictures are damaged");
            };
            class.push(fit(pixels, PADDED_SIDE, Fit::Pad));
        }
    }
    Ok(classes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_class_has_pictures() {
        let classes = real(12).unwrap();
        assert_eq!(classes.len(), 10);
        for class in classes {
            assert_eq!(class.len(), 12);
            // Sandals are the emptiest: their first one has 109 pixels that are not black.
            let drawn = class[0].data().iter().filter(|&&value| value > 0).count();
            assert!(drawn > 100 && class[0].width() == PADDED_SIDE);
        }
    }
}
