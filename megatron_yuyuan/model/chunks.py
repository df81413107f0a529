"""How many tokens the loss takes at a time, without torch: the planner asks too."""

import math

LOGITS_AT_A_TIME = 1 << 24
"""Logits that the loss holds at once, 64 MiB in float32: large enough for the matrix products to run
at full speed, small beside the activations of a layer."""
LOGITS_ON_CUDA = 1 << 28
"""The same there, 512 MiB in half precision: each chunk reads the head's weight and adds to its
gradient, which a GPU waits for unless the chunk is long."""
TILE = 64
"""Tokens of a long chunk are a multiple of this: matrix products work in tiles."""


def chunk_length(tokens: int, columns: int, limit: int) -> int:
    """How many of the tokens at a time, of so many logits each, are within the limit: one at least, whole
    TILEs if that many. The chunks are about as long as each other, since a short one at the end would leave
    much of a GPU without work."""
    most = max(1, limit // columns)
    if most <= TILE:
        return min(most, tokens)
    most -= most % TILE
    even = math.ceil(tokens / math.ceil(tokens / most))
    return min(tokens, TILE * math.ceil(even / TILE))
