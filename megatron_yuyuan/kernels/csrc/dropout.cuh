// Dropout whose mask is never stored: a function of the key, the step, the place in the model and
// the element's place in the whole batch, drawn again wherever it is needed.
#pragma once
#include "philox.cuh"
#include "vector.cuh"

// values = dropout(values), which are the elements (row, column), (row, column + 1), ... of a
// matrix. Four neighbours share a counter; __fmul_rn: the same bits as op by op, never a fused
// multiply-add.
template <int size>
__device__ __forceinline__ void drop(float *values, const yuyuan_dropout &dropout, int64_t row,
                                     int column, int columns) {
    if (dropout.rows == nullptr) return;
    uint64_t first = uint64_t(dropout.rows[row]) * uint64_t(columns / 4) + uint64_t(column / 4);
#pragma unroll
    for (int quad = 0; quad < size / 4; quad++) {
        uint64_t index = first + quad;
        Words counter = {{uint32_t(index), uint32_t(index >> 32), dropout.step, dropout.site}};
        Words words = philox4x32(counter, dropout.key);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &value = values[4 * quad + i];
            value = words.word[i] >= dropout.threshold ? __fmul_rn(value, dropout.scale) : 0.0f;
        }
    }
}

// sum = residual + dropout(x + bias), one vector of it, in float32 op by op. bias and residual may
// be NULL.
template <class T>
__device__ __forceinline__ void add_branch(const T *x, const T *bias, const T *residual,
                                           const yuyuan_dropout &dropout, int64_t row, int column,
                                           int columns, float *sum) {
    constexpr int size = Vector<T>::size;
    int64_t place = row * columns + column;
    float other[size];
    load(x + place, sum);
    if (bias != nullptr) {
        load(bias + column, other);
#pragma unroll
        for (int i = 0; i < size; i++) sum[i] = __fadd_rn(sum[i], other[i]);
    }
    drop<size>(sum, dropout, row, column, columns);
    if (residual != nullptr) {
        load(residual + place, other);
#pragma unroll
        for (int i = 0; i < size; i++) sum[i] = __fadd_rn(other[i], sum[i]);
    }
}
