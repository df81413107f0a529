// Sixteen bytes of a row at a time, and one rounding on the way back.
#pragma once
#include "port.h"

// 4 float32 or 8 float16 or bfloat16 elements: one load or store instruction.
template <class T>
struct alignas(16) Vector {
    static constexpr int size = 16 / sizeof(T);
    T values[size];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T round_to(float x);
template <>
__device__ __forceinline__ float round_to<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __half round_to<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 round_to<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// The vector at `from`, which is aligned to 16 bytes.
template <class T>
__device__ __forceinline__ Vector<T> vector_at(const T *from) {
    return *reinterpret_cast<const Vector<T> *>(from);
}

// values[0 .. Vector<T>::size) = the vector.
template <class T>
__device__ __forceinline__ void widen(const Vector<T> &vector, float *values) {
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i++) values[i] = to_float(vector.values[i]);
}

template <class T>
__device__ __forceinline__ void load(const T *from, float *values) {
    widen(vector_at(from), values);
}

template <class T>
__device__ __forceinline__ void store(T *to, const float *values) {
    Vector<T> vector;
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i++) vector.values[i] = round_to<T>(values[i]);
    *reinterpret_cast<Vector<T> *>(to) = vector;
}
