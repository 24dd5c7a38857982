//! Every kind of source: what is listed, in which order, with which classes, and what is said when it is wrong.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use deepflow_preprocess::picture::{decode, write_png, Colour, DecodeOptions, Pixels, PngCompression};
use deepflow_preprocess::sources::{Content, SourceOptions, Sources, PICTURE_EXTENSIONS};

fn png(value: u8) -> Vec<u8> {
    write_png(&Pixels::filled(3, 2, Colour::Grey, [value; 3]), PngCompression::Fast).unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn tar_of(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn open(path: &Path) -> Sources {
    Sources::open(path, &SourceOptions::default()).unwrap()
}

fn error(path: &Path, options: &SourceOptions) -> String {
    let message = Sources::open(path, options).err().expect("must be refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Key, class and grey value of every picture; reading goes backwards to show that order does not matter.
fn summary(sources: &Sources) -> Vec<(String, u32, u8)> {
    let mut all: Vec<_> = sources
        .entries()
        .iter()
        .rev()
        .map(|entry| {
            let value = match sources.read(entry).unwrap() {
                Content::File(bytes) => {
                    assert_eq!(bytes.len() as u64, sources.bytes(entry));
                    decode(&bytes, &DecodeOptions::default()).unwrap().pixels.data()[0]
                }
                Content::Pixels(pixels) => pixels.data()[0],
            };
            (entry.key.clone(), entry.class, value)
        })
        .collect();
    all.reverse();
    all
}

fn expected(all: &[(&str, u32, u8)]) -> Vec<(String, u32, u8)> {
    all.iter()
        .map(|&(key, class, value)| (key.to_owned(), class, value))
        .collect()
}

fn class_names(sources: &Sources) -> Vec<&str> {
    sources.classes().iter().map(|class| class.name.as_str()).collect()
}

const NO_PICTURE: &str = "its name does not end in .jpg, .jpeg, .jpe, .png or .webp";

#[test]
fn the_reason_for_ignoring_a_file_names_every_ending_that_is_read() {
    for extension in PICTURE_EXTENSIONS {
        assert!(NO_PICTURE.contains(&format!(".{extension}")), "{extension}");
    }
}

fn ignored(sources: &Sources) -> Vec<(&str, &str)> {
    let files = sources.ignored().iter();
    files.map(|file| (file.name.as_str(), file.reason)).collect()
}

#[test]
fn class_folders_are_numbered_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(root, "n02/b.png", &png(1));
    write(root, "n01/c.JPEG", &png(2));
    write(root, "n01/deeper/a.png", &png(3));
    write(root, "n01/notes.txt", b"no picture");
    write(root, "n01/.hidden.png", b"no picture");
    write(root, "n01/a.png", &png(4));
    let sources = open(root);
    assert_eq!(class_names(&sources), ["n01", "n02"]);
    let found = expected(&[
        ("n01/a", 0, 4),
        ("n01/c", 0, 2),
        ("n01/deeper/a", 0, 3),
        ("n02/b", 1, 1),
    ]);
    assert_eq!(summary(&sources), found);
    assert_eq!(ignored(&sources), [("n01/notes.txt", NO_PICTURE)]);
    write(root, "stray.png", &png(9));
    write(root, "more.tar", &tar_of(&[("a.png", png(1))]));
    write(root, "t10k-images-idx3-ubyte", &idx(&[1, 1, 1], &[1]));
    let beside = "it lies beside the class folders, in none of them";
    assert_eq!(
        ignored(&open(root)),
        [
            ("more.tar", beside),
            ("stray.png", beside),
            ("t10k-images-idx3-ubyte", beside),
            ("n01/notes.txt", NO_PICTURE),
        ]
    );
    let before = sources.fingerprint();
    write(root, "n01/z.png", &png(5));
    assert_ne!(open(root).fingerprint(), before);
}

#[test]
fn classes_that_may_be_one_folder_further_down_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train/n01/a.png", &png(1));
    write(folder.path(), "val/n01/b.png", &png(2));
    let sources = open(folder.path());
    assert_eq!(class_names(&sources), ["train", "val"]);
    assert_eq!(sources.nested_classes(), Some("train/n01"));
    write(folder.path(), "val/c.png", &png(3));
    assert_eq!(open(folder.path()).nested_classes(), None);
    assert_eq!(open(&folder.path().join("train")).nested_classes(), None);
}

#[test]
fn names_of_classes_come_from_a_file_and_keep_the_numbers_of_a_part() {
    let folder = tempfile::tempdir().unwrap();
    let names = write(
        folder.path(),
        "names.txt",
        b"n00 goldfish\nn01 tench, Tinca tinca\nn02\n",
    );
    write(folder.path(), "train/n01/a.png", &png(1));
    let options = SourceOptions {
        class_names: Some(names),
        ..SourceOptions::default()
    };
    let sources = Sources::open(&folder.path().join("train"), &options).unwrap();
    assert_eq!(sources.entries()[0].class, 1);
    assert_eq!(sources.classes()[1].label.as_deref(), Some("tench, Tinca tinca"));
    assert_eq!(class_names(&sources), ["n00", "n01", "n02"]);
}

#[test]
fn a_flat_folder_is_one_class() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.png", &png(2));
    write(folder.path(), "a.png", &png(1));
    let sources = open(folder.path());
    assert_eq!(sources.classes().len(), 1);
    assert_eq!(summary(&sources), expected(&[("a", 0, 1), ("b", 0, 2)]));
}

#[test]
fn the_tar_of_class_tars_is_read_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let class = |first: u8| tar_of(&[("x_1.JPEG", png(first)), ("x_2.JPEG", png(first + 1))]);
    let tar = tar_of(&[("n02.tar", class(10)), ("n01.tar", class(20))]);
    let path = write(folder.path(), "ILSVRC2012_img_train.tar", &tar);
    let sources = open(&path);
    assert_eq!(class_names(&sources), ["n01", "n02"]);
    let found = [
        ("n02/x_1", 1, 10),
        ("n02/x_2", 1, 11),
        ("n01/x_1", 0, 20),
        ("n01/x_2", 0, 21),
    ];
    assert_eq!(summary(&sources), expected(&found));
    assert!(sources
        .describe(&sources.entries()[0])
        .ends_with("ILSVRC2012_img_train.tar: n02.tar/x_1.JPEG"));
}

