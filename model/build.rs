//! With the feature `cuda`: compiles the kernels for the GPUs of docs/cuda.md, and the trampolines that let the binary
//! start where no CUDA library exists. Without it: nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::build();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    const KERNELS: &str = "src/ops/cuda/kernels";
    const TRAMPOLINES: &str = "src/ops/cuda/lazy_link";
    /// The libraries cudarc asks the linker for.
    const LIBRARIES: [&str; 4] = ["cuda", "cublas", "cublasLt", "nvrtc"];
    /// Machine code for A100 and H100, and PTX for what comes later.
    const TARGETS: [&str; 2] = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"];

    pub fn build() {
        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
        compile_kernels(&out);
        if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
            compile_trampolines(&out);
        }
    }

    /// One fat binary a kernel file, to be embedded. `ci-check` embeds empty ones: it never meets a device.
    fn compile_kernels(out: &Path) {
        println!("cargo:rerun-if-changed={KERNELS}");
        let mut sources: Vec<PathBuf> = std::fs::read_dir(KERNELS)
            .unwrap_or_else(|error| panic!("{KERNELS}: {error}"))
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .collect();
        sources.sort();
        let running: Vec<_> = sources
            .iter()
            .filter_map(|source| {
                let binary = out.join(source.file_name()?).with_extension("fatbin");
                if cfg!(feature = "ci-check") {
                    std::fs::write(&binary, []).unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
                    None
                } else {
                    Some((source, start_nvcc(source, &binary)))
                }
            })
            .collect();
        for (source, nvcc) in running {
            let output = nvcc
                .wait_with_output()
                .unwrap_or_else(|error| panic!("nvcc {}: {error}", source.display()));
            assert!(
                output.status.success(),
                "nvcc {}:\n{}",
                source.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    fn start_nvcc(source: &Path, binary: &Path) -> Child {
        let nvcc = nvcc();
        Command::new(&nvcc)
            .args(["-fatbin", "-O3", "--std=c++17"])
            .args(TARGETS.iter().flat_map(|target| ["-gencode", target]))
            .arg("-o")
            .arg(binary)
            .arg(source)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; docs/cuda.md says how to get nvcc", nvcc.display()))
    }

    fn nvcc() -> PathBuf {
        for variable in ["NVCC", "CUDA_PATH"] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        if let Some(nvcc) = env::var_os("NVCC") {
            return nvcc.into();
        }
        env::var_os("CUDA_PATH")
            .map(|root| Path::new(&root).join("bin/nvcc"))
            .filter(|nvcc| nvcc.is_file())
            .unwrap_or_else(|| "nvcc".into())
    }

    /// The trampolines define every symbol cudarc uses, so the libraries it names are never searched for one; empty
    /// archives under those names satisfy the linker where no toolkit is installed.
    fn compile_trampolines(out: &Path) {
        println!("cargo:rerun-if-changed={TRAMPOLINES}");
        cc::Build::new()
            .file(format!("{TRAMPOLINES}/trampolines.S"))
            .file(format!("{TRAMPOLINES}/resolve.c"))
            .include(TRAMPOLINES)
            .cargo_metadata(false)
            .compile("deepflow_lazy_cuda");
        for library in LIBRARIES {
            let archive = out.join(format!("lib{library}.a"));
            std::fs::write(&archive, b"!<arch>\n").unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
        }
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static:+whole-archive=deepflow_lazy_cuda");
        println!("cargo:rustc-link-lib=dylib=dl");
    }
}
