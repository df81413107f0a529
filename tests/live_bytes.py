"""How much memory tensors take at once."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """The most bytes that the tensors made meanwhile have held at once; storages count once."""

    def __init__(self):
        super().__init__()
        self._alive, self.peak = WeakIdKeyDictionary(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._alive[leaf.untyped_storage()] = leaf.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def peak(work: Callable[[], object]) -> int:
    """Of what `work` makes."""
    with LiveBytes() as live:
        work()
    return live.peak