#[test]
fn a_validation_tar_takes_its_classes_from_the_label_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let members = [
        ("val/v_2.JPEG", png(2)),
        ("val/v_1.JPEG", png(1)),
        ("val/v_3.JPEG", png(3)),
    ];
    let tar = write(root, "val.tar", &tar_of(&members));
    for (text, classes) in [
        ("n07\nn03\nn07\n", [1, 0, 1]),
        ("2\n0\n2\n", [2, 0, 2]),
        ("v_3.JPEG n05\nv_1.JPEG n05\nv_2.JPEG n01\n", [1, 0, 1]),
        (
            "ImageId,PredictionString\nv_1,n5 1 2 3\nv_2,n4 1 2\nv_3,n6 9\n",
            [1, 0, 2],
        ),
    ] {
        let options = SourceOptions {
            labels: Some(write(root, "labels.txt", text.as_bytes())),
            class_names: None,
        };
        let sources = Sources::open(&tar, &options).unwrap();
        let mut found = summary(&sources);
        found.sort();
        let classes = [
            ("val/v_1", classes[0], 1),
            ("val/v_2", classes[1], 2),
            ("val/v_3", classes[2], 3),
        ];
        assert_eq!(found, expected(&classes), "{text}");
    }
    let labels = |text: &str| SourceOptions {
        labels: Some(write(root, "labels.txt", text.as_bytes())),
        class_names: None,
    };
    assert!(error(&tar, &labels("1\n2\n")).contains("2 labels, expected 3"));
    assert!(error(&tar, &labels("v_1 3\nv_2 4\n")).contains("no label for val/v_3.JPEG"));
}

