//! A CUDA device for the tests: the card where `DEEPFLOW_CUDA_TESTS=card` asks for it, else the host emulation.
//!
//! The emulation is two libraries made here with the machine's C++ compiler (model/src/ops/cuda/host): a driver that
//! runs our kernel files on fibers, and a cuBLAS. Loaded under the names of the real ones, they are what the binary's
//! trampolines find.

use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
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
        let Some(compiler) = compiler() else {
            eprintln!("SKIPPED: no C++ compiler (CXX, c++, g++) to build the CUDA emulation with");
            return false;
        };
        load(&build(&compiler));
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

fn compiler() -> Option<String> {
    let candidates = std::env::var("CXX").into_iter().chain(["c++".into(), "g++".into()]);
    candidates
        .into_iter()
        .find(|compiler| Command::new(compiler).arg("--version").output().is_ok())
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda")
}

/// Builds both libraries into a directory of this process.
fn build(compiler: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulation-{}", std::process::id()));
    let kernels = directory.join("kernels");
    std::fs::create_dir_all(&kernels).unwrap();
    copy_kernels(&kernels);
    let host = sources().join("host");
    let objects = Objects {
        compiler,
        kernels: &kernels,
    };

    let mut driver = Command::new(compiler);
    driver.args(["-shared", "-Wl,-soname,libcuda.so.1"]);
    for path in kernel_files(&kernels, "cu") {
        // Every kernel file in a namespace of its own, as nvcc compiles each by itself.
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let unit = format!("#include \"common.cuh\"\nnamespace {{\n#include \"{stem}.cu\"\n}}\n");
        let text = std::fs::read_to_string(&path).unwrap();
        driver.arg(objects.object(&unit, &text));
    }
    for name in ["emulator.cpp", "fake_driver.cpp"] {
        driver.arg(objects.object(&std::fs::read_to_string(host.join(name)).unwrap(), ""));
    }
    driver.arg("-o").arg(directory.join("libcuda.so.1"));
    run(driver);

    let mut blas = Command::new(compiler);
    blas.args(["-shared", "-Wl,-soname,libcublas.so.13"])
        .arg(objects.object(&std::fs::read_to_string(host.join("fake_cublas.cpp")).unwrap(), ""))
        .arg("-o")
        .arg(directory.join("libcublas.so.13"));
    run(blas);
    directory
}

/// Compiled units, kept from run to run under a hash of everything that goes into them.
struct Objects<'a> {
    compiler: &'a str,
    kernels: &'a Path,
}

impl Objects<'_> {
    fn object(&self, unit: &str, included: &str) -> PathBuf {
        let host = sources().join("host");
        let headers = [
            self.kernels.join("common.cuh"),
            host.join("cuda_on_host.hpp"),
            host.join("emulator.hpp"),
            host.join("include/cuda_fp16.h"),
        ];
        let mut hash = std::hash::DefaultHasher::new();
        (self.compiler, unit, included).hash(&mut hash);
        for header in headers {
            std::fs::read(header).unwrap().hash(&mut hash);
        }
        let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{:016x}.o", hash.finish()));
        if object.exists() {
            return object;
        }
        let source = self.kernels.join(format!("{:016x}.cpp", hash.finish()));
        std::fs::write(&source, unit).unwrap();
        let unfinished = source.with_extension("o");
        let mut compile = Command::new(self.compiler);
        compile
            .args([
                "-std=c++20",
                "-O2",
                "-fPIC",
                "-ffp-contract=off",
                "-Wno-unknown-pragmas",
            ])
            .args(cfg!(target_arch = "x86_64").then_some("-mf16c"))
            .args(["-include", "cuda_on_host.hpp", "-c"])
            .args(["-I".as_ref(), host.as_os_str()])
            .args(["-I".as_ref(), host.join("include").as_os_str()])
            .args(["-I".as_ref(), self.kernels.as_os_str()])
            .arg(source)
            .arg("-o")
            .arg(&unfinished);
        run(compile);
        std::fs::rename(unfinished, &object).unwrap();
        object
    }
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
