"""A shuffled order without a list: a keyed permutation of range(n), evaluated at one place in
constant time.

A four-round Feistel network over the next power of four, walked until the result falls below n
(fewer than four rounds of walking on average). Source: Black and Rogaway, "Ciphers with arbitrary
finite domains", CT-RSA 2002.
"""

VERSION = 1
"""Stands in every checkpoint: a run is not continued with another order of its data."""

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """The finaliser of splitmix64: a bijection of 64-bit integers that scatters its input."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permuted(place: int, n: int, key: int) -> int:
    """Which of range(n) stands at `place` in the order that `key` names. Bijective in place; 0 <=
    place < n."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for turn in range(4):
            left, right = right, left ^ (mix(right ^ mix(key + turn)) & low)
        place = left << half | right
        if place < n:
            return place


def epoch_key(seed: int, epoch: int) -> int:
    """The key of one epoch's order."""
    return mix(mix(seed & _MASK) ^ epoch)
