//! The demo, with few steps: the four binaries one by one give what it gives, and it goes on where it was stopped.
#![allow(clippy::unwrap_used)]

mod support;

use image::GrayImage;
use support::{assert_same, files, program, stderr};

/// Too few for the generated pictures to be more than noise.
const STEPS: &str = "3";
const CLASSES: u32 = 10;
const COLUMNS: u32 = 10;
/// A picture on the sheet and the gap beside it; a class has two rows and a gap below.
const TILE: u32 = 64;
const GAP: u32 = 2;
const CLASS_HEIGHT: u32 = 2 * (TILE + GAP) + 12;
const NAMES: u32 = 150;

fn tile(sheet: &GrayImage, class: u32, generated: bool, column: u32) -> Vec<f32> {
    let top = class * CLASS_HEIGHT + 6 + u32::from(generated) * (TILE + GAP);
    let left = NAMES + column * (TILE + GAP);
    let pixel = |i: u32| f32::from(sheet.get_pixel(left + i % TILE, top + i / TILE).0[0]);
    (0..TILE * TILE).map(pixel).collect()
}

/// The mean of the real pictures of a class in every second column.
fn mean_tile(sheet: &GrayImage, class: u32, first: u32) -> Vec<f32> {
    let columns = (first..COLUMNS).step_by(2);
    let tiles: Vec<_> = columns.map(|column| tile(sheet, class, false, column)).collect();
    (0..tiles[0].len())
        .map(|pixel| tiles.iter().map(|tile| tile[pixel]).sum::<f32>() / tiles.len() as f32)
        .collect()
}

fn spread(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).sum::<f32>() / one.len() as f32
}

/// Of the right size, no picture blank or there twice, and the classes differ.
fn check_sheet(sheet: &GrayImage) {
    let size = (NAMES + COLUMNS * (TILE + GAP), CLASSES * CLASS_HEIGHT);
    assert_eq!(sheet.dimensions(), size);
    for generated in [false, true] {
        let mut tiles: Vec<Vec<f32>> = Vec::new();
        for class in 0..CLASSES {
            for column in 0..COLUMNS {
                let tile = tile(sheet, class, generated, column);
                assert!(
                    spread(&tile) > 8.0,
                    "class {class}, picture {column}, generated: {generated}: blank"
                );
                assert!(!tiles.contains(&tile), "class {class}, picture {column}: there twice");
                tiles.push(tile);
            }
        }
    }
    // Trousers, sneakers and bags: half of the pictures of each are nearer to the other half than to other classes.
    let classes = [1, 7, 8];
    for (place, &class) in classes.iter().enumerate() {
        let half = mean_tile(sheet, class, 0);
        let distances = classes.map(|other| distance(&half, &mean_tile(sheet, other, 1)));
        let nearest = (0..classes.len()).min_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        assert_eq!(
            nearest,
            Some(place),
            "class {class}: distances {distances:?} from {classes:?}"
        );
    }
}

#[test]
fn the_stages_one_by_one_give_what_the_demo_gives() {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("demo");
    let text = |name: &str| demo.join(name).display().to_string();
    let run = || {
        program("deepflow")
            .args(["demo", "--steps", STEPS, "--out"])
            .arg(&demo)
            .output()
            .unwrap()
    };
    let output = run();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("contact-sheet.png") && said.contains("loss.png"),
        "{said}"
    );

    check_sheet(&image::open(demo.join("contact-sheet.png")).unwrap().into_luma8());

    // The commands are those that the demo names in its log.
    let log = stderr(&output);
    for line in log
        .lines()
        .filter_map(|line| line.split_once("deepflow ").map(|(_, command)| command))
    {
        let mut words = line.split_whitespace();
        let stage = words.next().unwrap();
        let again = words.map(|word| {
            ["latents", "run", "generated", "decoded"]
                .into_iter()
                .find(|name| word == text(name))
                .map_or_else(
                    || word.to_owned(),
                    |name| folder.path().join(name).display().to_string(),
                )
        });
        let output = program(&format!("deepflow-{stage}")).args(again).output().unwrap();
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
    }
    for (part, endings) in [
        ("latents", &[".tar", "index.json", ".safetensors"][..]),
        ("run", &[".safetensors"][..]),
        ("generated", &[".tar", "index.json"][..]),
        ("decoded", &[".png"][..]),
    ] {
        assert_same(
            &files(&demo.join(part), endings),
            &files(&folder.path().join(part), endings),
        );
    }

    let before = files(&demo, &[".tar", ".safetensors", ".png"]);
    std::fs::remove_file(demo.join("generated/index.json")).unwrap();
    std::fs::remove_file(demo.join("contact-sheet.png")).unwrap();
    assert!(run().status.success());
    assert_same(&before, &files(&demo, &[".tar", ".safetensors", ".png"]));
}
