// Multi-head attention that stores no tokens×tokens matrix: the forward pass keeps one log-sum-exp a row and head, the
// backward pass recomputes the probabilities tile by tile.
//
// Queries, keys, values and outputs are matrices with one row a token; a head is `head_width` neighbouring columns, and
// the pointers already point at the first column of the queries, keys or values inside a packed projection.
// Everything is float inside. Gradients are added to; there are no atomics, so every run gives the same numbers.
//
// A block has 4 warps. It owns 16 rows (of queries, or of keys in the backward pass for keys and values), 4 a warp, and
// walks over the other side in tiles of 32 rows, one row a lane: products within a row are sums over columns held in
// shared memory, products across rows are sums over the tile with the columns spread over the lanes.
#include "common.cuh"

constexpr int WARPS = 4;
constexpr int ROWS_PER_WARP = 4;
constexpr int OWN_ROWS = WARPS * ROWS_PER_WARP;
constexpr int TILE = WARP;
constexpr int MAX_HEAD_WIDTH = 128;
constexpr int COLUMNS_PER_LANE = MAX_HEAD_WIDTH / WARP;

// One side of the attention: `tokens` rows a sample, `stride` values from row to row.
template <typename T> struct Side {
    T *data;
    int stride, tokens;
    __device__ T *row(int sample, int token, int head, int head_width) const {
        return data + (size_t)(sample * tokens + token) * stride + head * head_width;
    }
};

// A tile in shared memory. Rows are one value longer than a head so that 32 lanes reading one column of 32 rows hit 32
// different banks.
struct Tile {
    float *data;
    int pitch;
    __device__ float *row(int row) const { return data + row * pitch; }
};

__device__ inline Tile next_tile(float *&memory, int rows, int head_width) {
    const Tile tile = {memory, head_width + 1};
    memory += rows * tile.pitch;
    return tile;
}

// Copies rows first … first+count-1 of one head, zeros beyond the last token. All threads of the block take part.
template <typename T>
__device__ inline void load(Tile tile, Side<const T> side, int sample, int first, int count, int head, int width) {
    for (int i = threadIdx.x; i < count * width; i += blockDim.x) {
        const int row = i / width, column = i % width, token = first + row;
        tile.row(row)[column] =
            token < side.tokens ? to_float(side.row(sample, token, head, width)[column]) : 0.0f;
    }
}

__device__ inline float dot(const float *a, const float *b, int width) {
    float sum = 0.0f;
    for (int i = 0; i < width; ++i) sum += a[i] * b[i];
    return sum;
}

// Accumulators of a warp's own rows, columns spread over the lanes.
struct Accumulators {
    float of[ROWS_PER_WARP][COLUMNS_PER_LANE];
    __device__ void clear() {
        for (int r = 0; r < ROWS_PER_WARP; ++r)
            for (int c = 0; c < COLUMNS_PER_LANE; ++c) of[r][c] = 0.0f;
    }
    // of[r] += Σ_j weights[r][j]·tile[j].
    __device__ void add_rows(const float *weights, Tile tile, int width) {
        const int lane = threadIdx.x % WARP;
        for (int j = 0; j < TILE; ++j)
#pragma unroll
            for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
                const int column = lane + c * WARP;
                if (column >= width) continue;
                const float value = tile.row(j)[column];
#pragma unroll
                for (int r = 0; r < ROWS_PER_WARP; ++r) of[r][c] += weights[r * TILE + j] * value;
            }
    }
    template <typename T> __device__ void add_to(T *gradient, int r, int width) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int c = 0; c < COLUMNS_PER_LANE; ++c)
            if (lane + c * WARP < width) accumulate(gradient + lane + c * WARP, of[r][c]);
    }
};

