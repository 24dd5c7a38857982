//! Torch files of every kind the field has, and hostile ones.
#![allow(clippy::unwrap_used)]

use deepflow_model::torch_pickle::{PythonObject, TensorData, TorchFile, TorchWriter};
use proptest::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/torch")
        .join(name)
}

fn error_line(path: &Path) -> String {
    let message = TorchFile::open(path).err().expect("must be refused").to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    assert!(
        message.contains(path.file_name().unwrap().to_str().unwrap()),
        "names the file: {message}"
    );
    message
}

fn numbers(file: &TorchFile, name: &str) -> (Vec<usize>, Vec<f32>) {
    let value = file.root().get(name).unwrap();
    let data = file
        .read(
            value
                .as_tensor()
                .unwrap_or_else(|| panic!("{name} is {}", value.kind())),
        )
        .unwrap();
    let values = data.to_f32().unwrap();
    (data.shape, values)
}

#[test]
fn every_container_and_protocol_reads_the_same() {
    for name in ["zip.pt", "protocol4.pt", "legacy.pt"] {
        let file = TorchFile::open(fixture(name)).unwrap();
        let plain: Vec<f32> = (0u8..24).map(f32::from).collect();
        assert_eq!(numbers(&file, "plain"), (vec![2, 3, 4], plain.clone()), "{name}");
        let (shape, transposed) = numbers(&file, "transposed");
        assert_eq!(shape, [4, 2, 3]);
        assert_eq!(transposed[1], 4.0);
        assert_eq!(transposed[6], 1.0);
        assert_eq!(
            numbers(&file, "slice_of_shared_storage"),
            (vec![2, 2], vec![16.0, 18.0, 20.0, 22.0])
        );
        assert_eq!(numbers(&file, "scalar"), (vec![], vec![3.5]));
        assert_eq!(numbers(&file, "empty"), (vec![0, 3], vec![]));
        for format in ["half", "bfloat16"] {
            assert_eq!(numbers(&file, format), (vec![2], vec![1.5, -2.0]));
        }
        assert_eq!(numbers(&file, "int64").1, [-1.0, (1u64 << 40) as f32]);
        assert_eq!(numbers(&file, "uint8").1, [0.0, 255.0]);
        assert_eq!(numbers(&file, "bool").1, [1.0, 0.0]);
        assert_eq!(numbers(&file, "parameter").1, [1.0, 1.0]);
        let root = file.root();
        let names: Vec<_> = root
            .get("state_dict")
            .unwrap()
            .entries()
            .unwrap()
            .map(|(key, _)| key.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["weight", "bias"]);
        let args = root.get("args").unwrap();
        assert_eq!(args.get("lr").unwrap().as_f64(), Some(1e-4));
        assert_eq!(args.get("name").unwrap().as_str(), Some("DeepFlow"));
        assert_eq!(args.get("flag").unwrap().as_bool(), Some(true));
        assert_eq!(args.get("betas").unwrap().items().unwrap().count(), 2);
        assert_eq!(root.get("numpy_scalar").unwrap().as_f64(), Some(2.5));
        assert_eq!(root.get("ordered").unwrap().get("a").unwrap().as_i64(), Some(2));
    }
}

#[test]
fn a_hostile_pickle_is_refused_by_the_name_it_asks_for_and_runs_nothing() {
    let proof = Path::new("/tmp/the-pickle-was-executed");
    for name in ["hostile_zip.pt", "hostile_legacy.pt"] {
        let message = error_line(&fixture(name));
        assert!(message.contains("`posix.system`"), "{message}");
        assert!(message.contains("nothing of it was executed"), "{message}");
    }
    assert!(!proof.exists());
}

#[test]
fn files_of_other_kinds_are_named_as_such() {
    assert!(error_line(&fixture("not_torch.pkl")).contains("magic number"));
    assert!(error_line(&fixture("make.py")).contains("expected a zip archive or a pickle"));
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pt");
    std::fs::write(&empty, b"").unwrap();
    assert!(error_line(&empty).contains("it is empty"));
    assert!(error_line(&folder.path().join("absent.pt")).contains("No such file"));
}

#[test]
fn a_file_cut_anywhere_gives_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pt");
    for name in ["zip.pt", "legacy.pt"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for length in (0..whole.len()).step_by(97) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(TorchFile::open(&path).is_err(), "{name} cut at {length}");
        }
    }
}

#[test]
fn a_flipped_byte_in_the_numbers_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.pt");
    let mut bytes = std::fs::read(fixture("zip.pt")).unwrap();
    let pattern: Vec<u8> = [5.0f32, 6.0, 7.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let position = bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
        .unwrap();
    bytes[position] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let file = TorchFile::open(&path).unwrap();
    let message = file
        .read(file.root().get("plain").unwrap().as_tensor().unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.to_lowercase().contains("checksum"), "{message}");
}

/// Puts a pickle into the zip container.
fn archive_of(pickle: &[u8], compression: zip::CompressionMethod) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(compression);
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("archive/data/0", options).unwrap();
    zip.write_all(&[0; 16]).unwrap();
    zip.finish().unwrap();
    file
}

