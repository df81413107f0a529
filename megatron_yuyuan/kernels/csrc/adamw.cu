// One step of AdamW for all parameters, and the norm of their gradient. Source: Loshchilov and
// Hutter 2019, arXiv:1711.05101; the order of operations is that of torch.optim.AdamW.
//
// A block takes a piece of a shard, 16 bytes to a thread at a time. Where a shard begins depends on
// the others in its buffer: a piece whose arrays are not aligned goes one element at a time.
#include "port.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ bool aligned(const void *address) {
    return reinterpret_cast<uintptr_t>(address) % sizeof(Vector<float>) == 0;
}

// rest_i = 1 - beta_i, step_size = rate / correction_1, root_2 = sqrt(correction_2).
struct AdamW {
    float rate, beta_1, rest_1, beta_2, rest_2, epsilon, step_size, root_2;

    // Of one element, its gradient already multiplied by the coefficient:
    // m = beta_1 m + (1 - beta_1) g        v = beta_2 v + (1 - beta_2) g^2
    // p = p (1 - rate decay) - rate (m / correction_1) / (sqrt(v / correction_2) + epsilon)
    __device__ __forceinline__ void update(float &p, float &m, float &v, float g,
                                           float decay) const {
        p *= 1.0f - rate * decay;
        m = beta_1 * m + rest_1 * g;
        v = beta_2 * v + rest_2 * g * g;
        p -= step_size * m / (sqrtf(v) / root_2 + epsilon);
    }

    __device__ __forceinline__ void update_vector(const yuyuan_piece &piece, int64_t start,
                                                  float factor) const {
        constexpr int size = Vector<float>::size;
        float p[size], m[size], v[size], g[size];
        load(piece.parameter + start, p);
        load(piece.exp_avg + start, m);
        load(piece.exp_avg_sq + start, v);
        load(piece.gradient + start, g);
#pragma unroll
        for (int i = 0; i < size; i++)
            update(p[i], m[i], v[i], g[i] * factor, piece.weight_decay);
        store(piece.parameter + start, p);
        store(piece.exp_avg + start, m);
        store(piece.exp_avg_sq + start, v);
    }
};

// Reads 16 and writes 12 bytes per element, once.
__global__ void __launch_bounds__(kThreads)
    adamw(const yuyuan_piece *__restrict__ pieces, const float *__restrict__ coefficient,
          AdamW rule) {
    const float factor = *coefficient;
    if (!std::isfinite(factor)) return;
    constexpr int size = Vector<float>::size;
    const yuyuan_piece piece = pieces[blockIdx.x];
    bool vectors = aligned(piece.parameter) && aligned(piece.exp_avg) &&
                   aligned(piece.exp_avg_sq) && aligned(piece.gradient);
    int64_t whole = vectors ? piece.count / size : 0;
    for (int64_t i = threadIdx.x; i < whole; i += blockDim.x)
        rule.update_vector(piece, i * size, factor);
    for (int64_t i = whole * size + threadIdx.x; i < piece.count; i += blockDim.x)
        rule.update(piece.parameter[i], piece.exp_avg[i], piece.exp_avg_sq[i],
                    piece.gradient[i] * factor, piece.weight_decay);
}

__device__ __forceinline__ double square(float x) { return double(x) * x; }

// partial[piece] = the sum of squares of its gradient; 0 where it is not counted. Reads the
// gradient once. In float64: the square of a float32 number is exact and cannot overflow, so that
// the sum is finite where the gradient is.
__global__ void __launch_bounds__(kThreads)
    squared_norms(const yuyuan_piece *__restrict__ pieces, double *__restrict__ partial) {
    constexpr int size = Vector<float>::size;
    const yuyuan_piece piece = pieces[blockIdx.x];
    int64_t count = piece.counted ? piece.count : 0;
    int64_t whole = aligned(piece.gradient) ? count / size : 0;
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < whole; i += blockDim.x) {
        float g[size];
        load(piece.gradient + i * size, g);
#pragma unroll
        for (int j = 0; j < size; j++) sum += square(g[j]);
    }
    for (int64_t i = whole * size + threadIdx.x; i < count; i += blockDim.x)
        sum += square(piece.gradient[i]);
    sum = block_reduce<Sum>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: *total = the sum of the partial sums.
__global__ void __launch_bounds__(kThreads)
    sum_of(const double *__restrict__ partial, int count, double *__restrict__ total) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_reduce<Sum>(sum);
    if (threadIdx.x == 0) *total = sum;
}

}  // namespace

int yuyuan_adamw(const yuyuan_piece *pieces, int count, const float *coefficient, float rate,
                 double beta_1, double beta_2, float epsilon, float correction_1,
                 float correction_2, void *stream) {
    AdamW rule = {rate,
                  float(beta_1),
                  float(1 - beta_1),
                  float(beta_2),
                  float(1 - beta_2),
                  epsilon,
                  rate / correction_1,
                  std::sqrt(correction_2)};
    launch<adamw>(dim3(count), kThreads, stream, pieces, coefficient, rule);
    return cudaGetLastError();
}

int yuyuan_squared_norm(const yuyuan_piece *pieces, int count, double *partial, double *total,
                        void *stream) {
    launch<squared_norms>(dim3(count), kThreads, stream, pieces, partial);
    launch<sum_of>(dim3(1), kThreads, stream, static_cast<const double *>(partial), count, total);
    return cudaGetLastError();
}