// Grid (query rows/16, heads, batch). `log_sum_exp` is (batch, heads, query tokens).
template <typename T>
__device__ inline void forward(Side<const T> query, Side<const T> key, Side<const T> value, Side<T> out,
                               float *log_sum_exp, int width, float scale) {
    DYNAMIC_SHARED(memory);
    float *free_memory = memory;
    const Tile queries = next_tile(free_memory, OWN_ROWS, width);
    const Tile keys = next_tile(free_memory, TILE, width), values = next_tile(free_memory, TILE, width);
    const int head = blockIdx.y, sample = blockIdx.z, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *const weights = free_memory + warp * ROWS_PER_WARP * TILE;
    const int first = blockIdx.x * OWN_ROWS, own = warp * ROWS_PER_WARP;

    load(queries, query, sample, first, OWN_ROWS, head, width);
    Accumulators sums;
    sums.clear();
    float highest[ROWS_PER_WARP], total[ROWS_PER_WARP];
    for (int r = 0; r < ROWS_PER_WARP; ++r) {
        highest[r] = -INFINITY;
        total[r] = 0.0f;
    }
    for (int start = 0; start < key.tokens; start += TILE) {
        __syncthreads();  // every warp has used the previous tile, and every lane its warp's weights
        load(keys, key, sample, start, TILE, head, width);
        load(values, value, sample, start, TILE, head, width);
        __syncthreads();
        for (int r = 0; r < ROWS_PER_WARP; ++r) {
            const float score = start + lane < key.tokens
                                    ? scale * dot(queries.row(own + r), keys.row(lane), width)
                                    : -INFINITY;
            const float new_highest = fmaxf(highest[r], warp_max(score));
            const float weight = expf(score - new_highest), shrink = expf(highest[r] - new_highest);
            total[r] = total[r] * shrink + warp_sum(weight);
            highest[r] = new_highest;
            for (int c = 0; c < COLUMNS_PER_LANE; ++c) sums.of[r][c] *= shrink;
            weights[r * TILE + lane] = weight;
        }
        __syncwarp();
        sums.add_rows(weights, values, width);
    }
    for (int r = 0; r < ROWS_PER_WARP; ++r) {
        const int token = first + own + r;
        if (token >= query.tokens) break;
        T *const row = out.row(sample, token, head, width);
        for (int c = 0; c < COLUMNS_PER_LANE; ++c)
            if (lane + c * WARP < width) row[lane + c * WARP] = from_float<T>(sums.of[r][c] / total[r]);
        if (lane == 0)
            log_sum_exp[((size_t)sample * gridDim.y + head) * query.tokens + token] = highest[r] + logf(total[r]);
    }
}

// One warp a (row, head): delta = Σ out·out_gradient, laid out like the log-sum-exp. Grid (rows/4, heads, batch).
template <typename T>
__device__ inline void backward_delta(Side<const T> out, Side<const T> out_gradient, float *delta, int width) {
    const int token = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int head = blockIdx.y, sample = blockIdx.z;
    if (token >= out.tokens) return;
    float sum = 0.0f;
    for (int i = lane; i < width; i += WARP)
        sum += to_float(out.row(sample, token, head, width)[i]) *
               to_float(out_gradient.row(sample, token, head, width)[i]);
    sum = warp_sum(sum);
    if (lane == 0) delta[((size_t)sample * gridDim.y + head) * out.tokens + token] = sum;
}

// Grid (query rows/16, heads, batch): dq += scale·Σ_keys p·(dp - delta)·k.
template <typename T>
__device__ inline void backward_queries(Side<const T> query, Side<const T> key, Side<const T> value,
                                        Side<const T> out_gradient, const float *log_sum_exp, const float *delta,
                                        Side<T> query_gradient, int width, float scale) {
    DYNAMIC_SHARED(memory);
    float *free_memory = memory;
    const Tile queries = next_tile(free_memory, OWN_ROWS, width), upstream = next_tile(free_memory, OWN_ROWS, width);
    const Tile keys = next_tile(free_memory, TILE, width), values = next_tile(free_memory, TILE, width);
    const int head = blockIdx.y, sample = blockIdx.z, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *const weights = free_memory + warp * ROWS_PER_WARP * TILE;
    const int first = blockIdx.x * OWN_ROWS, own = warp * ROWS_PER_WARP;
    const size_t statistics = ((size_t)sample * gridDim.y + head) * query.tokens;

    load(queries, query, sample, first, OWN_ROWS, head, width);
    load(upstream, out_gradient, sample, first, OWN_ROWS, head, width);
    Accumulators sums;
    sums.clear();
    for (int start = 0; start < key.tokens; start += TILE) {
        __syncthreads();  // every warp has used the previous tile, and every lane its warp's weights
        load(keys, key, sample, start, TILE, head, width);
        load(values, value, sample, start, TILE, head, width);
        __syncthreads();
        for (int r = 0; r < ROWS_PER_WARP; ++r) {
            const int token = first + own + r;
            float weight = 0.0f;
            if (token < query.tokens && start + lane < key.tokens) {
                const float score = scale * dot(queries.row(own + r), keys.row(lane), width);
                const float probability = expf(score - log_sum_exp[statistics + token]);
                const float change = dot(upstream.row(own + r), values.row(lane), width) - delta[statistics + token];
                weight = scale * probability * change;
            }
            weights[r * TILE + lane] = weight;
        }
        __syncwarp();
        sums.add_rows(weights, keys, width);
    }
    for (int r = 0; r < ROWS_PER_WARP && first + own + r < query.tokens; ++r)
        sums.add_to(query_gradient.row(sample, first + own + r, head, width), r, width);
}

