//! The Inception-v3 that the field measures generated pictures with.
//!
//! It is torchvision's network with the weights of the TensorFlow graph `inception-2015-12-05`, 1008 outputs, and four
//! kinds of differences: the average pools of the mixed blocks do not count padding, the last block pools by maximum,
//! there is no auxiliary head, and the BatchNorm epsilon is 1e-3. [`Inception::load`] reads the user's file of weights;
//! [`resize`] brings pictures to the 299×299 the network takes.
//!
//! ```no_run
//! use deepflow_model::inception::{resize, Inception, ResizeMode, INPUT_SIZE};
//! let network = Inception::load("pt_inception-2015-12-05-6726825d.pth")?;
//! let picture = vec![128u8; 3 * 64 * 64];
//! let input = resize(&picture, (64, 64), (INPUT_SIZE, INPUT_SIZE), ResizeMode::Tf1);
//! let features = network.features(&input)?;
//! assert_eq!(features.pool.len(), 2048);
//! # Ok::<(), deepflow_model::inception::InceptionError>(())
//! ```

mod blocks;
mod error;
mod network;
mod resize;
mod weights;

pub use error::InceptionError;
pub use network::{Inception, InceptionFeatures, CLASSES, INPUT_SIZE, POOL_FEATURES, SPATIAL_FEATURES};
pub use resize::{resize, ResizeMode};
pub use weights::WeightSource;
