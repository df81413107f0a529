// The grid of kernels without sums over a row: a thread keeps to one vector of columns and goes
// down the rows, so that it reads a bias once and keeps a column sum in registers.
#pragma once
#include <algorithm>

#include "reduce.cuh"

constexpr int kColumnThreads = 128;

// blockIdx.x counts groups of 128 vectors of columns; blockIdx.y is the first row of a block,
// which goes on with every gridDim.y-th.
template <class T>
dim3 column_grid(int columns, int64_t blocks) {
    int vectors = columns / Vector<T>::size;
    return dim3(unsigned(ceil_divide(vectors, kColumnThreads)), unsigned(blocks));
}

// As many blocks to a group as give each multiprocessor this many threads, not more than rows. Far
// below the 65,535 that a grid may have.
template <class T>
int column_blocks(int64_t rows, int columns, int threads) {
    int groups = std::max(int(column_grid<T>(columns, 1).x), 1);
    int64_t blocks = std::max(threads / kColumnThreads * multiprocessors() / groups, 1);
    return int(std::min(blocks, rows));
}

// Of a kernel that keeps nothing from row to row: all the threads that a multiprocessor holds.
template <class T>
dim3 column_grid_for(int64_t rows, int columns) {
    return column_grid<T>(columns, column_blocks<T>(rows, columns, 2048));
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
