//! Multi-head attention that keeps one number a row and head for the backward pass.

use cudarc::driver::CudaSlice;
use dfdx::prelude::{HasShape, Tape};
use dfdx::tensor::{Cuda, CudaError};

use super::context::{context, Context};
use super::launch::{scratch, start, Kernel};
use super::precision::Precision;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::Matrix;

/// The geometry of kernels/attention.cu.
const WARPS: usize = 4;
const ROWS_PER_WARP: usize = 4;
const OWN_ROWS: usize = WARPS * ROWS_PER_WARP;
const TILE: usize = 32;
pub(super) const MAX_HEAD_WIDTH: usize = 128;

/// Attention of every sample with itself: qkv (B·T,3D) → (B·T,D).
pub(super) fn self_attention<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    qkv: &Matrix<E, Cuda>,
    batch: usize,
    heads: usize,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let (rows, packed) = *qkv.shape();
    let width = packed / 3;
    assert_eq!(
        width * 3,
        packed,
        "self-attention: {packed} columns hold no three parts"
    );
    let layout = Layout::new(batch, heads, rows, rows, width, packed, packed);
    let part = (width * size_of::<E>()) as u64;
    let parts = move |first: u64| [first, first + part, first + 2 * part];
    let pass = Pass::<E>::forward(device, &layout, parts(pointer(qkv)))?;
    let out = pass.out.clone();
    if T::OWNS_TAPE {
        let (device, qkv, ghost) = (device.clone(), qkv.clone(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
            let targets = parts(address::<E>(gradients.get_or_alloc_mut(&qkv)?));
            pass.backward(&device, &layout, parts(pointer(&qkv)), address::<E>(&upstream), targets)
        });
    }
    Ok(out)
}

/// q (B·T,D) asks kv (B·S,2D) → (B·T,D).
pub(super) fn cross_attention<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    q: &Matrix<E, Cuda>,
    kv: &Matrix<E, Cuda>,
    batch: usize,
    heads: usize,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let (rows, width) = *q.shape();
    let (key_rows, packed) = *kv.shape();
    assert_eq!(
        width * 2,
        packed,
        "cross-attention: {packed} columns of keys and values for {width} of queries"
    );
    let layout = Layout::new(batch, heads, rows, key_rows, width, width, packed);
    let part = (width * size_of::<E>()) as u64;
    let parts = move |query: u64, key: u64| [query, key, key + part];
    let pass = Pass::<E>::forward(device, &layout, parts(pointer(q), pointer(kv)))?;
    let out = pass.out.clone();
    if T::OWNS_TAPE {
        let (device, q, kv, ghost) = (device.clone(), q.clone(), kv.clone(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
            let query_gradient = address::<E>(gradients.get_or_alloc_mut(&q)?);
            let targets = parts(query_gradient, address::<E>(gradients.get_or_alloc_mut(&kv)?));
            let sources = parts(pointer(&q), pointer(&kv));
            pass.backward(&device, &layout, sources, address::<E>(&upstream), targets)
        });
    }
    Ok(out)
}

/// The sizes of one attention: tokens of a sample, columns of a head, strides from row to row.
#[derive(Clone, Copy)]
struct Layout {
    batch: usize,
    heads: usize,
    query_tokens: usize,
    key_tokens: usize,
    width: usize,
    head_width: usize,
    query_stride: usize,
    key_stride: usize,
}

impl Layout {
    #[allow(clippy::too_many_arguments)]
    fn new(
        batch: usize,
        heads: usize,
        query_rows: usize,
        key_rows: usize,
        width: usize,
        query_stride: usize,
        key_stride: usize,
    ) -> Self {
        assert_eq!(width % heads, 0, "attention: {width} columns for {heads} heads");
        assert_eq!(
            query_rows % batch,
            0,
            "attention: {query_rows} rows for {batch} samples"
        );
        assert_eq!(key_rows % batch, 0, "attention: {key_rows} rows for {batch} samples");
        let head_width = width / heads;
        assert!(
            head_width <= MAX_HEAD_WIDTH,
            "attention: a head of {head_width} columns, the kernels take {MAX_HEAD_WIDTH}"
        );
        Self {
            batch,
            heads,
            query_tokens: query_rows / batch,
            key_tokens: key_rows / batch,
            width,
            head_width,
            query_stride,
            key_stride,
        }
    }

    /// Values of the queries, and of the outputs.
    fn query_values(&self) -> usize {
        self.batch * self.query_tokens * self.width
    }

    /// Values of the keys.
    fn key_values(&self) -> usize {
        self.batch * self.key_tokens * self.width
    }

