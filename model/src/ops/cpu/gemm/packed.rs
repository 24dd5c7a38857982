//! Whole factors packed ahead: once for a call, or once for many.

use rayon::prelude::*;

use super::driver::Threads;
use super::epilogue::Operand;
use super::kernel::Kernel;
use super::pack::{pack_panel, pack_whole_panels, panels_together};
use super::scratch::Scratch;

/// Values of a packed factor, panel after panel, each over the whole length of the sum.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    values: &'a [f32],
    width: usize,
    k: usize,
}

impl<'a> Panels<'a> {
    pub(super) fn new(values: &'a [f32], width: usize, k: usize) -> Self {
        Self { values, width, k }
    }

    /// Panel `panel` from the `k`-th group on; `own_width` is that panel's width.
    pub(super) fn panel(&self, panel: usize, k: usize, own_width: usize) -> &'a [f32] {
        let start = panel * self.width * self.k + k * own_width;
        &self.values[start..]
    }
}

/// Width of the panel that begins at `start` of `total` rows: `width`, or what is left rounded up to whole vectors.
pub(super) fn panel_width(start: usize, total: usize, width: usize, lanes: usize) -> usize {
    width.min((total - start).next_multiple_of(lanes))
}

/// Room for `rows` rows packed in panels of `width` over `k`.
pub(super) fn packed_len(rows: usize, width: usize, k: usize) -> usize {
    rows.div_ceil(width) * width * k
}

/// Packs rows `rows` of `operand` for `k`, into panels of `width` whose last one is as narrow as whole vectors of `lanes`
/// allow.
pub(super) fn pack(
    target: &mut [f32],
    operand: &Operand<'_>,
    rows: std::ops::Range<usize>,
    k: std::ops::Range<usize>,
    (width, lanes): (usize, usize),
    kernel: &Kernel,
    parallel: bool,
) {
    let length = k.len();
    let target = &mut target[..packed_len(rows.len(), width, length)];
    let pack_one = |(panel, target): (usize, &mut [f32])| {
        let row = rows.start + panel * width;
        let own_width = panel_width(row, rows.end, width, lanes);
        let count = own_width.min(rows.end - row);
        let target = &mut target[..own_width * length];
        pack_panel(target, own_width, &operand.matrix, row, count, k.start, kernel.avx);
        operand.activation.apply(target);
    };
    let together = panels_together(&operand.matrix, width);
    let panel = (width * length).max(1);
    let pack_group = |(group, target): (usize, &mut [f32])| {
        let first = group * together;
        let row = rows.start + first * width;
        let is_whole = row + together * width <= rows.end;
        if is_whole && pack_whole_panels(target, width, &operand.matrix, row, k.start, length) {
            operand.activation.apply(target);
        } else {
            let panels = target.chunks_mut(panel).enumerate();
            panels.for_each(|(index, target)| pack_one((first + index, target)));
        }
    };
    if parallel {
        target.par_chunks_mut(together * panel).enumerate().for_each(pack_group);
    } else {
        target.chunks_mut(together * panel).enumerate().for_each(pack_group);
    }
}

/// The right factor `(k, columns)` of many products, packed once: a weight that is used again and again.
pub struct PackedMatrix {
    pub(super) kernel: &'static Kernel,
    values: Scratch,
    pub(super) k: usize,
    pub(super) columns: usize,
}

impl PackedMatrix {
    /// Packs `right` `(k, columns)` for this CPU.
    pub fn new<'a>(right: impl Into<Operand<'a>>) -> Self {
        Self::for_kernel(right.into(), Kernel::best(), Threads::All, Scratch::owned)
    }

    /// Packs on the calling thread into a buffer that is reused afterwards: a factor of several products of one task.
    pub(crate) fn briefly<'a>(right: impl Into<Operand<'a>>) -> Self {
        Self::for_kernel(right.into(), Kernel::best(), Threads::Calling, Scratch::take)
    }

    pub(super) fn for_kernel(
        right: Operand<'_>,
        kernel: &'static Kernel,
        threads: Threads,
        buffer: fn(usize) -> Scratch,
    ) -> Self {
        let (k, columns) = (right.matrix.rows(), right.matrix.columns());
        let mut values = buffer(packed_len(columns, kernel.nr, k));
        let widths = (kernel.nr, kernel.lanes);
        let parallel = threads == Threads::All;
        pack(
            values.values_mut(),
            &right.transposed(),
            0..columns,
            0..k,
            widths,
            kernel,
            parallel,
        );
        Self {
            kernel,
            values,
            k,
            columns,
        }
    }

    pub(super) fn panels(&self) -> Panels<'_> {
        Panels::new(self.values.values(), self.kernel.nr, self.k)
    }

    /// Length of the products' sums: the rows of the packed matrix.
    pub fn rows(&self) -> usize {
        self.k
    }

    /// Columns of the packed matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix({}x{}, {})", self.k, self.columns, self.kernel.name)
    }
}
