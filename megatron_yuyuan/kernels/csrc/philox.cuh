// Philox4x32-10 as in megatron_yuyuan/kernels/philox.py. Source: Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "port.h"

struct Words {
    uint32_t word[4];
};

__device__ __forceinline__ Words philox4x32(Words counter, uint64_t key) {
    uint32_t key_low = uint32_t(key), key_high = uint32_t(key >> 32);
    uint32_t *c = counter.word;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t low_0 = c[0] * 0xD2511F53u, high_0 = __umulhi(c[0], 0xD2511F53u);
        uint32_t low_2 = c[2] * 0xCD9E8D57u, high_2 = __umulhi(c[2], 0xCD9E8D57u);
        counter = {{high_2 ^ c[1] ^ key_low, low_2, high_0 ^ c[3] ^ key_high, low_0}};
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
    return counter;
}
