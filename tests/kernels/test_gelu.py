"""bias + GeLU under the emulator, against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from kernels import emulated, parity
from kernels.emulated import DTYPES, SCHEDULES, launch, poisoned

SHAPES = [(1, 8), (5, 1024), (2, 3072), (7, 1032)]  # (rows, columns)
CASES = [
    pytest.param(shape, dtype, schedule, id=f"{shape[0]}x{shape[1]}-{str(dtype)[6:]}-{schedule}")
    for shape in SHAPES
    for dtype in DTYPES
    for schedule in SCHEDULES
]


def random(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bias_gelu(x, bias):
    y = poisoned(*x.shape, dtype=x.dtype)
    launch("yuyuan_bias_gelu", x.dtype, x, bias, y, *x.shape)
    return y


def backward(dy, x, bias, blocks=2):
    """(dx, dbias)"""
    rows, columns = x.shape
    dx, dbias = poisoned(rows, columns, dtype=x.dtype), poisoned(columns, dtype=x.dtype)
    arguments = (x.dtype, dy, x, bias, dx, dbias, poisoned(blocks, columns), blocks, rows, columns)
    launch("yuyuan_bias_gelu_backward", *arguments)
    return dx, dbias


def exact(x, bias, dy):
    """(y, dx) in float64."""
    u = (x.double() + bias.double()).requires_grad_()
    y = F.gelu(u, approximate="tanh")
    return y.detach(), torch.autograd.grad(y, u, dy.double())[0]


@pytest.mark.parametrize(("shape", "dtype", "schedule"), CASES)
def test_forward_and_backward_are_those_of_float64(shape, dtype, schedule):
    x, dy = 2 * random(*shape, dtype=dtype, seed=0), random(*shape, dtype=dtype, seed=1)
    bias = random(shape[1], dtype=dtype, seed=2)
    with emulated.schedule(schedule):
        y = bias_gelu(x, bias)
        dx, dbias = backward(dy, x, bias)
    expected, exact_dx = exact(x, bias, dy)
    parity.assert_near(y, expected, "y")
    parity.assert_near(dx, exact_dx, "dx")
    parity.assert_near(dbias, exact_dx.sum(0), "dbias")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_from_zero_gelu_is_zero_or_the_identity(dtype):
    x = torch.tensor([[-60000.0, -1000, -30, 0, 10, 30, 1000, 60000]]).to(dtype)
    bias = torch.zeros(8, dtype=dtype)
    assert torch.equal(bias_gelu(x, bias), x.clamp_min(0))
    dx, dbias = backward(torch.ones_like(x), x, bias, blocks=1)
    assert torch.equal(dx[0], torch.tensor([0, 0, 0, 0.5, 1, 1, 1, 1], dtype=dtype))
    assert torch.equal(dbias, dx[0])


def test_where_the_exponential_overflows_there_is_no_nan():
    x, bias = torch.tensor([[-1e18, -1e6, -11, -10, 10, 11, 1e6, 1e18]]), torch.zeros(8)
    dx, _ = backward(torch.ones_like(x), x, bias, blocks=1)
    for actual, expected in zip(
        (bias_gelu(x, bias), dx), exact(x, bias, torch.ones_like(x)), strict=True
    ):
        assert (actual - expected).abs().max() < 1e-30


def test_far_below_zero_small_values_keep_their_digits():
    """Where 1 + tanh cancels: of some of these values torch's float32 has no digit right."""
    x, bias = torch.linspace(-9, -4, 512)[None], torch.zeros(512)
    u = x.double().requires_grad_()
    expected = u * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))
    [slope] = torch.autograd.grad(expected.sum(), u)
    dx, _ = backward(torch.ones_like(x), x, bias, blocks=1)
    for actual, wanted in ((bias_gelu(x, bias), expected), (dx, slope)):
        assert (actual / wanted - 1).abs().max() < 2e-5
    assert (F.gelu(x, approximate="tanh") / expected - 1).abs().max() > 0.5


def test_the_error_of_cudas_fast_exponential_is_below_float32s_own():
    """(2 + 1.173 |x|) units in the last place, says the CUDA C++ Programming Guide of __expf(x); either
    way, on all that depends on it."""
    u = torch.linspace(-13, 13, 200001, dtype=torch.float64)
    z = 2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
    slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * u**2)

    def results(units):
        e = torch.exp(-z) * (1 + units * (2 + 1.173 * z.abs()) * 2**-23)
        s = 1 / (1 + e)
        return u * s, s + u * s * (1 - s) * slope

    for units in (-1, 1):
        for off, right in zip(results(units), results(0), strict=True):
            assert 5e-8 < (off - right).abs().max() < 7e-8


def test_the_size_of_the_device_and_the_number_of_blocks_change_no_bit_of_y_and_dx():
    x, dy = (random(40, 1032, dtype=torch.float32, seed=seed) for seed in (0, 1))
    bias = random(1032, dtype=torch.float32, seed=2)
    results = []
    for multiprocessors, blocks in [(1, 1), (2, 3), (132, 60)]:
        with emulated.schedule("forward", multiprocessors=multiprocessors):
            results.append((bias_gelu(x, bias), *backward(dy, x, bias, blocks)))
    exact_dbias = exact(x, bias, dy)[1].sum(0)
    for y, dx, dbias in results:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])
        parity.assert_near(dbias, exact_dbias, "dbias")
