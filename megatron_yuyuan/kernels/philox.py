"""Philox4x32-10: random numbers as a function of a key and a position, the same on every layout.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the known answers in
the tests are Random123's. Everything random in a run comes from here: initial weights and dropout.
Nothing holds a state, so there is nothing to save in a checkpoint and nothing that could depend on
a rank. The words are the same on every device; normal numbers agree to the rounding of its log and
cos.
"""

import hashlib
import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
_CHUNK = 1 << 20


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words.

        counter  four tensors of one shape, words of the 128-bit counter, lowest first
        key      64-bit integer
        return   four tensors of that shape, random words in [0, 2**32)

    The 64-bit products wrap around in int64; their bits are the right ones.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & WORD, (key >> 32) & WORD
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD) ^ c1 ^ k0,
            p1 & WORD,
            ((p0 >> 32) & WORD) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def random_words(rows: Tensor, columns: int, key: int, step: int, site: int) -> Tensor:
    """One random word for every element of a matrix whose rows are numbered globally.

    rows     (...)  int64, the number of each row in the whole batch, whichever rank holds it
    columns  elements of a row; four neighbours share a counter
    step, site  the other two words of the counter: which optimizer step, which place in the model
    return   (..., columns)  int64 in [0, 2**32)
    """
    quads = -(-columns // 4)
    index = rows.unsqueeze(-1) * quads + torch.arange(quads, device=rows.device)
    fixed = torch.zeros_like(index)
    words = philox4x32((index & WORD, (index >> 32) & WORD, fixed + step, fixed + site), key)
    return torch.stack(words, dim=-1).flatten(-2)[..., :columns]


def name_key(seed: int, name: str) -> int:
    """The 64-bit key of one parameter's initial values."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


def normal(start: int, stop: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements [start, stop) of the endless sequence of standard normal numbers that `key` names.

    Box-Muller in float64, two numbers from two words; return (stop - start,) float32. Drawn a
    million at a time.
    """
    pieces = []
    for low in range(start // 4 * 4, stop, _CHUNK):
        rows = torch.arange(
            low // 4, -(-min(low + _CHUNK, stop) // 4), dtype=torch.int64, device=device
        )
        words = random_words(rows, 4, key, 0, 0).double()
        radius = torch.sqrt(-2.0 * torch.log((words[:, 0::2] + 0.5) * 2.0**-32))
        angle = words[:, 1::2] * (2.0 * math.pi * 2.0**-32)
        pair = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        pieces.append(pair.float().flatten())
    skip = start - start // 4 * 4
    return (
        torch.cat(pieces)[skip : skip + stop - start] if pieces else torch.empty(0, device=device)
    )
