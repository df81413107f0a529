"""AdamW and the gradient norm under the emulator, against torch's."""

import ctypes
from dataclasses import dataclass

import pytest
import torch
from kernels import emulated, parity
from torch import Tensor

RATE, EPSILON, COEFFICIENT = 0.05, 1e-8, 0.5
RELATIVE = 1e-6
"""Of the largest element: some ten roundings to float32 of numbers of its size."""

LAYOUTS = {  # how far parameter, moments and gradient begin from 16 bytes, in elements
    "aligned": (0, 0, 0, 0),
    "unaligned": (1, 2, 3, 1),
    "gradient unaligned": (0, 0, 0, 3),
}
COUNTS = [1, 3, 4, 777, 1029]
"""Elements of the pieces; 1029: more than a vector to each of a block's threads, and a tail."""


class Piece(ctypes.Structure):
    """yuyuan_piece."""

    _fields_ = [
        ("parameter", ctypes.c_void_p),
        ("exp_avg", ctypes.c_void_p),
        ("exp_avg_sq", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("weight_decay", ctypes.c_float),
        ("counted", ctypes.c_int),
    ]


@dataclass
class Shard:
    """What a piece points to: parameter, exp_avg, exp_avg_sq and gradient, each in a buffer of NaN."""

    arrays: list[Tensor]
    buffers: list[Tensor]
    weight_decay: float
    counted: bool

    @property
    def gradient(self) -> Tensor:
        return self.arrays[3]

    def piece(self) -> Piece:
        pointers = [array.data_ptr() for array in self.arrays]
        return Piece(*pointers, len(self.gradient), self.weight_decay, self.counted)


def shard(count: int, layout="aligned", weight_decay: float = 0.1, counted: bool = True) -> Shard:
    draw = torch.Generator().manual_seed(count)
    parameter, exp_avg, exp_avg_sq, gradient = torch.randn(4, count, generator=draw)
    values = (parameter, exp_avg * 0.1, exp_avg_sq.square() * 0.01, gradient)
    buffers = [emulated.poisoned(count + 8) for _ in values]
    assert all(buffer.data_ptr() % 16 == 0 for buffer in buffers)
    starts = [4 + offset for offset in LAYOUTS[layout]]
    arrays = [
        buffer[start : start + count].copy_(value)
        for buffer, start, value in zip(buffers, starts, values, strict=True)
    ]
    return Shard(arrays, buffers, weight_decay, counted)


def table(shards: list[Shard]) -> Tensor:
    """One piece after the other, as bytes."""
    pieces = (Piece * len(shards))(*[s.piece() for s in shards])
    return torch.frombuffer(bytearray(pieces), dtype=torch.uint8)


def step(shards, number: int, betas=(0.9, 0.95), coefficient=COEFFICIENT) -> None:
    """The optimizer's step of this number, from 1."""
    corrections = [1 - beta**number for beta in betas]
    arguments = (torch.tensor([coefficient]), RATE, *betas, EPSILON, *corrections)
    emulated.launch("yuyuan_adamw", table(shards), len(shards), *arguments)


def squared_norm(shards: list[Shard]) -> Tensor:
    partial, total = (emulated.poisoned(n, dtype=torch.float64) for n in (len(shards), 1))
    arguments = (table(shards), len(shards), partial, total)
    emulated.launch("yuyuan_squared_norm", *arguments)
    return total


def torchs_steps(s: Shard, dtype: torch.dtype, numbers: range, betas) -> list[Tensor]:
    """Parameter and moments after these steps of torch.optim.AdamW, all in dtype."""
    parameter, exp_avg, exp_avg_sq, gradient = (a.to(dtype, copy=True) for a in s.arrays)
    parameter.requires_grad_()
    fused = dtype == torch.float32
    optimizer = torch.optim.AdamW([parameter], RATE, betas, EPSILON, s.weight_decay, fused=fused)
    count = torch.tensor(numbers.start - 1.0)
    optimizer.state[parameter] = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step": count}
    parameter.grad = gradient * COEFFICIENT
    for _ in numbers:
        optimizer.step()
    return [parameter.detach(), exp_avg, exp_avg_sq]


def check_steps(layout="aligned", betas=(0.9, 0.95), schedule="forward") -> Tensor:
    """Steps 2, 3 and 4 are torch's; returns the parameters."""
    shards = [shard(n, layout, weight_decay=0.1 * (n % 2)) for n in COUNTS]
    before = [s.arrays[0].clone() for s in shards]
    expected = [
        (s, torchs_steps(s, dtype, range(2, 5), betas))
        for s in shards
        for dtype in (torch.float32, torch.float64)
    ]
    with emulated.schedule(schedule):
        for number in range(2, 5):
            step(shards, number, betas)
    for s, wanted in expected:
        for name, array, exact in zip(("p", "m", "v"), s.arrays, wanted, strict=False):
            parity.assert_near(array, exact, name, arithmetic=RELATIVE)
    for s, old in zip(shards, before, strict=True):
        assert (s.arrays[0] - old).abs().max() > 1e-2
        assert all(int(buffer.isnan().sum()) == 8 for buffer in s.buffers)  # none beside a shard
    return torch.cat([s.arrays[0] for s in shards])


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_steps_are_torchs(layout, betas):
    results = [check_steps(layout, betas, schedule) for schedule in emulated.SCHEDULES]
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_last_bits_of_a_beta_are_not_lost():
    """1 - 0.999 from a float32 0.999 would be off by 1.3e-5 of itself."""
    s = shard(64)
    s.arrays[2].zero_()
    expected = torchs_steps(s, torch.float64, range(1, 2), (0.9, 0.999))[2]
    step([s], 1, (0.9, 0.999))
    parity.assert_near(s.arrays[2], expected, "v", arithmetic=2e-7)
    assert parity.largest_error((expected * (1 - 1.3e-5)).float(), expected, 2e-7) > 10


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf"), -float("inf")])
def test_a_coefficient_that_is_not_finite_changes_nothing(coefficient):
    shards = [shard(n) for n in COUNTS]
    before = [array.clone() for s in shards for array in s.arrays]
    step(shards, 1, coefficient=coefficient)
    assert all(map(torch.equal, [array for s in shards for array in s.arrays], before))
    step(shards, 1)
    assert not torch.equal(shards[0].arrays[0], before[0])


def check_squared_norm(layout="aligned") -> None:
    """It counts every element of the counted gradients, and has the same bits under every schedule and
    on every device."""
    shards = [shard(n, layout, counted=n != 777) for n in COUNTS]
    expected = sum(s.gradient.double().square().sum() for s in shards if s.counted)
    totals = []
    for devices, schedule in enumerate(emulated.SCHEDULES, start=1):
        with emulated.schedule(schedule, multiprocessors=devices):
            totals.append(squared_norm(shards))
    assert abs(totals[0] - expected) <= 1e-14 * expected  # float64: some thousand additions
    assert all(torch.equal(total, totals[0]) for total in totals)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_squared_norm_counts_every_element_in_one_order(layout):
    check_squared_norm(layout)


def test_more_pieces_than_the_second_stage_has_threads():
    shards = [shard(1 + i % 3) for i in range(259)]
    expected = sum(s.gradient.double().square().sum() for s in shards)
    assert abs(squared_norm(shards) - expected) <= 1e-14 * expected


def test_the_squared_norm_is_finite_where_the_gradient_is():
    shards = [shard(n) for n in (5, 777)]
    shards[1].gradient[700] = 1e30  # its square is beyond float32
    assert abs(squared_norm(shards) / shards[1].gradient[700].double() ** 2 - 1) < 1e-12
    for bad in (float("nan"), float("inf"), -float("inf")):
        shards[1].gradient[776] = bad
        assert not squared_norm(shards).isfinite()
