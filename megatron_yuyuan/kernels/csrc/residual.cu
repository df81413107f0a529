// The branch of a transformer's residual stream: bias, dropout and addition in one pass.
#include "columns.cuh"
#include "dropout.cuh"

namespace {

// sum = residual + dropout(x + bias); a thread: one vector of columns (columns.cuh).
// Reads x and residual, writes sum: 3 matrices.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    bias_dropout_add(const T *__restrict__ x, const T *__restrict__ bias,
                     const T *__restrict__ residual, T *__restrict__ sum, yuyuan_dropout dropout,
                     int64_t rows, int columns) {
    int column = first_column<T>();
    if (column >= columns) return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float values[Vector<T>::size];
        add_branch(x, bias, residual, dropout, row, column, columns, values);
        store(sum + row * columns + column, values);
    }
}

// dx = dropout'(dsum), which is the same mask and scale; the sum of dx over a block's rows is its
// partial sum of dbias. Reads dsum, writes dx: 2 matrices.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    bias_dropout_add_backward(const T *__restrict__ dsum, T *__restrict__ dx,
                              float *__restrict__ partial, yuyuan_dropout dropout, int64_t rows,
                              int columns) {
    constexpr int size = Vector<T>::size;
    int column = first_column<T>();
    if (column >= columns) return;
    float dbias[size] = {};
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float values[size];
        load(dsum + row * columns + column, values);
        drop<size>(values, dropout, row, column, columns);
        store(dx + row * columns + column, values);
#pragma unroll
        for (int i = 0; i < size; i++) dbias[i] += values[i];
    }
    store_partial_sums<T>(partial, dbias, column, columns);
}

}  // namespace

// 1,536 threads, because a thread of a backward with column sums needs up to 40 registers.
int yuyuan_column_blocks(int dtype, int64_t rows, int columns) {
    return with_type(dtype, [=](auto zero) -> int {
        return column_blocks<decltype(zero)>(rows, columns, 1536);
    });
}

int yuyuan_bias_dropout_add(int dtype, const void *x, const void *bias, const void *residual,
                            void *sum, yuyuan_dropout dropout, int64_t rows, int columns,
                            void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        launch<bias_dropout_add<T>>(column_grid_for<T>(rows, columns), kColumnThreads, stream,
                                    static_cast<const T *>(x), static_cast<const T *>(bias),
                                    static_cast<const T *>(residual), static_cast<T *>(sum),
                                    dropout, rows, columns);
        return cudaGetLastError();
    });
}

int yuyuan_bias_dropout_add_backward(int dtype, const void *dsum, void *dx, void *dbias,
                                     yuyuan_dropout dropout, float *partial, int blocks,
                                     int64_t rows, int columns, void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        launch<bias_dropout_add_backward<T>>(column_grid<T>(columns, blocks), kColumnThreads,
                                             stream, static_cast<const T *>(dsum),
                                             static_cast<T *>(dx), partial, dropout, rows, columns);
        launch_add_partial_sums<T>(partial, {static_cast<T *>(dbias)}, blocks, columns, stream);
        return cudaGetLastError();
    });
}
