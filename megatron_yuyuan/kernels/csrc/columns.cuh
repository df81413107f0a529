// The grid of kernels without sums over a row: a thread keeps to one vector of columns and goes down
// the rows, so that it reads a bias once and keeps a column sum in registers.
#pragma once
#include "reduce.cuh"

constexpr int kColumnThreads = 128;

// blockIdx.x counts groups of 128 vectors of columns; blockIdx.y is the first row of a block, which
// goes on with every gridDim.y-th.
template <class T>
dim3 column_grid(int columns, int64_t blocks) {
    int vectors = columns / Vector<T>::size;
    return dim3(unsigned(ceil_divide(vectors, kColumnThreads)), unsigned(blocks));
}

// As many blocks as a device holds at once (16 of 128 threads on each multiprocessor), not more than
// there are rows nor than a grid may have.
template <class T>
dim3 column_grid_for(int64_t rows, int columns) {
    unsigned groups = column_grid<T>(columns, 1).x;
    int64_t blocks = ceil_divide(16 * multiprocessors(), int(groups));
    if (blocks > rows) blocks = rows;
    return dim3(groups, unsigned(blocks < 65535 ? blocks : 65535));
}

template <class T>
__device__ __forceinline__ int first_column() {
    return (blockIdx.x * blockDim.x + threadIdx.x) * Vector<T>::size;
}

// partial[blockIdx.y][column ...] = sums, the thread's vector of them.
template <class T>
__device__ __forceinline__ void store_partial_sums(float *partial, const float *sums, int column,
                                                   int columns) {
    float *to = partial + int64_t(blockIdx.y) * columns + column;
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i += 4) store(to + i, sums + i);
}
