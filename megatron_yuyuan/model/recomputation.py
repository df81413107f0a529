"""Activation recomputation: what a part of the model computes in the forward is not kept, but computed
again in the backward.

The same numbers come out: dropout is a function of a counter, so there is no random state to put
back. Source: Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al. 2022,
arXiv:2205.05198, section 5.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Recomputation:
    """Which parts of a stage are recomputed. Megatron-LM's names and meanings."""

    granularity: str = "none"
    """selective: the core of every attention (scores, softmax, dropout, values); full: whole blocks."""
    method: str = "none"
    """full by uniform: all blocks, num_layers at a time, of which only the input is kept; by block: the
    first num_layers of the stage, one at a time."""
    num_layers: int = 0
    """See method."""

    def through(self, blocks: list[nn.Module], x: Tensor, inputs) -> Tensor:
        """x (B, T, C) through the blocks, with the other argument that each of them takes."""
        for run, again in self.runs(blocks):
            forward = recomputed(_through) if again else _through
            x = forward(run, x, inputs)
        return x

    def runs(self, blocks: list[nn.Module]) -> list[tuple[list[nn.Module], bool]]:
        """All blocks in order, in consecutive runs, and whether a run is recomputed as one."""
        if self.granularity != "full":
            return [(blocks, False)]
        if self.method == "block":
            first, others = blocks[: self.num_layers], blocks[self.num_layers :]
            return [([block], True) for block in first] + [(others, False)]
        starts = range(0, len(blocks), self.num_layers)
        return [(blocks[start : start + self.num_layers], True) for start in starts]


def _through(blocks: list[nn.Module], x: Tensor, inputs) -> Tensor:
    for block in blocks:
        x = block(x, inputs)
    return x


def recomputed(function):
    """The same function, which keeps nothing but its arguments for the backward."""

    def again(*arguments):
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    return again
