// Layer normalisation, alone and after the residual addition that feeds it. Source: Ba et al. 2016,
// arXiv:1607.06450; dweight and dbias in two stages as in NVIDIA apex's FastLayerNorm.
//
// A block takes a row and keeps it in registers: a thread holds the vectors threadIdx.x,
// threadIdx.x + blockDim.x, ... of it, 8 or 16 elements in all, whatever the dtype.
#include "dropout.cuh"
#include "reduce.cuh"

namespace {

// How rows of up to `columns` lie in a block: so many elements to a thread, `threads` at most.
// resident: the threads that a multiprocessor holds at once with the registers of a backward. A
// short row of half precision is one vector to a thread: it waits for the memory once.
struct Short {
    static constexpr int columns = 3072, elements = 8, threads = 384, resident = 768;
};
struct Long {
    static constexpr int columns = YUYUAN_NORM_COLUMNS, elements = 16, threads = 512,
                         resident = 512;
};

// body(q, column) for each of the thread's vectors: its number q and its first column.
template <class T, int vectors, class Body>
__device__ __forceinline__ void for_vectors(int columns, Body body) {
#pragma unroll
    for (int q = 0; q < vectors; q++) {
        int column = (q * blockDim.x + threadIdx.x) * Vector<T>::size;
        if (column < columns) body(q, column);
    }
}

// What one thread holds of a row.
template <class T, int vectors>
struct Part {
    float values[vectors][Vector<T>::size];
};

// The matrices of a forward pass: y = norm(sum). Without a branch sum is the input.
template <class T>
struct Forward {
    const T *x, *branch_bias, *residual;  // sum = residual + dropout(x + branch_bias)
    T *sum;
    const T *weight, *bias;
    T *y;
    float *mean, *rstd;
    yuyuan_dropout dropout;
};

// The row's part in float32: of x, or of the sum as it is stored, so that the norm of the sum is
// the same as if another kernel had read it.
template <class T, int vectors, bool branch>
__device__ __forceinline__ void read_row(const Forward<T> &f, Part<T, vectors> &x, int64_t row,
                                         int columns) {
    for_vectors<T, vectors>(columns, [&](int q, int column) {
        float *values = x.values[q];
        if (!branch) {
            load(f.x + row * columns + column, values);
            return;
        }
        add_branch(f.x, f.branch_bias, f.residual, f.dropout, row, column, columns, values);
        store(f.sum + row * columns + column, values);
#pragma unroll
        for (int i = 0; i < Vector<T>::size; i++) values[i] = to_float(round_to<T>(values[i]));
    });
}

// y = (x - mean) * rstd * weight + bias, the variance from the differences to the mean (two passes
// over registers). Reads x, writes y: 2 matrices; a branch: reads x, residual, writes sum, y: 4.
template <class T, class Length, bool branch>
__global__ void __launch_bounds__(Length::threads)
    layer_norm(Forward<T> f, int columns, float epsilon) {
    constexpr int size = Vector<T>::size, vectors = Length::elements / size;
    int64_t row = blockIdx.x;
    Part<T, vectors> x;
    read_row<T, vectors, branch>(f, x, row, columns);

    float sum = 0.0f, squares = 0.0f;
    for_vectors<T, vectors>(columns, [&](int q, int) {
#pragma unroll
        for (int i = 0; i < size; i++) sum += x.values[q][i];
    });
    float mean = block_reduce<Sum>(sum) / columns;
    for_vectors<T, vectors>(columns, [&](int q, int) {
#pragma unroll
        for (int i = 0; i < size; i++) {
            x.values[q][i] -= mean;
            squares += x.values[q][i] * x.values[q][i];
        }
    });
    float rstd = rsqrtf(block_reduce<Sum>(squares) / columns + epsilon);

    for_vectors<T, vectors>(columns, [&](int q, int column) {
        float weight[size], bias[size];
        load(f.weight + column, weight);
        load(f.bias + column, bias);
#pragma unroll
        for (int i = 0; i < size; i++) bias[i] += x.values[q][i] * rstd * weight[i];
        store(f.y + row * columns + column, bias);
    });
    if (threadIdx.x == 0) {
        f.mean[row] = mean;
        f.rstd[row] = rstd;
    }
}

// The matrices of a backward pass; partial: (2 or 3, blocks, columns).
template <class T>
struct Backward {
    const T *dy, *dsum, *x, *weight;
    const float *mean, *rstd;
    T *dx, *dbranch;
    float *partial;
    yuyuan_dropout dropout;
};

// What a thread adds up over the rows of its block.
template <class T, int vectors>
struct ColumnSums {
    Part<T, vectors> dweight = {}, dbias = {}, dbranch = {};
};

// What one thread holds of a row of a backward pass: normalised = (x - mean) * rstd, g = dy *
// weight, the row's sums of g and of g * normalised, and dsum as it came: it is read beside x and
// dy, not behind the sums, for which the block waits.
template <class T, int vectors>
struct RowOfBackward {
    Part<T, vectors> normalised, g;
    Vector<T> dsum[vectors] = {};
    float sums[2] = {};
};

template <class T, int vectors>
__device__ __forceinline__ void read_gradient(const Backward<T> &b, int64_t row, int columns,
                                              RowOfBackward<T, vectors> &r,
                                              ColumnSums<T, vectors> &column_sums) {
    constexpr int size = Vector<T>::size;
    float mean = b.mean[row], rstd = b.rstd[row];
    for_vectors<T, vectors>(columns, [&](int q, int column) {
        int64_t place = row * columns + column;
        float weight[size], *n = r.normalised.values[q], *d = r.g.values[q];
        load(b.x + place, n);
        load(b.dy + place, d);
        if (b.dsum != nullptr) r.dsum[q] = vector_at(b.dsum + place);
        load(b.weight + column, weight);
#pragma unroll
        for (int i = 0; i < size; i++) {
            n[i] = (n[i] - mean) * rstd;
            column_sums.dweight.values[q][i] += d[i] * n[i];
            column_sums.dbias.values[q][i] += d[i];
            d[i] *= weight[i];
            r.sums[0] += d[i];
            r.sums[1] += d[i] * n[i];
        }
    });
    block_reduce<Sum>(r.sums);
}

// dx = rstd (g - mean(g) - normalised mean(g normalised)) + dsum, written over g; stored, and with
// a branch its dropout backward as well, which is not rounded before.
template <class T, int vectors, bool branch>
__device__ __forceinline__ void write_gradient(const Backward<T> &b, int64_t row, int columns,
                                               RowOfBackward<T, vectors> &r,
                                               ColumnSums<T, vectors> &column_sums) {
    constexpr int size = Vector<T>::size;
    float rstd = b.rstd[row], mean_g = r.sums[0] / columns, mean_gn = r.sums[1] / columns;
    for_vectors<T, vectors>(columns, [&](int q, int column) {
        int64_t place = row * columns + column;
        float dsum[size], *dx = r.g.values[q];
        widen(r.dsum[q], dsum);
#pragma unroll
        for (int i = 0; i < size; i++)
            dx[i] = rstd * (dx[i] - mean_g - r.normalised.values[q][i] * mean_gn) + dsum[i];
        store(b.dx + place, dx);
        if (!branch) return;
        drop<size>(dx, b.dropout, row, column, columns);
        if (b.dbranch != b.dx) store(b.dbranch + place, dx);
#pragma unroll
        for (int i = 0; i < size; i++) column_sums.dbranch.values[q][i] += dx[i];
    });
}

template <class T, int vectors>
__device__ __forceinline__ void store_part(float *partial, const Part<T, vectors> &part,
                                           int columns) {
    for_vectors<T, vectors>(columns, [&](int q, int column) {
#pragma unroll
        for (int i = 0; i < Vector<T>::size; i += 4)
            store(partial + int64_t(blockIdx.x) * columns + column + i, part.values[q] + i);
    });
}

// First stage of the backward: block b takes the rows b, b + gridDim.x, ... and keeps its sums over
// them in registers; the second stage is add_partial_sums. Reads dy, x, dsum, writes dx: 4
// matrices; with a branch of its own gradient writes dbranch too: 5.
template <class T, class Length, bool branch>
__global__ void __launch_bounds__(Length::threads, Length::resident / Length::threads)
    layer_norm_backward(Backward<T> b, int64_t rows, int columns) {
    constexpr int vectors = Length::elements / Vector<T>::size;
    ColumnSums<T, vectors> column_sums;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        RowOfBackward<T, vectors> r;
        read_gradient(b, row, columns, r, column_sums);
        write_gradient<T, vectors, branch>(b, row, columns, r, column_sums);
    }
    int64_t matrix = int64_t(gridDim.x) * columns;
    store_part(b.partial, column_sums.dweight, columns);
    store_part(b.partial + matrix, column_sums.dbias, columns);
    if (branch) store_part(b.partial + 2 * matrix, column_sums.dbranch, columns);
}

