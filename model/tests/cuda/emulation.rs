//! A CUDA device for the tests: the card where `DEEPFLOW_CUDA_TESTS=card` asks for it, else the host emulation.
//!
//! The emulation is two libraries that scripts/emulated-gpu makes with the machine's C++ compiler
//! (model/src/ops/cuda/host): a driver that runs our kernel files on fibers, and a cuBLAS. Loaded under the names of the
//! real ones, they are what the binary's trampolines find.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use deepflow_model::device::{AnyDevice, DeviceChoice};
use dfdx::tensor::Cuda;

/// `FILE|FROM|TO` or `FILE|FROM|TO|N`: what the planted-fault tests change in a kernel file (occurrence N of FROM,
/// counted from 0) before it is compiled.
pub const FAULT: &str = "DEEPFLOW_PLANTED_FAULT";

/// The device, or `None` (said on stderr) where there is no C++ compiler.
pub fn device() -> Option<Cuda> {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    let available = *AVAILABLE.get_or_init(|| {
        if std::env::var_os("DEEPFLOW_CUDA_TESTS").as_deref() == Some(OsStr::new("card")) {
            return true;
        }
        if !has_compiler() {
            eprintln!("SKIPPED: no C++ compiler (CXX, c++) to build the CUDA emulation with");
            return false;
        }
        load(&build());
        true
    });
    if !available {
        return None;
    }
    match DeviceChoice::Cuda(0).select().unwrap().device {
        AnyDevice::Cuda(device) => Some(device),
        AnyDevice::Cpu(_) => unreachable!("cuda:0 was asked for"),
    }
}

fn has_compiler() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    Command::new(compiler).arg("--version").output().is_ok()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda")
}

/// Builds both libraries into a directory of this process.
fn build() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulation-{}", std::process::id()));
    let kernels = directory.join("kernels");
    std::fs::create_dir_all(&kernels).unwrap();
    copy_kernels(&kernels);
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/emulated-gpu"))
        .args([&directory, &kernels])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory
}

/// How often this thread has waited until the emulated device had done everything; `None` on a card.
pub fn host_waits() -> Option<u64> {
    if std::env::var_os("DEEPFLOW_CUDA_TESTS").is_some() {
        return None;
    }
    let driver = libloading::os::unix::Library::this();
    // SAFETY: the emulated driver, which is loaded for good, has this function with this signature.
    let waits = unsafe { driver.get::<unsafe extern "C" fn() -> u64>(b"emulated_host_waits") }.unwrap();
    // SAFETY: it reads a number of this thread.
    Some(unsafe { waits() })
}

fn kernel_files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    files.sort();
    files
}

/// The text of every kernel file, by name.
pub fn kernel_texts() -> Vec<(String, String)> {
    let directory = sources().join("kernels");
    let files = kernel_files(&directory, "cu")
        .into_iter()
        .chain(kernel_files(&directory, "cuh"));
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn copy_kernels(to: &Path) {
    let fault = std::env::var(FAULT).ok();
    for (name, mut text) in kernel_texts() {
        if let Some(fault) = &fault {
            let fields: Vec<&str> = fault.split('|').collect();
            if fields[0] == name {
                let occurrence = fields.get(3).map_or(0, |n| n.parse().unwrap());
                let (at, found) = text.match_indices(fields[1]).nth(occurrence).unwrap();
                text.replace_range(at..at + found.len(), fields[2]);
            }
        }
        std::fs::write(to.join(name), text).unwrap();
    }
}

/// Both libraries stay loaded, where the trampolines' `dlopen` finds them by name.
fn load(directory: &Path) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    for name in ["libcuda.so.1", "libcublas.so.13"] {
        // SAFETY: the libraries were just built from this project's sources; their initialisers register kernels.
        let library = unsafe { Library::open(Some(directory.join(name)), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
        std::mem::forget(library);
    }
    std::fs::remove_dir_all(directory).unwrap();
}