fn tensor_pickle(elements: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu".to_vec();
    pickle.extend([b'K', elements, b't', b'Q', b'K', offset, b'(']);
    shape.iter().for_each(|&size| pickle.extend([b'K', size]));
    pickle.extend(b"t(");
    stride.iter().for_each(|&step| pickle.extend([b'K', step]));
    pickle.extend(b"t\x89ccollections\nOrderedDict\n)RtR.");
    pickle
}

#[test]
fn a_view_outside_its_storage_is_refused() {
    let stored = zip::CompressionMethod::Stored;
    for (case, pickle) in [
        ("past the end", tensor_pickle(4, 1, &[4], &[1])),
        ("stride past the end", tensor_pickle(4, 0, &[2, 2], &[3, 1])),
        ("expanded a thousandfold", tensor_pickle(4, 0, &[100, 10], &[0, 0])),
        ("nine dimensions", tensor_pickle(4, 0, &[1; 9], &[1; 9])),
    ] {
        let file = archive_of(&pickle, stored);
        assert!(error_line(file.path()).contains("lies inside its storage"), "{case}");
    }
    // A pickle that promises more elements than the archive holds is only found out when they are read.
    let file = archive_of(&tensor_pickle(5, 0, &[5], &[1]), stored);
    let torch = TorchFile::open(file.path()).unwrap();
    let message = torch.read(torch.root().as_tensor().unwrap()).unwrap_err().to_string();
    assert!(
        message.contains("16 bytes in the file, its tensors need 20"),
        "{message}"
    );
}

#[test]
fn bombs_are_refused_before_they_grow() {
    let stored = zip::CompressionMethod::Stored;
    let compressed = archive_of(&vec![b'N'; 1 << 20], zip::CompressionMethod::Deflated);
    assert!(error_line(compressed.path()).contains("does not compress"));

    let many = [b"\x80\x02".as_slice(), &vec![b'}'; 5_000_000]].concat();
    assert!(error_line(archive_of(&many, stored).path()).contains("more than 4000000 objects"));

    // Announces 2^60 bytes of text and holds none.
    let long = [b"\x80\x04\x8d".as_slice(), &(1u64 << 60).to_le_bytes()].concat();
    assert!(error_line(archive_of(&long, stored).path()).contains("more than"));

    // A million nested tuples and a list that holds itself: neither may recurse.
    let nested = [b"\x80\x02N".as_slice(), &vec![0x85; 1_000_000], b"."].concat();
    drop(TorchFile::open(archive_of(&nested, stored).path()).unwrap());
    drop(TorchFile::open(archive_of(b"\x80\x02]q\0h\0a.", stored).path()).unwrap());
}

#[test]
fn every_way_to_name_code_is_refused() {
    let stored = zip::CompressionMethod::Stored;
    for (case, pickle, expected) in [
        ("GLOBAL", b"\x80\x02cbuiltins\neval\n.".as_slice(), "builtins.eval"),
        ("STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        ("INST", b"(ios\nsystem\n.", "os.system"),
        ("OBJ", b"(o.", "an object of a class"),
        ("EXT1", b"\x80\x02\x82\x01.", "opcode 0x82"),
        ("getattr on torch", b"\x80\x02ctorch\nload\n.", "torch.load"),
        (
            "a storage that is none",
            b"\x80\x02ctorch\nEvilStorage\n.",
            "torch.EvilStorage",
        ),
        ("calling a dict", b"\x80\x02})R.", "not a type"),
        ("reading an empty stack", b"\x80\x02.", "the stack is empty"),
        ("no STOP", b"\x80\x02N", "ends before its STOP"),
    ] {
        let file = archive_of(pickle, stored);
        let message = error_line(file.path());
        assert!(message.contains(expected), "{case}: {message}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_machine_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let file = archive_of(&bytes, zip::CompressionMethod::Stored);
        let _ = TorchFile::open(file.path());
    }

    #[test]
    fn a_changed_byte_never_panics(position in 0usize..4000, value in any::<u8>()) {
        let mut bytes = std::fs::read(fixture("legacy.pt")).unwrap();
        let position = position % bytes.len();
        bytes[position] = value;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        if let Ok(torch) = TorchFile::open(file.path()) {
            for (_, value) in torch.root().entries().into_iter().flatten() {
                if let Some(tensor) = value.as_tensor() {
                    let _ = torch.read(tensor);
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(values in prop::collection::vec(any::<f32>(), 0..50), number: i64, text in ".*") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("written.pt");
        let tensor = TensorData::from_f32(vec![values.len(), 1], &values);
        let mut writer = TorchWriter::create(&path).unwrap();
        let reference = writer.tensor(&tensor).unwrap();
        let root = PythonObject::Dict(vec![
            (PythonObject::text("tensor"), reference),
            (PythonObject::text("number"), PythonObject::Int(number)),
            (PythonObject::text("args"), PythonObject::Namespace(vec![("text".into(), PythonObject::text(text.clone()))])),
        ]);
        writer.finish(&root).unwrap();
        let file = TorchFile::open(&path).unwrap();
        let read = file.read(file.root().get("tensor").unwrap().as_tensor().unwrap()).unwrap();
        prop_assert_eq!(read, tensor);
        prop_assert_eq!(file.root().get("number").unwrap().as_i64(), Some(number));
        prop_assert_eq!(file.root().get("args").unwrap().get("text").unwrap().as_str(), Some(text.as_str()));
    }
}