// Calls body(length, threads): how a row of so many columns lies, and how many threads it takes.
template <class Body>
int with_length(int columns, Body body) {
    if (columns <= 0 || columns % 8 || columns > Long::columns) return cudaErrorInvalidValue;
    auto threads = [=](int elements) { return ceil_divide(columns, elements * kWarp) * kWarp; };
    if (columns <= Short::columns) return body(Short(), threads(Short::elements));
    return body(Long(), threads(Long::elements));
}

template <class T, bool branch>
int launch_forward(const Forward<T> &f, int64_t rows, int columns, float epsilon, void *stream) {
    return with_length(columns, [=](auto length, int threads) -> int {
        launch<layer_norm<T, decltype(length), branch>>(dim3(unsigned(rows)), threads, stream, f,
                                                        columns, epsilon);
        return cudaGetLastError();
    });
}

template <class T, bool branch>
int launch_backward(const Backward<T> &b, SumsTo<T> sums, int blocks, int64_t rows, int columns,
                    void *stream) {
    return with_length(columns, [=](auto length, int threads) -> int {
        launch<layer_norm_backward<T, decltype(length), branch>>(dim3(unsigned(blocks)), threads,
                                                                 stream, b, rows, columns);
        launch_add_partial_sums<T>(b.partial, sums, blocks, columns, stream);
        return cudaGetLastError();
    });
}

}  // namespace

