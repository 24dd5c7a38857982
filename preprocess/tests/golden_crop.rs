//! Decoding and centre crop against what Pillow gives (golden `crop`).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use deepflow_preprocess::picture::{centre_crop, decode, DecodeError, DecodeOptions, Pixels};
use safetensors::SafeTensors;

fn golden_dir() -> PathBuf {
    std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        PathBuf::from,
    )
}

fn decode_file(path: &Path) -> Result<Pixels, DecodeError> {
    decode(&std::fs::read(path).unwrap(), &DecodeOptions::default()).map(|decoded| decoded.pixels)
}

/// JPEG decoders may differ by a few levels (IDCT and upsampling), PNG decoders may not.
fn tolerance(name: &str) -> (u8, f64) {
    if name.ends_with(".png") {
        (1, 0.02)
    } else {
        (6, 0.6)
    }
}

fn compare(what: &str, found: &Pixels, expected: &[u8], shape: &[usize]) {
    assert_eq!([found.height(), found.width(), 3], shape, "{what}: shape");
    let differences = found.data().iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let largest = differences.clone().max().unwrap();
    let mean = differences.map(f64::from).sum::<f64>() / expected.len() as f64;
    let (allowed, allowed_mean) = tolerance(what.split_once(':').unwrap().0);
    println!("{what}: largest difference {largest}, mean {mean:.4}");
    assert!(
        largest <= allowed && mean <= allowed_mean,
        "{what}: largest difference {largest}, mean {mean}"
    );
}

/// Every `crop*_expected.safetensors` beside its folder `crop*/`: tensors `FILE.decoded` and `FILE.…cropN`.
#[test]
fn decoding_and_cropping_are_pillows() {
    let mut compared = 0;
    for entry in std::fs::read_dir(golden_dir()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(folder) = name
            .strip_suffix("_expected.safetensors")
            .filter(|folder| folder.starts_with("crop"))
        else {
            continue;
        };
        let bytes = std::fs::read(&path).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        for tensor_name in expected.names() {
            let tensor = expected.tensor(tensor_name).unwrap();
            let (file, case) = tensor_name.rsplit_once('.').unwrap();
            let pixels = decode_file(&path.with_file_name(folder).join(file)).unwrap();
            let found = match case.rsplit_once("crop") {
                Some((_, size)) => centre_crop(pixels, size.parse().unwrap()),
                None => pixels,
            };
            compare(&format!("{file}:{case}"), &found, tensor.data(), tensor.shape());
            compared += 1;
        }
    }
    assert!(compared > 0, "no golden crop case in {}", golden_dir().display());
}

#[test]
fn damaged_files_are_errors_and_not_grey_areas() {
    let mut found = 0;
    for entry in std::fs::read_dir(golden_dir()).unwrap() {
        let folder = entry.unwrap().path();
        let truncated = folder.join("truncated.jpg");
        if truncated.is_file() {
            let error = decode_file(&truncated).unwrap_err().to_string();
            assert!(error.starts_with("broken JPEG: ") && !error.contains('\n'), "{error}");
            let error = decode_file(&folder.join("not_an_image.jpg")).unwrap_err();
            assert!(matches!(error, DecodeError::UnknownFormat { .. }), "{error}");
            found += 1;
        }
    }
    assert!(found > 0, "no truncated.jpg in {}", golden_dir().display());
}

#[test]
fn sixteen_bit_pngs_keep_their_high_byte() {
    let picture = image::ImageBuffer::from_fn(2, 1, |x, _| image::Rgb([0x1234_u16, 0xFEFF, 0x0100 * x as u16]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let pixels = decode(bytes.get_ref(), &DecodeOptions::default()).unwrap().pixels;
    assert_eq!(pixels.data(), [0x12, 0xFE, 0, 0x12, 0xFE, 1]);
}
