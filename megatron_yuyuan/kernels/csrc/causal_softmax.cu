// Softmax of attention scores under the causal mask, as Megatron-LM's fused kernel of that name
// (megatron/fused_kernels/scaled_upper_triang_masked_softmax) has it: scale, mask and softmax in
// one pass, the row in registers.
//
// A warp takes a row, 16 bytes to a lane at a time. What the mask hides is never read: half of the
// scores where queries and keys are as many. __expf is a multiplication and one instruction; every
// exponent here is 0 or negative, where it is off by less than 1e-6.
#include <algorithm>
#include <type_traits>

#include "port.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace {

constexpr int kWarps = 4;  // rows of a block

// The place of a warp in scores of (..., queries, columns).
struct Row {
    int64_t number;
    int visible;  // columns that its query sees

    __device__ __forceinline__ Row(int queries, int columns)
        : number(int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp),
          visible(columns - queries + 1 + int(number % queries)) {}
};

// Where vector `i` of this lane begins.
template <class T>
__device__ __forceinline__ int start_of(int i) {
    return (i * kWarp + int(threadIdx.x) % kWarp) * Vector<T>::size;
}

// The vector at `start` of a row; `hidden` in place of the columns from `visible` on.
template <class T>
__device__ __forceinline__ void load_visible(const T *row, int start, int visible, float hidden,
                                             float *x) {
    if (start < visible) load(row + start, x);
#pragma unroll
    for (int j = 0; j < Vector<T>::size; j++) x[j] = start + j < visible ? x[j] : hidden;
}

// One row to a warp, `vectors` vectors to a lane. Reads what the query sees, writes the whole row.
template <class T, int vectors>
__global__ void __launch_bounds__(kWarps *kWarp)
    forward(const T *__restrict__ scores, T *__restrict__ weights, int64_t rows, int queries,
            int columns, float scale) {
    constexpr int size = Vector<T>::size;
    Row row(queries, columns);
    if (row.number >= rows) return;
    scores += row.number * columns;
    weights += row.number * columns;
    float x[vectors][size], largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < vectors; i++) {
        load_visible(scores, start_of<T>(i), row.visible, -INFINITY, x[i]);
#pragma unroll
        for (int j = 0; j < size; j++) largest = fmaxf(largest, x[i][j] *= scale);
    }
    largest = warp_reduce<Max>(largest);
#pragma unroll
    for (int i = 0; i < vectors; i++)
#pragma unroll
        for (int j = 0; j < size; j++) sum += x[i][j] = __expf(x[i][j] - largest);
    float share = 1.0f / warp_reduce<Sum>(sum);
#pragma unroll
    for (int i = 0; i < vectors; i++) {
#pragma unroll
        for (int j = 0; j < size; j++) x[i][j] *= share;
        if (start_of<T>(i) < columns) store(weights + start_of<T>(i), x[i]);
    }
}

// dscores = scale * weights * (dweights - dot), dot = the sum of weights * dweights over the row.
// Reads of both what the query sees, writes the whole row.
template <class T, int vectors>
__global__ void __launch_bounds__(kWarps *kWarp)
    backward(const T *__restrict__ dweights, const T *__restrict__ weights,
             T *__restrict__ dscores, int64_t rows, int queries, int columns, float scale) {
    constexpr int size = Vector<T>::size;
    Row row(queries, columns);
    if (row.number >= rows) return;
    dweights += row.number * columns;
    weights += row.number * columns;
    dscores += row.number * columns;
    float w[vectors][size], dw[vectors][size], dot = 0.0f;
#pragma unroll
    for (int i = 0; i < vectors; i++) {
        load_visible(weights, start_of<T>(i), row.visible, 0.0f, w[i]);
        load_visible(dweights, start_of<T>(i), row.visible, 0.0f, dw[i]);
#pragma unroll
        for (int j = 0; j < size; j++) dot += w[i][j] * dw[i][j];
    }
    dot = warp_reduce<Sum>(dot);
#pragma unroll
    for (int i = 0; i < vectors; i++) {
#pragma unroll
        for (int j = 0; j < size; j++) dw[i][j] = scale * w[i][j] * (dw[i][j] - dot);
        if (start_of<T>(i) < columns) store(dscores + start_of<T>(i), dw[i]);
    }
}

// Calls body(as many vectors to a lane as hold a row of T): 1, 4 or as many as hold the longest.
template <class T, int vectors = 1, class Body>
void with_vectors(int columns, Body body) {
    constexpr int warp = kWarp * Vector<T>::size, most = YUYUAN_SOFTMAX_COLUMNS / warp;
    if constexpr (vectors < most)
        if (columns > vectors * warp)
            return with_vectors<T, std::min(4 * vectors, most)>(columns, body);
    body(std::integral_constant<int, vectors>());
}

bool refused(int queries, int columns) {
    return columns > YUYUAN_SOFTMAX_COLUMNS || columns % 8 || queries > columns || queries < 1;
}

}  // namespace

int yuyuan_causal_softmax(int dtype, const void *scores, void *weights, int64_t rows, int queries,
                          int columns, float scale, void *stream) {
    if (refused(queries, columns)) return cudaErrorInvalidValue;
    return with_type(dtype, [=](auto type) {
        using T = decltype(type);
        with_vectors<T>(columns, [=](auto vectors) {
            launch<forward<T, vectors>>(dim3(ceil_divide<int64_t>(rows, kWarps)), kWarps * kWarp,
                                        stream, static_cast<const T *>(scores),
                                        static_cast<T *>(weights), rows, queries, columns, scale);
        });
        return int(cudaGetLastError());
    });
}

int yuyuan_causal_softmax_backward(int dtype, const void *dweights, const void *weights,
                                   void *dscores, int64_t rows, int queries, int columns,
                                   float scale, void *stream) {
    if (refused(queries, columns)) return cudaErrorInvalidValue;
    return with_type(dtype, [=](auto type) {
        using T = decltype(type);
        with_vectors<T>(columns, [=](auto vectors) {
            launch<backward<T, vectors>>(dim3(ceil_divide<int64_t>(rows, kWarps)), kWarps * kWarp,
                                         stream, static_cast<const T *>(dweights),
                                         static_cast<const T *>(weights),
                                         static_cast<T *>(dscores), rows, queries, columns, scale);
        });
        return int(cudaGetLastError());
    });
}
