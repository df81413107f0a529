"""The bytes of every tensor that lives, counted while real code runs: on real tensors and on fake ones.

A storage is counted from the operator that makes it until nobody holds it. What an operator takes and
gives back by itself, an allocator's rounding and a library's buffers are not tensors, and not seen.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.autograd import graph as autograd
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_yuyuan.kernels.adamw import local

ACTIVATIONS, GATHERED, OTHER = "activations", "gathered", "other"


class LiveMemory(TorchDispatchMode):
    """Counts inside: now, and at the moment when most lived.

    Each storage belongs to a part: what `include` says; `activations` what autograd keeps for a
    backward; `gathered` what is given memory and loses it again by being resized, as FSDP2 does with
    gathered weights; `other` everything else.
    """

    def __init__(self):
        super().__init__()
        self.now: Counter[str] = Counter()
        """Part -> bytes."""
        self.at_peak: Counter[str] = Counter()
        """The same at the peak."""
        self.peak = 0
        self._part_of: dict[int, str] = {}
        self._bytes_of: dict[int, int] = {}
        self._watched: dict[int, weakref.ref] = {}
        self._looks_away = False
        self._resize = torch.UntypedStorage.resize_
        self._try_shapes = ShardingPropagator._propagate_tensor_meta_non_cached
        self._watching = ExitStack()

    def __enter__(self):
        enter, saved_tensors_hooks = self._watching.enter_context, autograd.saved_tensors_hooks
        enter(replaced(torch.UntypedStorage, self._resize, lambda *a: self._resized(*a)))
        enter(replaced(ShardingPropagator, self._try_shapes, lambda *a, **o: self._unseen(*a, **o)))
        enter(saved_tensors_hooks(self._keep, lambda tensor: tensor))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._watching.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a DTensor runs operators on what it holds, and those come here
        result = function(*args, **(kwargs or {}))
        if self._looks_away:
            return result
        for leaf in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage(), OTHER)
        self._look()
        return result

    def include(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors in a part that are not counted yet, or in `other`."""
        for tensor in tensors:
            self._claim(local(tensor).untyped_storage(), part)
        self._look()

    def _see(self, storage: torch.UntypedStorage, part: str) -> int:
        """Count a storage if it is new; return its number."""
        number = storage._cdata
        if number not in self._part_of:
            self._part_of[number], self._bytes_of[number] = part, storage.nbytes()
            self.now[part] += storage.nbytes()
            self._watched[number] = weakref.ref(storage, lambda _: self._forget(number))
        return number

    def _forget(self, number: int) -> None:
        del self._watched[number]
        self.now[self._part_of.pop(number)] -= self._bytes_of.pop(number)

    def _claim(self, storage: torch.UntypedStorage, part: str) -> int:
        number = self._see(storage, part)
        if self._part_of[number] == OTHER:
            self.now[OTHER] -= self._bytes_of[number]
            self.now[part] += self._bytes_of[number]
            self._part_of[number] = part
        return number

    def _keep(self, tensor: Tensor) -> Tensor:
        """What autograd keeps, unless it is part of something that lives anyway. Without its history: an
        operator that keeps its own result would never be forgotten."""
        self._claim(local(tensor).untyped_storage(), ACTIVATIONS)
        return tensor.detach().requires_grad_(tensor.requires_grad)

    def _resized(self, storage: torch.UntypedStorage, size: int) -> None:
        number = self._claim(storage, GATHERED)
        self._resize(storage, size)
        self.now[self._part_of[number]] += storage.nbytes() - self._bytes_of[number]
        self._bytes_of[number] = storage.nbytes()
        self._look()

    def _unseen(self, *arguments, **options):
        """DTensor's try of a new operator on tensors of whole shapes that take no memory."""
        self._looks_away = True
        try:
            return self._try_shapes(*arguments, **options)
        finally:
            self._looks_away = False

    def _look(self) -> None:
        if (total := self.now.total()) > self.peak:
            self.peak, self.at_peak = total, self.now.copy()


@contextmanager
def replaced(owner: type, method: Callable, by: Callable) -> Iterator[None]:
    """Have a class of torch's another method inside, where it offers no hook."""
    setattr(owner, method.__name__, by)
    try:
        yield
    finally:
        setattr(owner, method.__name__, method)
