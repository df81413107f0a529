// bias + GeLU, the tanh form of GPT-2. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
//
// 0.5 (1 + tanh y) = sigmoid(2y), and 1 / (1 + exp(-z)) takes fewer instructions than tanhf: here
// their number, not the memory, would be the limit. __expf(-z) is off by (2 + 1.2 |z|) 2^-23 of
// itself, but where |z| is large the sigmoid is nearly 0 or 1: u sigmoid(z) and its derivative are
// off by 7e-8 at most, half a unit of 1 in float32, and far below zero by 2e-5 of themselves, less
// than a float16 is rounded by. So it serves every dtype. __fdividef adds two units, 2^-22.
#include "columns.cuh"

namespace {

constexpr float kSqrt2OverPi = 0.7978845608028654f;
constexpr float kCubic = 0.044715f;

// z = 2 sqrt(2/pi) (u + 0.044715 u^3)
__device__ __forceinline__ float sigmoid_argument(float u) {
    return 2.0f * kSqrt2OverPi * u * (1.0f + kCubic * u * u);
}

// u sigmoid(z). Far below zero exp(-z) is infinite, and u / inf = -0 is right.
__device__ __forceinline__ float gelu(float u) {
    return __fdividef(u, 1.0f + __expf(-sigmoid_argument(u)));
}

// s + u s (1 - s) z', s = sigmoid(z), z' = 2 sqrt(2/pi) (1 + 3 * 0.044715 u^2).
//
// s and 1 - s are 1 / (1 + e) and e / (1 + e) with e = exp(-|z|) <= 1: nothing overflows, and their
// product is 0 where u z' is large; a rounding error of 1 - s would be multiplied by u z'.
__device__ __forceinline__ float gelu_derivative(float u) {
    float z = sigmoid_argument(u), e = __expf(-fabsf(z));
    float larger = __fdividef(1.0f, 1.0f + e), smaller = e * larger;
    float slope = 2.0f * kSqrt2OverPi * (1.0f + 3.0f * kCubic * u * u);
    return (z < 0.0f ? smaller : larger) + u * (larger * smaller) * slope;
}

// y = gelu(x + bias); a thread: one vector of columns (columns.cuh). Reads x, writes y: 2 matrices.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    bias_gelu(const T *__restrict__ x, const T *__restrict__ bias, T *__restrict__ y, int64_t rows,
              int columns) {
    constexpr int size = Vector<T>::size;
    int column = first_column<T>();
    if (column >= columns) return;
    float b[size];
    load(bias + column, b);
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float u[size];
        load(x + row * columns + column, u);
#pragma unroll
        for (int i = 0; i < size; i++) u[i] = gelu(u[i] + b[i]);
        store(y + row * columns + column, u);
    }
}

// dx = dy gelu'(x + bias); the sum of dx over a block's rows, not yet rounded, is its partial sum
// of dbias. Reads dy and x, writes dx: 3 matrices.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    bias_gelu_backward(const T *__restrict__ dy, const T *__restrict__ x,
                       const T *__restrict__ bias, T *__restrict__ dx, float *__restrict__ partial,
                       int64_t rows, int columns) {
    constexpr int size = Vector<T>::size;
    int column = first_column<T>();
    if (column >= columns) return;
    float b[size], dbias[size] = {};
    load(bias + column, b);
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float u[size], d[size];
        load(x + row * columns + column, u);
        load(dy + row * columns + column, d);
#pragma unroll
        for (int i = 0; i < size; i++) {
            d[i] *= gelu_derivative(u[i] + b[i]);
            dbias[i] += d[i];
        }
        store(dx + row * columns + column, d);
    }
    store_partial_sums<T>(partial, dbias, column, columns);
}

}  // namespace

int yuyuan_bias_gelu(int dtype, const void *x, const void *bias, void *y, int64_t rows, int columns,
                     void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        launch<bias_gelu<T>>(column_grid_for<T>(rows, columns), kColumnThreads, stream,
                             static_cast<const T *>(x), static_cast<const T *>(bias),
                             static_cast<T *>(y), rows, columns);
        return cudaGetLastError();
    });
}

int yuyuan_bias_gelu_backward(int dtype, const void *dy, const void *x, const void *bias, void *dx,
                              void *dbias, float *partial, int blocks, int64_t rows, int columns,
                              void *stream) {
    return with_type(dtype, [=](auto zero) -> int {
        using T = decltype(zero);
        launch<bias_gelu_backward<T>>(column_grid<T>(columns, blocks), kColumnThreads, stream,
                                      static_cast<const T *>(dy), static_cast<const T *>(x),
                                      static_cast<const T *>(bias), static_cast<T *>(dx), partial,
                                      rows, columns);
        launch_add_partial_sums<T>(partial, {static_cast<T *>(dbias)}, blocks, columns, stream);
        return cudaGetLastError();
    });
}
