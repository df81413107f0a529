// __half and __nv_bfloat16 on a CPU: 16 bits that convert to and from float as on a GPU, to the
// nearest and, half way, to the even one.
#pragma once
#include <cstdint>
#include <cstring>

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

struct __nv_bfloat16 {
    uint16_t bits;
};

struct __half {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (x != x) return {0x7fff};
    uint32_t bits = bits_as<uint32_t>(x);
    uint32_t odd = bits >> 16 & 1;
    return {uint16_t((bits + 0x7fff + odd) >> 16)};
}

// The exponent of a half is 5 bits wide, biased by 15; a float's is 8 bits wide, biased by 127.
inline float __half2float(__half x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
    float magnitude = bits_as<float>(rest) * 0x1p112f;  // also right for subnormal numbers
    if ((x.bits & 0x7c00) == 0x7c00) magnitude = bits_as<float>(rest | 0x7f800000);
    return bits_as<float>(bits_as<uint32_t>(magnitude) | sign);
}

inline __half __float2half_rn(float x) {
    uint32_t bits = bits_as<uint32_t>(x);
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    float magnitude = bits_as<float>(bits & 0x7fffffff);
    if (x != x) return {0x7fff};
    if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};  // half way to 65536: infinity
    if (magnitude < 0x1p-14f)  // subnormal: the addition rounds to a multiple of 2^-24
        return {uint16_t(sign | uint16_t(bits_as<uint32_t>(magnitude + 0.5f) - 0x3f000000))};
    uint32_t rest = bits & 0x7fffffff, odd = rest >> 13 & 1;
    return {uint16_t(sign | uint16_t((rest - (112u << 23) + 0xfff + odd) >> 13))};
}
