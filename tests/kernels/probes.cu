// Kernels that are wrong on purpose, and one that writes down who runs when.
#include "reduce.cuh"

namespace {

constexpr int kThreads = 96;

// order[i] = the i-th thread to run; to be launched with one block.
__global__ void write_order(int *order, int *next) {
    order[(*next)++] = threadIdx.x;
    __syncwarp();
    order[(*next)++] = threadIdx.x;
}

__global__ void some_return_before_the_barrier(float *) {
    if (threadIdx.x >= 64) return;
    __syncthreads();
}

__global__ void a_warp_waits_for_lanes_that_wait_for_the_block(float *) {
    if (threadIdx.x % 2) __syncthreads();
    __syncwarp();
}

__global__ void half_a_warp_shuffles(float *to) {
    if (threadIdx.x % kWarp < 16) *to = __shfl_xor_sync(0xffffu, 1.0f, 1);
}

__global__ void writes_one_too_far(float *to) { to[threadIdx.x + 1] = 1.0f; }

// to[i] = 32 i + ... + 32 i + 31, by way of the lane that has it.
__global__ void sum_and_pass_on(float *to) {
    float sum = warp_reduce<Sum>(float(threadIdx.x));
    float own = threadIdx.x % kWarp == 5 ? sum : -1.0f;
    to[threadIdx.x] = __shfl_sync(kWholeWarp, own, 5);
}

}  // namespace

extern "C" {
int yuyuan_probe_order(int *order, int *next, void *stream) {
    launch<write_order>(dim3(1), kThreads, stream, order, next);
    return cudaGetLastError();
}

int yuyuan_probe(int which, float *to, void *stream) {
    switch (which) {
        case 0: launch<some_return_before_the_barrier>(dim3(1), kThreads, stream, to); break;
        case 1:
            launch<a_warp_waits_for_lanes_that_wait_for_the_block>(dim3(1), kThreads, stream, to);
            break;
        case 2: launch<half_a_warp_shuffles>(dim3(1), kThreads, stream, to); break;
        case 3: launch<writes_one_too_far>(dim3(1), kThreads, stream, to); break;
        case 4: launch<sum_and_pass_on>(dim3(1), kThreads, stream, to); break;
        case 5: launch<sum_and_pass_on>(dim3(1), kThreads + 1, stream, to); break;
    }
    return cudaGetLastError();
}
}

// Run by itself under the address sanitizer: see test_emulator.py.
int main() {
    float *to = new float[kThreads];
    int error = yuyuan_probe(4, to, nullptr);
    std::fprintf(stderr, "sum %g, error %d\n", to[0], error);
    error = yuyuan_probe(3, to, nullptr);
    delete[] to;
    return error;
}
