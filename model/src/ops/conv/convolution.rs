//! The convolution of the autoencoder and of Inception-v3: any kernel, stride and padding.

use super::aligned::{SharedMut, LANES};
use super::direct::Direct;
use super::winograd::Winograd;
use super::{ConvolutionError, FeatureMap, Input};

/// Rows and columns of zeros around a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same above and below, and the same left and right.
    pub fn symmetric(vertical: usize, horizontal: usize) -> Self {
        Self {
            top: vertical,
            bottom: vertical,
            left: horizontal,
            right: horizontal,
        }
    }
}

/// The sizes that make a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvolutionShape {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Vertical and horizontal stride.
    pub stride: (usize, usize),
    /// Zeros around the input.
    pub padding: Padding,
}

impl ConvolutionShape {
    /// A square kernel of odd size that keeps the size of the picture.
    pub fn same(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        let padding = Padding::symmetric(kernel / 2, kernel / 2);
        Self {
            in_channels,
            out_channels,
            kernel: (kernel, kernel),
            stride: (1, 1),
            padding,
        }
    }

    /// Height and width of the output.
    ///
    /// # Errors
    /// When the kernel does not fit.
    pub fn output_size(&self, height: usize, width: usize) -> Result<(usize, usize), ConvolutionError> {
        let Padding {
            top,
            bottom,
            left,
            right,
        } = self.padding;
        let (rows, columns) = (height + top + bottom, width + left + right);
        if height == 0 || width == 0 || rows < self.kernel.0 || columns < self.kernel.1 {
            return Err(ConvolutionError::TooSmall {
                kernel: self.kernel,
                height,
                width,
            });
        }
        Ok((
            (rows - self.kernel.0) / self.stride.0 + 1,
            (columns - self.kernel.1) / self.stride.1 + 1,
        ))
    }

    /// Number of weights, `out · in · kernel height · kernel width`.
    pub fn weights(&self) -> usize {
        self.out_channels * self.in_channels * self.kernel.0 * self.kernel.1
    }

    pub(super) fn in_blocks(&self) -> usize {
        self.in_channels.div_ceil(LANES)
    }

    pub(super) fn out_blocks(&self) -> usize {
        self.out_channels.div_ceil(LANES)
    }

    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == (1, 1) && self.stride == (1, 1) && self.padding == Padding::default()
    }
}

/// The statistics and parameters of a BatchNorm that follows a convolution; each has a value a channel.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// Multiplies the normalised values; `None` for ones.
    pub weight: Option<&'a [f32]>,
    /// Is added afterwards.
    pub bias: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub variance: &'a [f32],
    /// Added to the variance.
    pub epsilon: f64,
}

/// What happens to the result of a convolution before it is written.
#[derive(Clone, Debug, Default)]
pub enum Output {
    /// Nothing.
    #[default]
    Plain,
    /// Negative values become zero.
    Relu,
    /// It is added to this map, which becomes the result.
    AddTo(FeatureMap),
}

/// A convolution with its weights packed once for the kernels of this machine.
///
/// 3×3 convolutions of stride 1 run as Winograd F(4×4, 3×3) (Lavin & Gray 2016), all others as an implicit matrix
/// product.
#[derive(Clone, Debug)]
pub struct Convolution {
    shape: ConvolutionShape,
    bias: Vec<f32>,
    method: Method,
}

#[derive(Clone, Debug)]
enum Method {
    Direct(Direct),
    Winograd(Winograd),
}

impl Convolution {
    /// `weight` is `(out, in, kernel height, kernel width)`, `bias` `(out,)`.
    ///
    /// # Errors
    /// When a length does not fit the shape.
    pub fn new(shape: ConvolutionShape, weight: &[f32], bias: &[f32]) -> Result<Self, ConvolutionError> {
        check_length("the weight of a convolution", weight.len(), shape.weights())?;
        check_length("the bias of a convolution", bias.len(), shape.out_channels)?;
        let method = if shape.kernel == (3, 3) && shape.stride == (1, 1) {
            Method::Winograd(Winograd::new(&shape, weight))
        } else {
            Method::Direct(Direct::new(&shape, weight))
        };
        let mut padded = vec![0.0; shape.out_blocks() * LANES];
        padded[..bias.len()].copy_from_slice(bias);
        Ok(Self {
            shape,
            bias: padded,
            method,
        })
    }

