//! Why a convolution, pool or norm is refused.

use thiserror::Error;

/// Why a convolution, pool or norm was refused. One line: what, what was found, what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConvolutionError {
    /// A list of values has another length than the shape says.
    #[error("{what} has {found} values, expected {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length by the shape.
        expected: usize,
    },
    /// A map has another shape than its user needs.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which map.
        what: &'static str,
        /// Its shape `[batch, channels, height, width]`.
        found: [usize; 4],
        /// The shape that fits.
        expected: [usize; 4],
    },
    /// A map that is followed by others ends within a block of channels.
    #[error("a map of {found} channels cannot be followed by another: only multiples of 16 can be joined")]
    Channels {
        /// Its number of channels.
        found: usize,
    },
    /// The kernel is larger than the padded picture.
    #[error("a kernel of {kernel:?} does not fit a picture of {height}x{width} with its padding")]
    TooSmall {
        /// Height and width of the kernel.
        kernel: (usize, usize),
        /// Height of the picture.
        height: usize,
        /// Width of the picture.
        width: usize,
    },
    /// The channels cannot be cut into the groups.
    #[error("{channels} channels cannot be cut into {groups} groups")]
    Groups {
        /// Number of channels.
        channels: usize,
        /// Number of groups.
        groups: usize,
    },
    /// Nothing to join.
    #[error("there is no map to concatenate")]
    Empty,
}
