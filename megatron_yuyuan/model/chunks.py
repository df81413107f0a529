"""How many tokens the loss takes at a time, without torch: the planner asks too."""

LOGITS_AT_A_TIME = 1 << 24
"""Logits that the loss holds at once, 64 MiB in float32: large enough for the matrix products to run
at full speed, small beside the activations of a layer."""
LOGITS_ON_CUDA = 1 << 27
"""The same there, 256 MiB in half precision: each chunk reads the head's weight and adds to its
gradient, which a GPU waits for unless the chunk is long."""
TILE = 64
"""Tokens of a long chunk are a multiple of this: matrix products work in tiles."""


def chunk_length(columns: int, limit: int) -> int:
    """Tokens whose logits are within the limit: one at least, whole TILEs if that many."""
    length = max(1, limit // columns)
    return length - length % TILE if length > TILE else length
