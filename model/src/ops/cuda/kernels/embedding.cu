// What enters the network: Fourier features of times, rows of the label table, the position table; and columns side by
// side.
#include "common.cuh"

// [cos(t·f), sin(t·f)], f_j = 10000^(-j/half), in f64 like the CPU's: there are only batch·half of them.
template <typename T>
__device__ inline void fourier_features(const double *times, T *out, int batch, int half) {
    for (size_t i = first_element(); i < (size_t)batch * half; i += element_stride()) {
        const int sample = (int)(i / half), j = (int)(i % half);
        const double angle = times[sample] * exp(-9.210340371976184 * j / half);  // ln 10000
        out[(size_t)sample * 2 * half + j] = from_float<T>((float)cos(angle));
        out[(size_t)sample * 2 * half + half + j] = from_float<T>((float)sin(angle));
    }
}

template <typename T>
__device__ inline void gather_rows(const T *table, const int *rows, T *out, int count, int width) {
    for (size_t i = first_element(); i < (size_t)count * width; i += element_stride())
        out[i] = table[(size_t)rows[i / width] * width + i % width];
}

// One thread a column adds the gradients of all samples one after the other: labels repeat, and the order is fixed.
template <typename T>
__device__ inline void scatter_rows(const int *rows, const T *out_gradient, T *table_gradient, int count, int width) {
    const int column = (int)first_element();
    if (column >= width) return;
    for (int i = 0; i < count; ++i)
        accumulate(table_gradient + (size_t)rows[i] * width + column, to_float(out_gradient[(size_t)i * width + column]));
}

// out = x + table, the table repeated every `period` elements.
template <typename T>
__device__ inline void add_repeated(const T *x, const T *table, T *out, size_t length, size_t period) {
    for (size_t i = first_element(); i < length; i += element_stride())
        out[i] = from_float<T>(to_float(x[i]) + to_float(table[i % period]));
}

// Copies `width` columns of every row from one matrix into another of a different stride.
template <typename T>
__device__ inline void copy_columns(const T *from, T *to, int rows, int width, int from_stride, int to_stride) {
    for (size_t i = first_element(); i < (size_t)rows * width; i += element_stride())
        to[i / width * to_stride + i % width] = from[i / width * from_stride + i % width];
}

template <typename T>
__device__ inline void add_columns(const T *from, T *to, int rows, int width, int from_stride, int to_stride) {
    for (size_t i = first_element(); i < (size_t)rows * width; i += element_stride())
        accumulate(to + i / width * to_stride + i % width, to_float(from[i / width * from_stride + i % width]));
}

#define EMBEDDING_KERNELS(NAME, T)                                                                                     \
    extern "C" __global__ void fourier_features_##NAME(const double *times, T *out, int batch, int half) {             \
        fourier_features<T>(times, out, batch, half);                                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(fourier_features_##NAME)                                                                             \
    extern "C" __global__ void gather_rows_##NAME(const T *table, const int *rows, T *out, int count, int width) {     \
        gather_rows<T>(table, rows, out, count, width);                                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(gather_rows_##NAME)                                                                                  \
    extern "C" __global__ void scatter_rows_##NAME(const int *rows, const T *out_gradient, T *table_gradient,          \
                                                   int count, int width) {                                             \
        scatter_rows<T>(rows, out_gradient, table_gradient, count, width);                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(scatter_rows_##NAME)                                                                                 \
    extern "C" __global__ void add_repeated_##NAME(const T *x, const T *table, T *out, size_t length, size_t period) { \
        add_repeated<T>(x, table, out, length, period);                                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(add_repeated_##NAME)                                                                                 \
    extern "C" __global__ void copy_columns_##NAME(const T *from, T *to, int rows, int width, int from_stride,         \
                                                   int to_stride) {                                                    \
        copy_columns<T>(from, to, rows, width, from_stride, to_stride);                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(copy_columns_##NAME)                                                                                 \
    extern "C" __global__ void add_columns_##NAME(const T *from, T *to, int rows, int width, int from_stride,          \
                                                  int to_stride) {                                                     \
        add_columns<T>(from, to, rows, width, from_stride, to_stride);                                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(add_columns_##NAME)

EMBEDDING_KERNELS(f32, float)
EMBEDDING_KERNELS(f16, __half)
