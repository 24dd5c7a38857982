//! Decoding, cropping and PNG writing against the Pillow that is installed, on files it makes here and now.
//!
//! Looks for Python in `DEEPFLOW_PYTHON`, else `python3`; without numpy and a Pillow before 12 it says so and compares
//! nothing: Pillow 13 chooses by shape whether rows or columns come first, and differs by up to two grey levels.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;
use std::process::Command;

use deepflow_preprocess::picture::{
    centre_crop, decode, write_png, Background, Colour, DecodeOptions, Pixels, PngCompression,
};

const HAS_MODULES: &str = "import numpy, PIL; assert int(PIL.__version__.split('.')[0]) < 12";

/// Runs a script with the folder as its argument; `None` if Python or one of its modules is not there.
fn python(script: &str, folder: &Path) -> Option<()> {
    let python = std::env::var("DEEPFLOW_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let modules = Command::new(&python).args(["-c", HAS_MODULES]).output();
    if !modules.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: {python} has no numpy and Pillow before 12; set DEEPFLOW_PYTHON to one that has");
        return None;
    }
    let output = Command::new(&python).args(["-c", script]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

const MAKE_PICTURES: &str = r#"
import sys
from pathlib import Path
import numpy as np
from PIL import Image
folder, rng = Path(sys.argv[1]), np.random.default_rng(7)
def texture(width, height, channels):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * rng.uniform(.02, .3) + y * rng.uniform(.02, .3)) for _ in range(channels)]
    picture = np.stack(waves, -1) * 110 + 128 + rng.normal(0, 6, (height, width, channels))
    return picture.clip(0, 255).astype(np.uint8)
def crop(image, size):
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), Image.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top:top + size, left:left + size]
cases = []
for number in range(24):
    width, height = (int(side) for side in rng.integers(20, 300, 2))
    rgb = Image.fromarray(texture(width, height, 3))
    cases += [(f"{number}.png", rgb, {})]
    if number < 4:
        cases += [
            (f"{number}-palette.png", rgb.quantize(60), {}),
            (f"{number}-bilevel.png", rgb.convert("1"), {}),
            (f"{number}-grey.png", rgb.convert("L"), {}),
            (f"{number}-la.png", Image.fromarray(texture(width, height, 2), "LA"), {}),
            (f"{number}-rgba.png", Image.fromarray(texture(width, height, 4)), {}),
            (f"{number}-lossless.webp", rgb, {"lossless": True}),
            (f"{number}-lossy.webp", rgb, {"quality": 85}),
            (f"{number}.jpg", rgb, {"quality": 90}),
            (f"{number}-progressive.jpg", rgb, {"quality": 85, "progressive": True}),
            (f"{number}-cmyk.jpg", rgb.convert("CMYK"), {"quality": 95}),
        ]
for name, image, options in cases:
    image.save(folder / name, **options)
    with Image.open(folder / name) as read:
        rgb = read.convert("RGB")
        (folder / (name + ".decoded")).write_bytes(np.asarray(rgb).tobytes())
        (folder / (name + ".crop")).write_bytes(crop(rgb, 48).tobytes())
        if "rgba" in name:
            behind = Image.new("RGBA", read.size, (255, 128, 0, 255))
            over = Image.alpha_composite(behind, read.convert("RGBA")).convert("RGB")
            (folder / (name + ".over")).write_bytes(np.asarray(over).tobytes())
"#;

#[test]
fn fresh_pictures_decode_and_crop_as_in_pillow() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = python(MAKE_PICTURES, folder.path()) else {
        return;
    };
    let mut compared = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let expected = |suffix: &str| std::fs::read(path.with_file_name(format!("{name}.{suffix}")));
        let (Ok(decoded), Ok(crop)) = (expected("decoded"), expected("crop")) else {
            continue;
        };
        let bytes = std::fs::read(&path).unwrap();
        let pixels = decode(&bytes, &DecodeOptions::default()).unwrap().pixels;
        let allowed = match name.rsplit_once('-') {
            _ if name.ends_with(".jpg") => 8,
            Some((_, "lossy.webp")) => 1,
            _ => 0,
        };
        let largest = |found: &[u8], expected: &[u8]| {
            assert_eq!(found.len(), expected.len(), "{name}");
            found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
        };
        assert!(
            largest(pixels.data(), &decoded) <= allowed,
            "{name}: {}",
            largest(pixels.data(), &decoded)
        );
        let square = centre_crop(pixels, 48);
        assert!(
            largest(square.data(), &crop) <= allowed,
            "{name} cropped: {}",
            largest(square.data(), &crop)
        );
        if let Ok(over) = expected("over") {
            let options = DecodeOptions {
                background: Background::Over([255, 128, 0]),
                ..DecodeOptions::default()
            };
            assert!(
                largest(decode(&bytes, &options).unwrap().pixels.data(), &over) <= 1,
                "{name} over a colour"
            );
        }
        compared += 1;
    }
    assert_eq!(compared, 64);
}

const READ_PNGS: &str = r#"
import sys
from pathlib import Path
import numpy as np
from PIL import Image
for path in sorted(Path(sys.argv[1]).glob("*.png")):
    with Image.open(path) as image:
        image.load()
        assert np.asarray(image).tobytes() == path.with_suffix(".raw").read_bytes(), path
"#;

#[test]
fn pillow_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for (index, colour) in [Colour::Grey, Colour::Rgb].into_iter().cycle().take(8).enumerate() {
        let (width, height) = (1 + index * 13, 40 - index * 5);
        let data = (0..width * height * colour.channels())
            .map(|i| (i * i / 7) as u8)
            .collect();
        let pixels = Pixels::new(width, height, colour, data).unwrap();
        let compression = if index < 4 {
            PngCompression::Fast
        } else {
            PngCompression::Small
        };
        std::fs::write(folder.path().join(format!("{index}.raw")), pixels.data()).unwrap();
        std::fs::write(
            folder.path().join(format!("{index}.png")),
            write_png(&pixels, compression).unwrap(),
        )
        .unwrap();
    }
    python(READ_PNGS, folder.path());
}
