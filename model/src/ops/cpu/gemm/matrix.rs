//! Borrowed views of matrices: a slice, its size and its strides.

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

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values from `(row, column)` on, and both strides.
    pub(super) fn from(&self, row: usize, column: usize) -> (&'a [f32], usize, usize) {
        let start = row * self.row_stride + column * self.column_stride;
        (&self.data[start..], self.row_stride, self.column_stride)
    }
}

/// A row-major matrix that is written to.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

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
        Self {
            data,
            rows,
            columns,
            row_stride,
        }
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
        self.data.as_mut_ptr()
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let start = row * self.row_stride;
        &mut self.data[start..start + self.columns]
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
