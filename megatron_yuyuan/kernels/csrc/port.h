// What a kernel file includes first: CUDA where nvcc compiles it, the emulator (-DYUYUAN_EMULATE)
// where a C++ compiler does. Kernels use nothing of CUDA that is not here or in emulator.h.
#pragma once
#include "launchers.h"

#ifdef YUYUAN_EMULATE
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>

// Runs `kernel` on grid x threads, in the order of `stream`. An empty grid is no error: there is
// nothing to do.
template <auto kernel, class... Arguments>
void launch(dim3 grid, int threads, void *stream, Arguments... arguments) {
    if (grid.x > 0 && grid.y > 0)
        kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
}

inline int multiprocessors() {
    int device = 0, count = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
}
#endif

// Calls body(T()) with the C++ type of `dtype`, and returns what it returns: a CUDA error.
template <class Body>
int with_type(int dtype, Body body) {
    switch (dtype) {
        case YUYUAN_FLOAT32: return body(float());
        case YUYUAN_FLOAT16: return body(__half());
        case YUYUAN_BFLOAT16: return body(__nv_bfloat16());
        default: return cudaErrorInvalidValue;
    }
}

template <class Integer>
constexpr __host__ __device__ Integer ceil_divide(Integer a, Integer b) {
    return (a + b - 1) / b;
}