#[test]
fn webdataset_shards_bring_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    let first = tar_of(&[
        ("a/0001.jpg", png(1)),
        ("a/0001.cls", b"2".to_vec()),
        ("a/0002.png", png(2)),
        ("a/0002.json", br#"{"label": 0}"#.to_vec()),
    ]);
    write(folder.path(), "s-000000.tar", &first);
    write(
        folder.path(),
        "s-000001.tar",
        &tar_of(&[("a/0003.cls", b"1\n".to_vec()), ("a/0003.webp", png(3))]),
    );
    let sources = open(folder.path());
    assert_eq!(
        summary(&sources),
        expected(&[("a/0001", 2, 1), ("a/0002", 0, 2), ("a/0003", 1, 3)])
    );
    assert_eq!(class_names(&sources), ["0", "1", "2"]);
    assert!(ignored(&sources).is_empty());
    write(folder.path(), "t10k-images-idx3-ubyte", &idx(&[1, 1, 1], &[1]));
    write(folder.path(), "d.png", &png(4));
    write(folder.path(), "README.md", b"four shards");
    let beside = "it lies beside tars, in none of them";
    assert_eq!(
        ignored(&open(folder.path())),
        [
            ("README.md", NO_PICTURE),
            ("d.png", beside),
            ("t10k-images-idx3-ubyte", beside)
        ]
    );
    write(
        folder.path(),
        "s-000002.tar",
        &tar_of(&[("b.jpg", png(1)), ("c.jpg", png(1)), ("c.cls", b"1".to_vec())]),
    );
    assert!(error(folder.path(), &SourceOptions::default()).contains("b.jpg has no class"));
    write(
        folder.path(),
        "s-000002.tar",
        &tar_of(&[("b.jpg", png(1)), ("b.cls", b"".to_vec())]),
    );
    assert!(error(folder.path(), &SourceOptions::default()).contains("b.cls: class is \"\""));
}

fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|side| side.to_be_bytes()));
    bytes.extend(data);
    bytes
}

#[test]
fn idx_files_plain_and_gzipped() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&idx(&[2, 1, 2], &[7, 8, 9, 10])).unwrap();
    let path = write(root, "t10k-images-idx3-ubyte.gz", &gzip.finish().unwrap());
    assert_eq!(open(&path).classes().len(), 1);
    write(root, "t10k-labels-idx1-ubyte", &idx(&[2], &[1, 0]));
    let sources = open(&path);
    assert_eq!(summary(&sources), expected(&[("000000", 1, 7), ("000001", 0, 9)]));
    assert_eq!(summary(&open(root)), summary(&sources));
    assert!(ignored(&open(root)).is_empty());
    write(root, "a.png", &png(1));
    write(root, "LICENSE", b"MIT");
    assert_eq!(
        ignored(&open(root)),
        [
            ("LICENSE", NO_PICTURE),
            ("a.png", "it lies beside an IDX file, which is read instead")
        ]
    );
    write(root, "t10k-labels-idx1-ubyte", &idx(&[1], &[1]));
    assert!(error(&path, &SourceOptions::default()).contains("1 labels, expected 2"));
    write(root, "t10k-images-idx3-ubyte.gz", &idx(&[3, 1, 2], &[7, 8, 9, 10]));
    assert!(error(&path, &SourceOptions::default()).contains("was it cut short?"));
}

#[test]
fn what_holds_no_pictures_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let options = SourceOptions::default();
    assert!(error(root, &options).contains("no pictures found"));
    assert!(error(&root.join("nowhere"), &options).contains("cannot open"));
    write(root, "n01/a.png", &png(1));
    fs::create_dir(root.join("n02")).unwrap();
    assert!(error(root, &options).contains("class folder \"n02\" has no pictures"));
    let tar = tar_of(&[("a.png", png(1)), ("b.png", png(2))]);
    let cut = write(root, "cut.tar", &tar[..tar.len() - 1600]);
    assert!(
        error(&cut, &options).contains("a whole uncompressed tar"),
        "{}",
        error(&cut, &options)
    );
    let compressed = write(root, "x.tar", &[0x28, 0xB5, 0x2F, 0xFD, 0]);
    assert!(error(&compressed, &options).contains("zstd data; expected an uncompressed tar"));
    let text = write(root, "text.tar", &[b'x'; 1024]);
    assert!(error(&text, &options).contains("invalid tar"));
}
