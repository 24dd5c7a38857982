//! Borrowed views of matrices: a slice, its size and its strides.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A read-only matrix. Transposing it exchanges the strides and copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixRef<'a> {
    /// A row-major matrix `(rows, columns)` whose rows follow each other without a gap.
    ///
    /// # Panics
    /// When `data` is shorter than `rows · columns`.
    pub fn row_major(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::with_row_stride(data, rows, columns, columns)
    }

    /// A row-major matrix `(rows, columns)` whose rows begin `row_stride` values apart: a range of columns of a wider one.
    ///
    /// # Panics
    /// When the last value of the matrix lies outside `data`, or rows overlap.
    pub fn with_row_stride(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        check_extent(data.len(), rows, columns, row_stride);
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transposed matrix, `(columns, rows)`.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// The rows from `first` on, `count` of them.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn rows_from(self, first: usize, count: usize) -> Self {
        assert!(
            first + count <= self.rows,
            "rows {first}..{} of {}",
            first + count,
            self.rows
        );
        let data = &self.data[(first * self.row_stride).min(self.data.len())..];
        Self {
            data,
            rows: count,
            ..self
        }
    }

    /// The values of row `row` of a matrix that is not transposed.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        debug_assert!(row < self.rows && self.column_stride == 1);
        &self.data[row * self.row_stride..][..self.columns]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The distances of neighbouring rows and of neighbouring columns.
    pub(super) fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// The values from `(row, column)` on.
    pub(super) fn from(&self, row: usize, column: usize) -> &'a [f32] {
        &self.data[row * self.row_stride + column * self.column_stride..]
    }
}

/// A row-major matrix that is written to.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    /// Every row's `columns` values are borrowed mutably for `'a`; what lies between the rows is not.
    data: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a mutable borrow of `f32`s, which may move to another thread like `&mut [f32]`.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// A row-major matrix `(rows, columns)` whose rows follow each other without a gap.
    ///
    /// # Panics
    /// When `data` is shorter than `rows · columns`.
    pub fn row_major(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::with_row_stride(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows begin `row_stride` values apart; the values between the rows are left alone.
    ///
    /// # Panics
    /// When the last value of the matrix lies outside `data`, or rows overlap.
    pub fn with_row_stride(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        check_extent(data.len(), rows, columns, row_stride);
        let data = data.as_mut_ptr();
        Self {
            data,
            rows,
            columns,
            row_stride,
            borrowed: PhantomData,
        }
    }

    /// [`row_major`](Self::row_major) in memory that need not have been written.
    ///
    /// # Safety
    /// Nothing reads a value before it is written: no product is added to what is there.
    ///
    /// # Panics
    /// When `data` is shorter than `rows · columns`.
    pub(crate) unsafe fn unwritten(data: &'a mut [MaybeUninit<f32>], rows: usize, columns: usize) -> Self {
        check_extent(data.len(), rows, columns, columns);
        Self {
            data: data.as_mut_ptr().cast(),
            rows,
            columns,
            row_stride: columns,
            borrowed: PhantomData,
        }
    }

    /// Cuts the columns into matrices of `width` columns each, side by side.
    ///
    /// # Panics
    /// When the number of columns is not a multiple of `width`.
    pub fn split_columns(self, width: usize) -> Vec<MatrixMut<'a>> {
        assert!(
            width > 0 && self.columns.is_multiple_of(width),
            "{} columns do not split into parts of {width}",
            self.columns
        );
        let starts = (0..self.columns).step_by(width);
        // SAFETY: `start` lies within the first row (or the matrix has no rows and nothing is ever accessed); the parts
        // share no value, and `self` is gone.
        let part = |start| MatrixMut {
            data: unsafe { self.data.add(start) },
            columns: width,
            ..self
        };
        if self.rows == 0 {
            return starts.map(|_| MatrixMut { columns: width, ..self }).collect();
        }
        starts.map(part).collect()
    }

    /// The rows from `first` on, `count` of them, borrowed from this matrix.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn rows_mut(&mut self, first: usize, count: usize) -> MatrixMut<'_> {
        assert!(
            first + count <= self.rows,
            "rows {first}..{} of {}",
            first + count,
            self.rows
        );
        if count == 0 {
            return MatrixMut { rows: 0, ..*self };
        }
        // SAFETY: row `first` exists.
        let data = unsafe { self.data.add(first * self.row_stride) };
        MatrixMut {
            data,
            rows: count,
            ..*self
        }
    }

    /// Row `row`, whether it has been written or not.
    ///
    /// # Panics
    /// When there is no such row.
    pub(super) fn unwritten_row(&mut self, row: usize) -> &mut [MaybeUninit<f32>] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row exists, and its values are borrowed mutably by this matrix alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride).cast(), self.columns) }
    }

    /// The values of row `row`, which have been written.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row exists, and its values are borrowed mutably by this matrix alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.columns) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data
    }
}

fn check_extent(len: usize, rows: usize, columns: usize, row_stride: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(
        rows == 1 || row_stride >= columns,
        "rows of {columns} values cannot begin {row_stride} apart"
    );
    let needed = (rows - 1)
        .checked_mul(row_stride)
        .and_then(|start| start.checked_add(columns));
    assert!(
        needed.is_some_and(|needed| needed <= len),
        "a matrix of {rows}x{columns} (row stride {row_stride}) does not fit into {len} values"
    );
}
