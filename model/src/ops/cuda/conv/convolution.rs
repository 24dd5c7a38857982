//! Convolutions: windows gathered by a kernel, products by cuBLAS.

use cudarc::driver::CudaSlice;
use dfdx::tensor::CudaError;

use super::super::launch::{place, start, undefined, Kernel};
use super::super::precision::Precision;
use super::super::product::Product;
use super::group_norm::DeviceAffine;
use super::map::{rounded, DeviceMap};
use super::{band_rows, LoadedDevice};
use crate::ops::conv::{ConvolutionShape, Padding};

/// Threads that share the window of a pixel.
const THREADS: u32 = 256;

/// A map and what is done to every value on the way into a convolution, without a copy of the whole map.
pub struct DeviceInput<'a, E: Precision> {
    map: &'a DeviceMap<E>,
    affine: Option<&'a DeviceAffine>,
    silu: bool,
    enlarged: bool,
}

impl<'a, E: Precision> From<&'a DeviceMap<E>> for DeviceInput<'a, E> {
    fn from(map: &'a DeviceMap<E>) -> Self {
        Self {
            map,
            affine: None,
            silu: false,
            enlarged: false,
        }
    }
}

impl<'a, E: Precision> DeviceInput<'a, E> {
    /// `scale · x + shift`, as after a GroupNorm.
    pub fn normalized(map: &'a DeviceMap<E>, affine: &'a DeviceAffine) -> Self {
        assert_eq!(
            affine.shape(),
            [map.shape()[0], map.shape()[1]],
            "normalised map: pictures and channels"
        );
        Self {
            affine: Some(affine),
            ..Self::from(map)
        }
    }

    /// `silu(scale · x + shift)`.
    pub fn normalized_silu(map: &'a DeviceMap<E>, affine: &'a DeviceAffine) -> Self {
        Self {
            silu: true,
            ..Self::normalized(map, affine)
        }
    }

    /// Every pixel four times: the nearest-neighbour enlargement to twice the height and width.
    pub fn upsampled(map: &'a DeviceMap<E>) -> Self {
        Self {
            enlarged: true,
            ..Self::from(map)
        }
    }

    /// Shape as the convolution sees it.
    pub fn shape(&self) -> [usize; 4] {
        let scale = 1 + usize::from(self.enlarged);
        let [batch, channels, height, width] = self.map.shape();
        [batch, channels, height * scale, width * scale]
    }

    /// What is read, as a map of its own.
    ///
    /// # Errors
    /// What the driver says.
    pub fn to_map(&self) -> Result<DeviceMap<E>, CudaError> {
        let [_, channels, height, width] = self.shape();
        let out = DeviceMap::undefined(self.map.context, self.shape())?;
        let itself = ConvolutionShape::same(channels, channels, 1);
        self.gather(&itself, (height, width), 0..out.pixels(), out.pixel(0))?;
        Ok(out)
    }

    /// Writes the windows of some pixels of the result, a row each: (kernel rows, kernel columns, channels).
    fn gather(
        &self,
        shape: &ConvolutionShape,
        (out_height, out_width): (usize, usize),
        rows: std::ops::Range<usize>,
        out: u64,
    ) -> Result<(), CudaError> {
        let [_, channels, height, width] = self.map.shape();
        let taps = shape.kernel.0 * shape.kernel.1;
        let Padding { top, left, .. } = shape.padding;
        // Every value that is read, read once: by as many of the rows as its pixel stands for in the result.
        let read = self.map.pixels() * channels * rows.len() / (self.shape()[0] * out_height * out_width).max(1);
        Kernel::of::<E>("gather_windows")
            .pointer(self.map.pixel(0))
            .pointer(self.affine.map_or(0, DeviceAffine::address))
            .pointer(out)
            .int(rows.start)
            .int(height)
            .int(width)
            .int(channels)
            .int(usize::from(self.enlarged))
            .int(out_height)
            .int(out_width)
            .int(shape.kernel.1)
            .int(taps)
            .int(shape.stride.0)
            .int(top)
            .int(left)
            .int(usize::from(self.silu))
            .moves(read + rows.len() * taps * channels)
            .launch(self.map.context, [rows.len(), 1, 1], (THREADS, 1), 0)?;
        Ok(())
    }
}