    /// A convolution without bias, with the BatchNorm that follows it folded into weights and bias.
    ///
    /// # Errors
    /// When a length does not fit the shape.
    pub fn with_batch_norm(
        shape: ConvolutionShape,
        weight: &[f32],
        norm: &BatchNorm<'_>,
    ) -> Result<Self, ConvolutionError> {
        check_length("the weight of a convolution", weight.len(), shape.weights())?;
        let parameters = [norm.weight.unwrap_or(norm.bias), norm.bias, norm.mean, norm.variance];
        for parameter in parameters {
            check_length("a parameter of a BatchNorm", parameter.len(), shape.out_channels)?;
        }
        let mut folded = weight.to_vec();
        let mut bias = Vec::with_capacity(shape.out_channels);
        let size = shape.weights() / shape.out_channels.max(1);
        for (channel, weights) in folded.chunks_exact_mut(size.max(1)).enumerate() {
            let gain = norm.weight.map_or(1.0, |weight| f64::from(weight[channel]));
            let scale = gain / (f64::from(norm.variance[channel]) + norm.epsilon).sqrt();
            weights
                .iter_mut()
                .for_each(|weight| *weight = (f64::from(*weight) * scale) as f32);
            bias.push((f64::from(norm.bias[channel]) - f64::from(norm.mean[channel]) * scale) as f32);
        }
        Self::new(shape, &folded, &bias)
    }

    /// The sizes it was made with.
    pub fn shape(&self) -> &ConvolutionShape {
        &self.shape
    }

    /// Convolves every picture of the batch. The result does not depend on the number of threads nor on the rest of the
    /// batch.
    ///
    /// # Errors
    /// When the input has other channels, is smaller than the kernel, or the map to add to has another shape.
    ///
    /// ```
    /// use deepflow_model::ops::conv::{Convolution, ConvolutionShape, FeatureMap, Output};
    /// let blur = Convolution::new(ConvolutionShape::same(1, 1, 3), &[1.0 / 9.0; 9], &[0.0])?;
    /// let picture = FeatureMap::from_nchw(&[9.0; 25], [1, 1, 5, 5])?;
    /// let blurred = blur.forward(&picture, Output::Plain)?.to_nchw();
    /// assert!((blurred[12] - 9.0).abs() < 1e-4 && (blurred[0] - 4.0).abs() < 1e-4);
    /// # Ok::<(), deepflow_model::ops::conv::ConvolutionError>(())
    /// ```
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>, output: Output) -> Result<FeatureMap, ConvolutionError> {
        let input = input.into();
        let found = input.shape();
        let [batch, channels, height, width] = found;
        if channels != self.shape.in_channels {
            let expected = [batch, self.shape.in_channels, height, width];
            return Err(ConvolutionError::Shape {
                what: "the input of a convolution",
                found,
                expected,
            });
        }
        let (height, width) = self.shape.output_size(height, width)?;
        let expected = [batch, self.shape.out_channels, height, width];
        let relu = matches!(output, Output::Relu);
        let (mut result, accumulate) = match output {
            Output::AddTo(map) if map.shape() != expected => {
                let found = map.shape();
                return Err(ConvolutionError::Shape {
                    what: "the map a convolution adds to",
                    found,
                    expected,
                });
            }
            Output::AddTo(map) => (map, true),
            Output::Plain | Output::Relu => (FeatureMap::zeros(batch, self.shape.out_channels, height, width), false),
        };
        let target = Target {
            values: SharedMut::from(result.values_mut().as_mut_ptr()),
            blocks: self.shape.out_blocks(),
            height,
            width,
            bias: &self.bias,
            accumulate,
            relu,
        };
        match &self.method {
            Method::Direct(direct) => direct.run(&self.shape, &input, &target),
            Method::Winograd(winograd) => winograd.run(&self.shape, &input, &target),
        }
        Ok(result)
    }
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), ConvolutionError> {
    if found == expected {
        Ok(())
    } else {
        Err(ConvolutionError::Length { what, found, expected })
    }
}

/// Where a convolution writes.
pub(super) struct Target<'a> {
    values: SharedMut,
    pub(super) blocks: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) bias: &'a [f32],
    pub(super) accumulate: bool,
    pub(super) relu: bool,
}

impl Target<'_> {
    pub(super) fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The sixteen channels of a block of a pixel.
    ///
    /// # Safety
    /// Image, block and pixel must exist; what is written there must be written by one task only.
    pub(super) unsafe fn pixel(&self, image: usize, block: usize, pixel: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe {
            self.values
                .add(((image * self.blocks + block) * self.pixels() + pixel) * LANES)
        }
    }
}