    /// FLOPs of so many products of the size queries × keys × columns of a head.
    fn products(&self, count: usize) -> usize {
        2 * count * self.query_values() * self.key_tokens
    }

    /// Softmax scale `(D/heads)^-½`.
    fn scale(&self) -> f64 {
        (self.head_width as f64).powf(-0.5)
    }

    /// Bytes of shared memory for rows of a head and for weights of a warp's rows over a tile.
    fn shared_bytes(&self, rows: usize, weights: usize) -> usize {
        (rows * (self.head_width + 1) + weights * WARPS * ROWS_PER_WARP * TILE) * size_of::<f32>()
    }

    fn run(
        &self,
        kernel: Kernel,
        context: &Context,
        tokens: usize,
        own: usize,
        shared: usize,
    ) -> Result<(), CudaError> {
        let grid = [tokens.div_ceil(own), self.heads, self.batch];
        kernel.launch(context, grid, ((WARPS * TILE) as u32, 1), shared)?;
        Ok(())
    }
}

/// What the forward pass leaves for the backward pass.
struct Pass<E: Precision> {
    out: Matrix<E, Cuda>,
    log_sum_exp: CudaSlice<f32>,
}

impl<E: Precision> Pass<E> {
    fn forward(device: &Cuda, layout: &Layout, [query, key, value]: [u64; 3]) -> Result<Self, CudaError> {
        let context = context(device)?;
        let rows = layout.batch * layout.query_tokens;
        let out = matrix::<E>(device, rows, layout.width)?;
        let log_sum_exp = scratch(context, rows * layout.heads)?;
        let kernel = Kernel::of::<E>("attention_forward")
            .pointer(query)
            .pointer(key)
            .pointer(value)
            .pointer(pointer(&out))
            .pointer(start(&log_sum_exp))
            .int(layout.query_stride)
            .int(layout.key_stride)
            .int(layout.width)
            .int(layout.query_tokens)
            .int(layout.key_tokens)
            .int(layout.head_width)
            .float(layout.scale())
            .moves(2 * layout.query_values() + 2 * layout.key_values())
            .computes(layout.products(2));
        let shared = layout.shared_bytes(OWN_ROWS + 2 * TILE, 1);
        layout.run(kernel, context, layout.query_tokens, OWN_ROWS, shared)?;
        Ok(Self { out, log_sum_exp })
    }

    /// Adds the gradients of queries, keys and values to `targets`.
    fn backward(
        &self,
        device: &Cuda,
        layout: &Layout,
        sources: [u64; 3],
        upstream: u64,
        [query_gradient, key_gradient, value_gradient]: [u64; 3],
    ) -> Result<(), CudaError> {
        let context = context(device)?;
        let delta = scratch(context, layout.batch * layout.query_tokens * layout.heads)?;
        let kernel = Kernel::of::<E>("attention_backward_delta")
            .pointer(pointer(&self.out))
            .pointer(upstream)
            .pointer(start(&delta))
            .int(layout.width)
            .int(layout.query_tokens)
            .int(layout.head_width)
            .moves(2 * layout.query_values());
        layout.run(kernel, context, layout.query_tokens, WARPS, 0)?;

        let given = |name: &str| {
            sources
                .iter()
                .fold(Kernel::of::<E>(name), |kernel, &source| kernel.pointer(source))
                .pointer(upstream)
                .pointer(start(&self.log_sum_exp))
                .pointer(start(&delta))
        };
        let with_layout = |kernel: Kernel| {
            kernel
                .int(layout.query_stride)
                .int(layout.key_stride)
                .int(layout.width)
                .int(layout.query_tokens)
                .int(layout.key_tokens)
                .int(layout.head_width)
                .float(layout.scale())
        };
        let rows = 2 * OWN_ROWS + 2 * TILE;
        // Scores, gradient of the probabilities, gradient of the queries.
        let queries = with_layout(given("attention_backward_queries").pointer(query_gradient))
            .moves(4 * layout.query_values() + 2 * layout.key_values())
            .computes(layout.products(3));
        layout.run(
            queries,
            context,
            layout.query_tokens,
            OWN_ROWS,
            layout.shared_bytes(rows, 1),
        )?;
        let keys_values = given("attention_backward_keys_values")
            .pointer(key_gradient)
            .pointer(value_gradient);
        let shared = layout.shared_bytes(rows, 2);
        // Scores, gradient of the probabilities, gradients of values and keys.
        let keys_values = with_layout(keys_values)
            .moves(2 * layout.query_values() + 6 * layout.key_values())
            .computes(layout.products(4));
        layout.run(keys_values, context, layout.key_tokens, OWN_ROWS, shared)
    }
}