/// A convolution whose weights are in a GPU's memory.
pub struct DeviceConvolution<E: Precision> {
    shape: ConvolutionShape,
    /// `(out, kernel height, kernel width, in)`.
    weight: CudaSlice<E>,
    bias: CudaSlice<E>,
}

impl<E: Precision> DeviceConvolution<E> {
    /// `weight` is `(out, in, kernel height, kernel width)`, `bias` `(out,)`; the stride is one number.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn new(device: LoadedDevice, shape: ConvolutionShape, weight: &[f32], bias: &[f32]) -> Result<Self, CudaError> {
        assert_eq!(weight.len(), shape.weights(), "convolution: weights");
        assert_eq!(bias.len(), shape.out_channels, "convolution: biases");
        assert_eq!(shape.stride.0, shape.stride.1, "convolution: strides");
        let context = device.0;
        let taps = shape.kernel.0 * shape.kernel.1;
        let mut turned = Vec::with_capacity(weight.len());
        for of_output in weight.chunks_exact((shape.in_channels * taps).max(1)) {
            for tap in 0..taps {
                turned.extend(
                    of_output
                        .iter()
                        .skip(tap)
                        .step_by(taps)
                        .map(|&value| rounded::<E>(value)),
                );
            }
        }
        let bias: Vec<E> = bias.iter().map(|&value| rounded(value)).collect();
        Ok(Self {
            shape,
            weight: place(context, &turned)?,
            bias: place(context, &bias)?,
        })
    }

    /// The sizes it was made with.
    pub fn shape(&self) -> &ConvolutionShape {
        &self.shape
    }

    /// Convolves every picture of the batch; the result is added to `add_to` where there is one.
    ///
    /// # Errors
    /// What the driver says.
    pub fn forward<'a>(
        &self,
        input: impl Into<DeviceInput<'a, E>>,
        add_to: Option<DeviceMap<E>>,
    ) -> Result<DeviceMap<E>, CudaError> {
        let input = input.into();
        let context = input.map.context;
        let [batch, channels, height, width] = input.shape();
        assert_eq!(channels, self.shape.in_channels, "convolution: channels of the input");
        let size = match self.shape.output_size(height, width) {
            Ok(size) => size,
            Err(error) => panic!("convolution: {error}"),
        };
        let out_channels = self.shape.out_channels;
        let out_shape = [batch, out_channels, size.0, size.1];
        let accumulate = add_to.is_some();
        let out = match add_to {
            Some(map) => map,
            None => DeviceMap::undefined(context, out_shape)?,
        };
        assert_eq!(out.shape(), out_shape, "convolution: the map it adds to");
        let (rows, inner) = (out.pixels(), channels * self.shape.kernel.0 * self.shape.kernel.1);
        let multiply = |first: usize, count, windows| {
            Product {
                rows: count,
                columns: out_channels,
                inner,
                left: (windows, false),
                right: (start(&self.weight), true),
                accumulate,
                out: out.pixel(first),
            }
            .run::<E>(context)
        };
        let unchanged = input.affine.is_none() && !input.enlarged;
        if unchanged && self.shape.is_pointwise() {
            multiply(0, rows, input.map.pixel(0))?;
        } else {
            let band = band_rows(rows, inner, size_of::<E>());
            let windows = undefined::<E>(context, band * inner)?;
            for first in (0..rows).step_by(band) {
                let last = rows.min(first + band);
                input.gather(&self.shape, size, first..last, start(&windows))?;
                multiply(first, last - first, start(&windows))?;
            }
        }
        Kernel::of::<E>("add_bias")
            .pointer(out.pixel(0))
            .pointer(start(&self.bias))
            .length(rows * out_channels)
            .int(out_channels)
            .moves(2 * rows * out_channels)
            .over_elements(context, rows * out_channels)?;
        Ok(out)
    }
}