// As many as a device holds at once: a block goes on from row to row. Columns that the launcher
// will refuse get one.
int yuyuan_norm_blocks(int64_t rows, int columns) {
    return with_length(columns, [=](auto length, int threads) -> int {
        int blocks = length.resident / threads * multiprocessors();
        return rows < blocks ? int(rows) : blocks;
    });
}

int yuyuan_layer_norm(int dtype, const void *x, const void *weight, const void *bias, void *y,
                      float *mean, float *rstd, int64_t rows, int columns, float epsilon,
                      void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        Forward<T> f = {};
        f.x = static_cast<const T *>(x);
        f.weight = static_cast<const T *>(weight);
        f.bias = static_cast<const T *>(bias);
        f.y = static_cast<T *>(y);
        f.mean = mean;
        f.rstd = rstd;
        return launch_forward<T, false>(f, rows, columns, epsilon, stream);
    });
}

int yuyuan_bias_dropout_add_norm(int dtype, const void *x, const void *bias, const void *residual,
                                 const void *weight, const void *norm_bias, void *sum, void *y,
                                 float *mean, float *rstd, yuyuan_dropout dropout, float epsilon,
                                 int64_t rows, int columns, void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        Forward<T> f = {static_cast<const T *>(x),
                        static_cast<const T *>(bias),
                        static_cast<const T *>(residual),
                        static_cast<T *>(sum),
                        static_cast<const T *>(weight),
                        static_cast<const T *>(norm_bias),
                        static_cast<T *>(y),
                        mean,
                        rstd,
                        dropout};
        return launch_forward<T, true>(f, rows, columns, epsilon, stream);
    });
}

int yuyuan_layer_norm_backward(int dtype, const void *dy, const void *dsum, const void *x,
                               const void *weight, const float *mean, const float *rstd, void *dx,
                               void *dweight, void *dbias, void *dbranch, void *dbranch_bias,
                               yuyuan_dropout dropout, float *partial, int blocks, int64_t rows,
                               int columns, void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        Backward<T> b = {static_cast<const T *>(dy), static_cast<const T *>(dsum),
                         static_cast<const T *>(x), static_cast<const T *>(weight),
                         mean, rstd, static_cast<T *>(dx), static_cast<T *>(dbranch),
                         partial, dropout};
        SumsTo<T> sums = {static_cast<T *>(dweight), static_cast<T *>(dbias),
                          static_cast<T *>(dbranch_bias)};
        auto backward = dbranch ? launch_backward<T, true> : launch_backward<T, false>;
        return backward(b, sums, blocks, rows, columns, stream);
    });
}