// Grid (key rows/16, heads, batch): dv += Σ_queries p·dout, dk += scale·Σ_queries p·(dp - delta)·q.
template <typename T>
__device__ inline void backward_keys_values(Side<const T> query, Side<const T> key, Side<const T> value,
                                            Side<const T> out_gradient, const float *log_sum_exp, const float *delta,
                                            Side<T> key_gradient, Side<T> value_gradient, int width, float scale) {
    DYNAMIC_SHARED(memory);
    float *free_memory = memory;
    const Tile keys = next_tile(free_memory, OWN_ROWS, width), values = next_tile(free_memory, OWN_ROWS, width);
    const Tile queries = next_tile(free_memory, TILE, width), upstream = next_tile(free_memory, TILE, width);
    const int head = blockIdx.y, sample = blockIdx.z, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *const probabilities = free_memory + warp * 2 * ROWS_PER_WARP * TILE;
    float *const weights = probabilities + ROWS_PER_WARP * TILE;
    const int first = blockIdx.x * OWN_ROWS, own = warp * ROWS_PER_WARP;
    const size_t statistics = ((size_t)sample * gridDim.y + head) * query.tokens;

    load(keys, key, sample, first, OWN_ROWS, head, width);
    load(values, value, sample, first, OWN_ROWS, head, width);
    Accumulators key_sums, value_sums;
    key_sums.clear();
    value_sums.clear();
    for (int start = 0; start < query.tokens; start += TILE) {
        __syncthreads();  // every warp has used the previous tile, and every lane its warp's weights
        load(queries, query, sample, start, TILE, head, width);
        load(upstream, out_gradient, sample, start, TILE, head, width);
        __syncthreads();
        for (int r = 0; r < ROWS_PER_WARP; ++r) {
            const int token = start + lane;
            float probability = 0.0f, weight = 0.0f;
            if (token < query.tokens && first + own + r < key.tokens) {
                const float score = scale * dot(keys.row(own + r), queries.row(lane), width);
                probability = expf(score - log_sum_exp[statistics + token]);
                const float change = dot(values.row(own + r), upstream.row(lane), width) - delta[statistics + token];
                weight = scale * probability * change;
            }
            probabilities[r * TILE + lane] = probability;
            weights[r * TILE + lane] = weight;
        }
        __syncwarp();
        value_sums.add_rows(probabilities, upstream, width);
        key_sums.add_rows(weights, queries, width);
    }
    for (int r = 0; r < ROWS_PER_WARP && first + own + r < key.tokens; ++r) {
        key_sums.add_to(key_gradient.row(sample, first + own + r, head, width), r, width);
        value_sums.add_to(value_gradient.row(sample, first + own + r, head, width), r, width);
    }
}

#define ATTENTION_KERNELS(NAME, T)                                                                                     \
    extern "C" __global__ void attention_forward_##NAME(                                                               \
        const T *query, const T *key, const T *value, T *out, float *log_sum_exp, int query_stride, int key_stride,    \
        int out_stride, int query_tokens, int key_tokens, int head_width, float scale) {                               \
        forward<T>({query, query_stride, query_tokens}, {key, key_stride, key_tokens}, {value, key_stride, key_tokens}, \
                   {out, out_stride, query_tokens}, log_sum_exp, head_width, scale);                                   \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_forward_##NAME)                                                                            \
    extern "C" __global__ void attention_backward_delta_##NAME(const T *out, const T *out_gradient, float *delta,      \
                                                               int out_stride, int query_tokens, int head_width) {     \
        backward_delta<T>({out, out_stride, query_tokens}, {out_gradient, out_stride, query_tokens}, delta,            \
                          head_width);                                                                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_backward_delta_##NAME)                                                                     \
    extern "C" __global__ void attention_backward_queries_##NAME(                                                      \
        const T *query, const T *key, const T *value, const T *out_gradient, const float *log_sum_exp,                 \
        const float *delta, T *query_gradient, int query_stride, int key_stride, int out_stride, int query_tokens,     \
        int key_tokens, int head_width, float scale) {                                                                 \
        backward_queries<T>({query, query_stride, query_tokens}, {key, key_stride, key_tokens},                        \
                            {value, key_stride, key_tokens}, {out_gradient, out_stride, query_tokens}, log_sum_exp,    \
                            delta, {query_gradient, query_stride, query_tokens}, head_width, scale);                   \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_backward_queries_##NAME)                                                                   \
    extern "C" __global__ void attention_backward_keys_values_##NAME(                                                  \
        const T *query, const T *key, const T *value, const T *out_gradient, const float *log_sum_exp,                 \
        const float *delta, T *key_gradient, T *value_gradient, int query_stride, int key_stride, int out_stride,      \
        int query_tokens, int key_tokens, int head_width, float scale) {                                               \
        backward_keys_values<T>({query, query_stride, query_tokens}, {key, key_stride, key_tokens},                    \
                                {value, key_stride, key_tokens}, {out_gradient, out_stride, query_tokens},             \
                                log_sum_exp, delta, {key_gradient, key_stride, key_tokens},                            \
                                {value_gradient, key_stride, key_tokens}, head_width, scale);                          \
    }                                                                                                                  \
    EXPORT_KERNEL(attention_backward_keys_values_##NAME)

ATTENTION_KERNELS(f32, float)
ATTENTION_KERNELS(f16, __half)
