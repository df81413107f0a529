"""Causal softmax under the emulator, against float64."""

import pytest
import torch
from kernels import emulated, parity
from torch import Tensor

SCALE = 0.125
NEAR_170 = 2e-5
"""Scaled scores lie within +-170, where float32 resolves 1.5e-5: as much of itself their exponential may
be off."""


def visible(queries: int, columns: int) -> Tensor:
    """(queries, columns): the queries are the last tokens."""
    return torch.ones(queries, columns).tril(columns - queries).bool()


def softmax(scores: Tensor, scale: float = SCALE) -> Tensor:
    """scores, return (N, T, S)."""
    weights = emulated.poisoned(*scores.shape, dtype=scores.dtype)
    sizes = (scores[..., 0].numel(), *scores.shape[1:], scale)
    arguments = (scores.dtype, scores, weights, *sizes)
    emulated.launch("yuyuan_causal_softmax", *arguments)
    return weights


def backward(dweights: Tensor, weights: Tensor, scale: float = SCALE) -> Tensor:
    """All (N, T, S)."""
    dscores = emulated.poisoned(*weights.shape, dtype=weights.dtype)
    sizes = (weights[..., 0].numel(), *weights.shape[1:], scale)
    arguments = (weights.dtype, dweights, weights, dscores, *sizes)
    emulated.launch("yuyuan_causal_softmax_backward", *arguments)
    return dscores


def check(matrices: int, queries: int, columns: int, dtype, schedule="forward"):
    """Weights and gradient of random scores, NaN where the mask hides them, are right; returns both."""
    draw = torch.Generator().manual_seed(columns)
    seen = visible(queries, columns).expand(matrices, -1, -1)
    center = torch.linspace(-1200, 1200, matrices * queries).view(matrices, queries, 1)
    scores = (torch.randn(matrices, queries, columns, generator=draw) * 32 + center).to(dtype)
    dweights = torch.randn(scores.shape, generator=draw).to(dtype)
    hidden_scores, hidden_dweights = (x.where(seen, torch.nan) for x in (scores, dweights))
    with emulated.schedule(schedule):
        weights = softmax(hidden_scores)
        dscores = backward(hidden_dweights, weights)
    exact = (scores.double() * SCALE).where(seen, -torch.inf).softmax(-1)
    parity.assert_near(weights, exact, "weights", arithmetic=NEAR_170)
    w, dw = weights.double(), dweights.double()
    parity.assert_near(dscores, SCALE * w * (dw - (w * dw).sum(-1, keepdim=True)), "dscores")
    assert (weights[~seen] == 0).all()
    assert (dscores[~seen] == 0).all()
    return weights, dscores


@pytest.mark.parametrize("dtype", emulated.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("matrices", "queries", "columns"),
    [
        (3, 1, 8),  # one query
        (2, 8, 8),
        (1, 5, 16),  # the last five of sixteen tokens; the second block has one row
        (1, 3, 264),  # one vector more than a warp's lanes hold one of each
        (1, 2, 1024),
        (1, 6, 1800),
        (1, 1, 2048),  # all that fits
    ],
)
def test_weights_and_gradient_under_every_schedule(matrices, queries, columns, dtype):
    shape = (matrices, queries, columns)
    results = [check(*shape, dtype, schedule) for schedule in emulated.SCHEDULES]
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_both_follow_torchs_autograd():
    scores, dweights = torch.randn(2, 4, 9, 16, generator=torch.Generator().manual_seed(0))
    exact = scores.double().requires_grad_()
    expected = (exact * 0.3).where(visible(9, 16), -torch.inf).softmax(-1)
    expected.backward(dweights.double())
    weights = softmax(scores, 0.3)
    parity.assert_near(weights, expected, "weights")
    parity.assert_near(backward(dweights, weights, 0.3), exact.grad, "dscores")
    one_less = (exact * 0.3).where(visible(9, 16).roll(1, 0), -torch.inf).softmax(-1)
    assert parity.largest_error(weights[:, 1:], one_less[:, 1:]) > 10


@pytest.mark.parametrize(("queries", "columns"), [(1, 2056), (1, 12), (16, 8), (0, 8)])
@pytest.mark.parametrize("run", [softmax, lambda x: backward(x, x)], ids=["forward", "backward"])
def test_rows_that_do_not_fit_are_refused(run, queries, columns):
    with pytest.raises(emulated.LaunchError) as refused:
        run(torch.zeros(2, queries, columns))
    assert refused.value.code == emulated.INVALID_VALUE
