"""Cross entropy under the emulator, against torch's in float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from kernels import emulated, parity
from torch import Tensor

from megatron_yuyuan.config import IGNORE

NEAR_150 = 2e-5
"""Logits lie around +-150, where float32 resolves 1.5e-5: as much of itself exp(logit - log_sum) may be
off, and by as much the loss, a difference of two such numbers."""

NAN = float("nan")


@dataclass(frozen=True)
class Shard:
    """The logits of one rank: those of the tokens first, first + 1, ..., and padding."""

    logits: Tensor
    first: int
    real: int

    def statistics(self, labels: Tensor) -> Tensor:
        """(largest, sum, target) of each row, (3, rows)."""
        rows, columns = self.logits.shape
        outputs = [emulated.poisoned(rows) for _ in range(3)]
        sizes = (rows, columns, self.first, self.real)
        arguments = (self.logits.dtype, self.logits, labels, *outputs, *sizes)
        emulated.launch("yuyuan_cross_entropy", *arguments)
        return torch.stack(outputs)

    def gradient(self, labels: Tensor, log_sum: Tensor, weight: Tensor) -> Tensor:
        """(rows, columns) of the logits' dtype."""
        gradient = self.logits.clone()
        sizes = (*gradient.shape, self.first, self.real)
        arguments = (gradient.dtype, gradient, labels, log_sum, weight, *sizes)
        emulated.launch("yuyuan_cross_entropy_gradient", *arguments)
        return gradient


def divided(logits: Tensor, columns: tuple[int, ...]) -> list[Shard]:
    """Logits (rows, vocabulary) on ranks that have so many columns each; the padding is NaN."""
    size, shards, first = logits.shape[1], [], 0
    for count in columns:
        real = min(max(size - first, 0), count)
        padding = logits.new_full((len(logits), count - real), NAN)
        held = torch.cat((logits[:, first : first + real], padding), 1)
        shards.append(Shard(held, first, real))
        first += count
    return shards


def together(shards: list[Shard], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum of exponentials, and the loss, of each row, over all ranks."""
    found = [shard.statistics(labels) for shard in shards]
    largest, sums, targets = torch.stack(found, 1)
    top = largest.amax(0)
    log_sum = top + (sums * torch.exp(largest - top)).sum(0).log()
    return log_sum, log_sum - targets.sum(0)


def draws(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (6, size), labels and weights (6,): none, the last column, the middle, the first."""
    draw = torch.Generator().manual_seed(size)
    labels = torch.tensor([IGNORE, size - 1, size // 2, max(size // 2 - 1, 0), 0, size // 3])
    center = torch.linspace(-150, 150, 6)[:, None]
    logits = (torch.randn(6, size, generator=draw) * 4 + center).to(dtype)
    weight = torch.rand(6, generator=draw) + 0.1
    return logits, labels, weight.where(labels != IGNORE, 0.0)


def check(columns: tuple[int, ...], size: int, dtype, schedule="forward"):
    """Ranks that have so many columns each, of a vocabulary of `size`, find torch's loss and gradient;
    returns theirs."""
    logits, labels, weight = draws(size, dtype)
    shards = divided(logits, columns)
    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(exact, labels, reduction="none", ignore_index=IGNORE)
    loss.backward(weight.double())
    with emulated.schedule(schedule):
        log_sum, found = together(shards, labels)
        parts = [shard.gradient(labels, log_sum, weight) for shard in shards]
    gradient = torch.cat(parts, 1)
    assert (found - loss)[labels != IGNORE].abs().max() <= NEAR_150
    parity.assert_near(gradient[:, :size], exact.grad, "gradient", arithmetic=NEAR_150)
    assert (gradient[:, size:] == 0).all()
    return found, gradient


@pytest.mark.parametrize("dtype", emulated.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("columns", "size"),
    [
        ((8,), 1),
        ((8, 8), 8),  # the second rank has nothing but padding
        ((24, 16), 37),
        ((1600, 1600), 3199),
        ((4136,), 4121),  # in every dtype more than a vector to each of a block's threads
    ],
)
def test_the_ranks_together_find_torchs_loss_and_gradient(columns, size, dtype):
    results = [check(columns, size, dtype, schedule) for schedule in emulated.SCHEDULES]
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_a_label_one_column_off_would_be_seen():
    logits, labels, weight = draws(37, torch.bfloat16)
    (shard,) = divided(logits, (40,))
    log_sum, _ = together([shard], labels)
    right, wrong = (shard.gradient(labels + i, log_sum, weight) for i in (0, 1))
    assert parity.largest_error(wrong, right, arithmetic=NEAR_150) > 10


@pytest.mark.parametrize("dtype", emulated.DTYPES, ids=str)
def test_the_statistics_of_a_shard(dtype):
    logits, labels, _ = draws(37, dtype)
    largest, total, target = divided(logits, (24, 16))[1].statistics(labels)
    here = logits[:, 24:].double()
    assert torch.equal(largest.double(), here.amax(1))
    parity.assert_near(total, torch.exp(here - here.amax(1, keepdim=True)).sum(1), "sum")
    elsewhere = labels < 24
    assert elsewhere.tolist() == [True, False, True, True, True, True]
    assert target[1] == logits[1, 36]
    assert (target[elsewhere] == 0).all()


def test_a_rank_of_padding_alone_adds_nothing():
    nothing, labels = Shard(torch.full((2, 8), NAN), 50304, 0), torch.tensor([3, 50304])
    assert nothing.statistics(labels).tolist() == [[-torch.inf] * 2, [0, 0], [0, 0]]
    assert (nothing.gradient(labels, torch.ones(2), torch.ones(2)) == 0).all()


def test_logits_that_are_not_finite():
    """-inf is a token that never comes; NaN makes the loss NaN, wherever it stands."""
    logits = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2000, 0, 2047])
    logits[0, :1030] = -torch.inf  # all that some threads see
    logits[1, 2047] = logits[2, :2047] = NAN
    _, loss = together(divided(logits, (2048,)), labels)
    assert abs(loss[0] - F.cross_entropy(logits[0].double(), labels[0])) < 2e-6
    assert loss.isnan().tolist() == [False, True, True]


def test_a_row_of_weight_0_is_written_without_being_read():
    shard, zero, one = Shard(torch.full((1, 16), NAN), 0, 16), torch.zeros(1), torch.ones(1)
    assert (shard.gradient(torch.tensor([IGNORE]), zero, zero) == 0).all()
    assert shard.gradient(torch.tensor([1]), zero, one).isnan().all()


@pytest.mark.parametrize(("columns", "real"), [(12, 12), (8, 9), (8, -1)])
def test_columns_that_are_not_there_are_refused(columns, real):
    shard, some = Shard(torch.zeros(1, columns), 0, real), torch.zeros(1)
    for refuse in (Shard.statistics, lambda s, labels: s.gradient(labels, some, some)):
        with pytest.raises(emulated.LaunchError) as refused:
            refuse(shard, torch.tensor([0]))
        assert refused.value.code == emulated.INVALID_VALUE
