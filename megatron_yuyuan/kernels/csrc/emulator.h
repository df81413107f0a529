// CUDA's threads on a CPU, so that a test can execute every line of every kernel without a GPU.
//
// A thread is a fiber (emulated_fibers.h), blocks run one by one. A thread runs until it waits: at
// __syncthreads for its block, at a shuffle or __syncwarp for its warp. The schedule says who runs
// next; a kernel without races gives the same bits under all of them. A barrier that not all
// threads reach ends the launch with an error that names the kernel.
//
// What this cannot show: speed, memory ordering between blocks, shared memory and register limits,
// the last bits of CUDA's approximate functions. Compile with -ffp-contract=off.
#pragma once
#include <pthread.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>

#include "emulated_fibers.h"
#include "emulated_types.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719
};

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

enum class Schedule { forward, reverse, random, warp_greedy };
enum class State { ready, at_warp_barrier, at_block_barrier, refused, returned };

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = kMostFibers;

inline Schedule schedule = Schedule::forward;
inline uint64_t seed = 0;
inline int multiprocessors = 2;
inline cudaError_t last_error = cudaSuccess;
inline char message[512];

inline State states[kMostThreads];
inline uint64_t slots[2][kMostThreads];   // what each thread gives to its warp in a shuffle
inline unsigned exchanges[kMostThreads];  // shuffles so far; the parity chooses a set of slots
inline unsigned order[kMostThreads];      // in which the threads run
inline unsigned threads;                  // of the running block
inline pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;  // all of this is of one launch

// Ends the thread's turn. It runs again once its state is `ready`.
inline void wait(State state) {
    states[threadIdx.x] = state;
    suspend();
}

inline unsigned count(State state, unsigned first, unsigned size) {
    unsigned found = 0;
    for (unsigned i = first; i < first + size; i++) found += states[i] == state;
    return found;
}

// Lets the threads go on if all of them have arrived.
inline bool release(State barrier, unsigned first, unsigned size) {
    if (count(barrier, first, size) != size) return false;
    for (unsigned i = first; i < first + size; i++) states[i] = State::ready;
    return true;
}

inline bool run_ready(const unsigned *some, unsigned size) {
    bool any = false;
    for (unsigned i = 0; i < size; i++)
        if (states[some[i]] == State::ready) {
            threadIdx.x = some[i];
            resume(some[i]);
            any = true;
        }
    return any;
}

inline void shuffle(unsigned *numbers, unsigned size) {
    for (unsigned i = size; i > 1; i--) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;  // Knuth's, MMIX
        std::swap(numbers[i - 1], numbers[(seed >> 33) % i]);
    }
}

// Each thread once, up to its next barrier. Warp-greedy drives one warp as far as it can before any
// other moves: that is when a warp overwrites what a slower one has yet to read.
inline bool run_round() {
    if (schedule == Schedule::random) shuffle(order, threads);
    if (schedule != Schedule::warp_greedy) return run_ready(order, threads);
    unsigned warps[kMostThreads / kWarp];
    for (unsigned i = 0; i < threads / kWarp; i++) warps[i] = i * kWarp;
    shuffle(warps, threads / kWarp);
    bool any = false;
    for (unsigned i = 0; i < threads / kWarp; i++)
        while (run_ready(order + warps[i], kWarp)) {
            any = true;
            release(State::at_warp_barrier, warps[i], kWarp);
        }
    return any;
}

inline void report(const char *kernel) {
    snprintf(message, sizeof message,
             "%s: block (%u, %u) cannot go on: of %u threads %u wait at __syncthreads, %u at a "
             "shuffle or __syncwarp, %u shuffle part of a warp, %u have returned",
             kernel, blockIdx.x, blockIdx.y, threads, count(State::at_block_barrier, 0, threads),
             count(State::at_warp_barrier, 0, threads), count(State::refused, 0, threads),
             count(State::returned, 0, threads));
    last_error = cudaErrorLaunchFailure;
    abandon();
}

// False: the block cannot go on.
inline bool run_block(const char *kernel) {
    for (unsigned i = 0; i < threads; i++) {
        order[i] = schedule == Schedule::reverse ? threads - 1 - i : i;
        states[i] = State::ready;
        exchanges[i] = 0;
    }
    while (count(State::returned, 0, threads) != threads) {
        bool moved = run_round();
        for (unsigned first = 0; first < threads; first += kWarp)
            moved |= release(State::at_warp_barrier, first, kWarp);
        moved |= release(State::at_block_barrier, 0, threads);
        if (!moved) {
            report(kernel);
            return false;
        }
    }
    return true;
}

inline void run_grid(const char *kernel, dim3 grid, unsigned size) {
    threads = size;
    gridDim = grid;
    blockDim = dim3(size);
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
            if (!run_block(kernel)) return;
}

// Gives `value` to the warp and takes that of `lane`. Two sets of slots in turn: a thread that
// writes to one set has passed a barrier after everybody's reading of it.
template <class T>
T exchange(unsigned mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "one slot");
    if (mask != 0xffffffffu) wait(State::refused);  // kernels shuffle whole warps
    unsigned set = exchanges[threadIdx.x]++ & 1;
    std::memcpy(&slots[set][threadIdx.x], &value, sizeof value);
    wait(State::at_warp_barrier);
    std::memcpy(&value, &slots[set][threadIdx.x / kWarp * kWarp + lane % kWarp], sizeof value);
    return value;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::State::at_block_barrier); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait(emulator::State::at_warp_barrier); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return emulator::exchange(mask, value, unsigned(lane));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulator::exchange(mask, value, threadIdx.x % emulator::kWarp ^ unsigned(lanes));
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// As the CUDA C++ Programming Guide describes the two: 2^(x log2(e)), the product rounded; and 0
// where the reciprocal of b is too small.
inline float __expf(float x) { return std::exp2(1.44269504f * x); }
inline float __fdividef(float a, float b) { return std::fabs(b) > 0x1p126f ? a * 0.0f : a / b; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

inline int multiprocessors() { return emulator::multiprocessors; }

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }

inline const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    }
    return "unrecognized error code";
}

template <auto kernel, class... Arguments>
void launch(dim3 grid, int threads, void *, Arguments... arguments) {
    if (threads <= 0 || threads % emulator::kWarp || threads > int(emulator::kMostThreads)) {
        emulator::last_error = cudaErrorInvalidConfiguration;
        return;
    }
    auto body = [=] { kernel(arguments...); };
    pthread_mutex_lock(&emulator::one_launch);
    emulator::body = [](const void *self) {
        (*static_cast<const decltype(body) *>(self))();
        emulator::states[threadIdx.x] = emulator::State::returned;
    };
    emulator::arguments = &body;
    emulator::run_grid(__PRETTY_FUNCTION__, grid, unsigned(threads));
    pthread_mutex_unlock(&emulator::one_launch);
}

// How a test chooses the schedule and the size of the device, and reads why a launch failed.
extern "C" {
__attribute__((used)) inline void yuyuan_emulate(int schedule, int seed, int multiprocessors) {
    emulator::schedule = emulator::Schedule(schedule);
    emulator::seed = uint64_t(seed);
    emulator::multiprocessors = multiprocessors;
}
__attribute__((used)) inline const char *yuyuan_emulator_message() {
    return emulator::message;
}
}
