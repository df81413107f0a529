// Cross entropy of rows of logits of which this rank holds some columns: what the ranks exchange,
// and then the gradient. Sources: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (over ranks);
// Milakov and Gimelshein 2018, arXiv:1805.02867 (largest and sum of exponentials in one pass).
//
// A block takes a row, 16 bytes to a thread at a time. __expf is a multiplication and one
// instruction; every exponent here is 0 or negative, where it is off by less than 1e-6.
#include <algorithm>

#include "port.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace {

constexpr int kMostThreads = 512;

// Whole warps, no more threads than vectors.
template <class T>
int threads_for(int columns) {
    int warps = ceil_divide(columns, kWarp * Vector<T>::size);
    return std::min(std::max(warps, 1) * kWarp, kMostThreads);
}

bool refused(int columns, int real) { return columns % 8 || real < 0 || real > columns; }

// Where the label's logit stands among the `real` ones held here; -1: not among them.
__device__ __forceinline__ int column_of(int64_t label, int64_t first, int real) {
    return first <= label && label - first < real ? int(label - first) : -1;
}

// The largest of the logits seen so far, and the sum of exp(logit - largest).
struct Exponentials {
    float largest = -INFINITY;
    float sum = 0.0f;

    // The sum of exp(logit - larger). Equal ones may both be -inf, and exp(inf - inf) is no number.
    __device__ __forceinline__ float relative_to(float larger) const {
        return largest == larger ? sum : sum * __expf(largest - larger);
    }

    template <int count>
    __device__ __forceinline__ void add(const float (&logits)[count]) {
        float next = largest;
#pragma unroll
        for (int i = 0; i < count; i++) next = fmaxf(next, logits[i]);
        sum = relative_to(next);
        largest = next;
        float shift = next == -INFINITY ? 0.0f : next;
#pragma unroll
        for (int i = 0; i < count; i++) sum += __expf(logits[i] - shift);
    }
};

// One row to a block. Reads the first `real` logits once.
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    statistics(const T *__restrict__ logits, const int64_t *__restrict__ labels,
               float *__restrict__ largest, float *__restrict__ sum, float *__restrict__ target,
               int columns, int64_t first, int real) {
    constexpr int size = Vector<T>::size;
    int64_t row = blockIdx.x;
    logits += row * columns;
    Exponentials seen;
    for (int start = threadIdx.x * size; start < real; start += blockDim.x * size) {
        float x[size];
        load(logits + start, x);
#pragma unroll
        for (int i = 0; i < size; i++) x[i] = start + i < real ? x[i] : -INFINITY;
        seen.add(x);
    }
    float row_largest = block_reduce<Max>(seen.largest);
    float row_sum = block_reduce<Sum>(seen.relative_to(row_largest));
    if (threadIdx.x > 0) return;
    int label = column_of(labels[row], first, real);
    largest[row] = row_largest;
    sum[row] = row_sum;
    target[row] = label >= 0 ? to_float(logits[label]) : 0.0f;
}

// One row to a block. Reads and writes the logits once; a row of weight 0 is only written.
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    gradient(T *logits, const int64_t *__restrict__ labels, const float *__restrict__ log_sum,
             const float *__restrict__ weight, int columns, int64_t first, int real) {
    constexpr int size = Vector<T>::size;
    int64_t row = blockIdx.x;
    logits += row * columns;
    float row_log_sum = log_sum[row], row_weight = weight[row];
    int label = column_of(labels[row], first, real);
    for (int start = threadIdx.x * size; start < columns; start += blockDim.x * size) {
        float x[size] = {};
        if (row_weight != 0.0f) load(logits + start, x);
#pragma unroll
        for (int i = 0; i < size; i++) {
            float onehot = start + i == label ? 1.0f : 0.0f;
            float slope = (__expf(x[i] - row_log_sum) - onehot) * row_weight;
            x[i] = start + i < real && row_weight != 0.0f ? slope : 0.0f;
        }
        store(logits + start, x);
    }
}

}  // namespace

int yuyuan_cross_entropy(int dtype, const void *logits, const int64_t *labels, float *largest,
                         float *sum, float *target, int64_t rows, int columns, int64_t first,
                         int real, void *stream) {
    if (refused(columns, real)) return cudaErrorInvalidValue;
    return with_type(dtype, [=](auto type) {
        using T = decltype(type);
        launch<statistics<T>>(dim3(rows), threads_for<T>(real), stream,
                              static_cast<const T *>(logits), labels, largest, sum, target,
                              columns, first, real);
        return int(cudaGetLastError());
    });
}

int yuyuan_cross_entropy_gradient(int dtype, void *logits, const int64_t *labels,
                                  const float *log_sum, const float *weight, int64_t rows,
                                  int columns, int64_t first, int real, void *stream) {
    if (refused(columns, real)) return cudaErrorInvalidValue;
    return with_type(dtype, [=](auto type) {
        using T = decltype(type);
        launch<gradient<T>>(dim3(rows), threads_for<T>(columns), stream,
                            static_cast<T *>(logits), labels, log_sum, weight, columns, first,
                            real);
        return int(cudaGetLastError());
    });
}
