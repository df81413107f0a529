"""SAVE/digests.jsonl (--log-digests): one line a step that is equal where every bit of a run's state is.

    {"event": "digest", "schema": 1, "iteration": 4, "model": "5f0c...", "moments": "...", "rest": "...",
     "sha256": "..."}

model: every parameter; moments: AdamW's; rest: steps and samples taken, steps that AdamW has seen, key of
everything random, steps passed over, losses remembered, loss scale; sha256: of the three. There is a line
when a run starts, of the state that it starts from, and one after each step, before it is saved.

Nothing is gathered but a few bytes a tensor, and no layout shows in a digest: a tensor's is the sum

    sum over its elements of (2 m(i) + 1) b(i)  mod 2**64,    i: place in the whole tensor, b: its bits

which every rank forms over its own part. m scatters the places over 64 bits (the finalizer of splitmix64:
Steele, Lea, Flood, OOPSLA 2014). The factors are odd, so one element that differs always changes the sum;
several leave it as it was with a chance of about 2**-64. All copies of a part are looked at: of copies
that differ each is added. The table of the sums by names has the sha256.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.config import Config
from megatron_yuyuan.log import MetricsFile
from megatron_yuyuan.train.state import TrainState

DIGESTS = "digests.jsonl"
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integers that show its bits."""
PORTION = 1 << 22
"""Elements that are looked at together: 32 MiB for each of a few int64 tensors."""


@contextmanager
def open_digests(config: Config, state: TrainState) -> Iterator[Callable[[], None]]:
    """What every rank calls to note the digest of the state as it is; without --log-digests it does
    nothing. It raises DataError where the disk refuses."""
    if not config.logging.log_digests:
        yield lambda: None
        return
    with closing(MetricsFile(Path(config.checkpoint.save) / DIGESTS)) as file:

        def note() -> None:
            digests = state_digests(state, config.training.seed)
            if state.mesh.is_main:
                file.event("digest", {"iteration": state.iteration, **digests})

        yield note


def state_digests(state: TrainState, seed: int) -> dict[str, str]:
    """The digests of the parts of a state, and of the whole, in hexadecimal; the same on every rank."""
    sums = tensor_sums(state.tensors())
    rest = {
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "optimizer_steps": state.optimizer_steps,
        "random_key": seed,
        **state.history(),
    }
    rest.pop("evaluation_due")  # a run that was stopped evaluates later, and computes the same
    digests = {
        "model": _sha256({n: v for n, v in sums.items() if n.startswith("model.")}),
        "moments": _sha256({n: v for n, v in sums.items() if not n.startswith("model.")}),
        "rest": _sha256(rest),
    }
    return {**digests, "sha256": _sha256(digests)}


@torch.no_grad()
def tensor_sums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Name -> sum of each tensor of the job, on every rank. tensors: DTensors or plain, as they lie on this
    rank; a name may be on several."""
    parts = {(name, _offset(tensor)): _local_sum(tensor) for name, tensor in tensors.items()}
    values = torch.stack(list(parts.values())).tolist() if parts else []  # the device waits once
    copies: dict[tuple, set[int]] = {}
    for mine in Ranks().all_gather_object(dict(zip(parts, values, strict=True))):
        for part, value in mine.items():
            copies.setdefault(part, set()).add(value)
    sums: dict[str, int] = {}
    for (name, _), found in copies.items():
        sums[name] = (sums.get(name, 0) + sum(found)) % 2**64
    return sums


def _offset(tensor: Tensor) -> tuple[int, ...]:
    """Where this rank's part begins in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.dim()
    mesh, placements = tensor.device_mesh, tensor.placements
    _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return tuple(offset)


def _local_sum(tensor: Tensor) -> Tensor:
    """() int64: the sum over this rank's part of a tensor."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    total = torch.zeros((), dtype=torch.int64, device=local.device)
    if not local.numel():
        return total
    shape, offset = tensor.shape or (1,), _offset(tensor) or (0,)
    local = local.view(BITS[local.element_size()]).reshape(local.shape or (1,))
    rows = max(1, PORTION // math.prod(local.shape[1:]))
    for first in range(0, len(local), rows):
        bits = local[first : first + rows]
        places = _places(bits, shape, (first + offset[0], *offset[1:]))
        total += torch.sum((2 * _scattered(places) + 1) * bits)
    return total


def _places(part: Tensor, shape: tuple[int, ...], offset: tuple[int, ...]) -> Tensor:
    """Of each element of a part that begins at `offset`, its number in the whole tensor; int64."""
    places = torch.zeros((), dtype=torch.int64, device=part.device)
    for size, first, whole in zip(part.shape, offset, shape, strict=True):
        along = torch.arange(first, first + size, device=part.device)
        places = places.unsqueeze(-1) * whole + along
    return places


def _scattered(number: Tensor) -> Tensor:
    """splitmix64's finalizer of int64 numbers, which hold 64 bits and wrap around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ _shifted(number, shift)) * (factor - 2**64)
    return number ^ _shifted(number, 31)


def _shifted(number: Tensor, bits: int) -> Tensor:
    """Right by so many bits, zeros from the left."""
    return (number >> bits) & (2 ** (64 - bits) - 1)


def _sha256(document: dict) -> str:
    """Of a document of plain values; floats are written with repr, so equal strings mean equal bits."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
