// Sums over a warp, a block, and the partial sums of all blocks. Their order never depends on which
// thread comes first: the same input gives the same bits.
#pragma once
#include "vector.cuh"

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

struct Sum {
    static constexpr float neutral = 0.0f;
    template <class Number>
    static __device__ __forceinline__ Number of(Number a, Number b) {
        return a + b;
    }
};

struct Max {
    static constexpr float neutral = -INFINITY;
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// Butterfly over the 32 lanes; every lane has the result. Number: float or double.
template <class Operation, class Number>
__device__ __forceinline__ Number warp_reduce(Number value) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
        value = Operation::of(value, __shfl_xor_sync(kWholeWarp, value, lanes));
    return value;
}

// The same for `count` values over a block of whole warps; every thread has the results.
template <class Operation, class Number, int count>
__device__ __forceinline__ void block_reduce(Number (&values)[count]) {
    __shared__ Number warps[count][kWarp];
    int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    __syncthreads();  // the last call's results may still be being read
#pragma unroll
    for (int i = 0; i < count; i++) {
        values[i] = warp_reduce<Operation>(values[i]);
        if (lane == 0) warps[i][warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; i++) {
        Number part = lane < int(blockDim.x) / kWarp ? warps[i][lane] : Operation::neutral;
        values[i] = warp_reduce<Operation>(part);
    }
}

template <class Operation, class Number>
__device__ __forceinline__ Number block_reduce(Number value) {
    Number values[1] = {value};
    block_reduce<Operation>(values);
    return values[0];
}

// Where the column sums of one pass go, up to three of them.
template <class T>
struct SumsTo {
    T *first, *second = nullptr, *third = nullptr;

    int count() const { return third ? 3 : second ? 2 : 1; }
    __device__ __forceinline__ T *number(int i) const {
        return i == 0 ? first : i == 1 ? second : third;
    }
};

// Second stage of column sums: sum s, column c = the sum of partial[s][0 .. blocks)[c].
//
// A block adds up 32 columns of sum blockIdx.y: lane = column, warp w takes the blocks w, w + 8,
// ..., then the eight are added in order. Reads sums * blocks * columns floats once.
constexpr int kSumWarps = 8;

template <class T>
__global__ void __launch_bounds__(kWarp * kSumWarps)
    add_partial_sums(const float *__restrict__ partial, SumsTo<T> to, int blocks, int columns) {
    __shared__ float sums[kSumWarps][kWarp];
    int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    int column = blockIdx.x * kWarp + lane;
    partial += int64_t(blockIdx.y) * blocks * columns;
    float sum = 0.0f;
    if (column < columns)
        for (int block = warp; block < blocks; block += kSumWarps)
            sum += partial[int64_t(block) * columns + column];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    for (int other = 1; other < kSumWarps; other++) sum += sums[other][lane];
    to.number(blockIdx.y)[column] = round_to<T>(sum);
}

template <class T>
void launch_add_partial_sums(const float *partial, SumsTo<T> to, int blocks, int columns,
                             void *stream) {
    dim3 grid(unsigned(ceil_divide(columns, kWarp)), unsigned(to.count()));
    launch<add_partial_sums<T>>(grid, kWarp * kSumWarps, stream, partial, to, blocks, columns);
}
