//! Reads files written by `torch.save` without running any of what they contain.
//!
//! A torch checkpoint is a Python pickle: a small program that may name any function of any Python module and call it.
//! [`TorchFile::open`] interprets that program with a machine of its own that knows a short list of harmless types
//! (tensors and their storages, `OrderedDict`, `argparse.Namespace`, numbers). Anything else ends with one line that
//! names what the file asked for. Nothing outside this process is reached, memory stays in proportion to the file, and
//! the numbers of a tensor are only read when [`TorchFile::read`] asks for them.
//!
//! Both containers are read: the zip archive of PyTorch ≥ 1.6 and the older bare pickle stream.
//!
//! ```no_run
//! use deepflow_model::torch_pickle::TorchFile;
//! let file = TorchFile::open("checkpoint_0000003.pt")?;
//! let ema = file.root().get("ema").expect("the authors' trainer stores one");
//! for (name, value) in ema.entries().into_iter().flatten() {
//!     if let Some(tensor) = value.as_tensor() {
//!         println!("{} {:?}", name.as_str().unwrap_or("?"), file.read(tensor)?.shape);
//!     }
//! }
//! # Ok::<(), deepflow_model::torch_pickle::TorchFileError>(())
//! ```

mod archive;
mod error;
mod globals;
mod machine;
mod objects;
mod opcodes;
mod tensor;
mod writer;

pub use archive::TorchFile;
pub use error::{PickleError, TorchFileError};
pub use objects::Value;
pub use tensor::{TensorData, TensorReference};
pub use writer::{PythonObject, TorchWriter};
