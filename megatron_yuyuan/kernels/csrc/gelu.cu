// bias + GeLU, the tanh form of GPT-2. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
#include "columns.cuh"

namespace {

constexpr float kSqrt2OverPi = 0.7978845608028654f;
constexpr float kCubic = 0.044715f;

// 0.5 u (1 + t), t = tanh(sqrt(2/pi) (u + 0.044715 u^3))
__device__ __forceinline__ float gelu(float u) {
    return 0.5f * u * (1.0f + tanhf(kSqrt2OverPi * (u + kCubic * u * u * u)));
}

// 0.5 (1 + t) + 0.5 u (1 - t^2) sqrt(2/pi) (1 + 3 * 0.044715 u^2)
__device__ __forceinline__ float gelu_derivative(float u) {
    float t = tanhf(kSqrt2OverPi * (u + kCubic * u * u * u));
    float inner = kSqrt2OverPi * (1.0f + 3.0f * kCubic * u * u);
    return 0.5f * (1.0f + t) + 0.5f * u * (1.0f - t * t) * inner;
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

// dx = dy gelu'(x + bias); the sum of dx over a block's rows, not yet rounded, is its partial sum of
// dbias. Reads dy and x, writes dx: 3 matrices.
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
        launch_add_partial_sums<T>(partial, dbias, blocks, columns, stream);
        return cudaGetLastError();
    });
}
