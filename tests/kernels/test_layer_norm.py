"""Layer norm under the emulator, against float64: forward, backward with everything that shares its
pass, and the fused form behind a residual addition."""

import pytest
import torch
import torch.nn.functional as F
from kernels import emulated, parity
from kernels.emulated import DTYPES, SCHEDULES, launch, poisoned

from megatron_yuyuan.kernels import reference
from megatron_yuyuan.kernels.mask import DropoutMask

EPSILON = 1e-5
SHAPES = [(1, 8), (5, 1024), (3, 3072), (2, 3080), (4, 264)]  # (rows, columns)
"""One vector, whole warps, the 3.5B model, one vector more than a short row, a warp with a tail."""

CASES = [
    pytest.param(shape, dtype, schedule, id=f"{shape[0]}x{shape[1]}-{str(dtype)[6:]}-{schedule}")
    for shape in SHAPES
    for dtype in DTYPES
    for schedule in SCHEDULES
]


def matrices(rows, columns, dtype, count, seed=0):
    """`count` random matrices; every row has its own mean."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.linspace(-3, 3, rows)[:, None]
    return [
        (means + torch.randn(rows, columns, generator=generator)).to(dtype) for _ in range(count)
    ]


def vectors(columns, dtype, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(1 + 0.5 * torch.randn(columns, generator=generator)).to(dtype) for _ in range(count)]


def forward(x, weight, bias):
    rows, columns = x.shape
    y, mean, rstd = poisoned(rows, columns, dtype=x.dtype), poisoned(rows), poisoned(rows)
    name = "yuyuan_layer_norm"
    arguments = (x.dtype, x, weight, bias, y, mean, rstd, rows, columns, EPSILON)
    launch(name, *arguments)
    return y, mean, rstd


def backward(dy, dsum, x, weight, mean, rstd, mask=None, branch=False, blocks=2):
    """(dx, dweight, dbias[, dbranch, dbranch_bias])"""
    rows, columns = x.shape
    outputs = [poisoned(rows, columns, dtype=x.dtype)]
    outputs += [poisoned(columns, dtype=x.dtype) for _ in range(2)]
    if branch:
        outputs += [poisoned(rows, columns, dtype=x.dtype), poisoned(columns, dtype=x.dtype)]
    dx, dweight, dbias, dbranch, dbranch_bias = outputs if branch else [*outputs, None, None]
    partial = poisoned(len(outputs) // 2 + 1, blocks, columns)
    arguments = (
        x.dtype,
        dy,
        dsum,
        x,
        weight,
        mean,
        rstd,
        dx,
        dweight,
        dbias,
        dbranch,
        dbranch_bias,
    )
    tail = (emulated.dropout(mask), partial, blocks, rows, columns)
    launch("yuyuan_layer_norm_backward", *arguments, *tail)
    return outputs


def exact(x, weight, bias, dy, dsum):
    """y, and the gradients of x, weight and bias in float64; x goes on beside its norm."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = F.layer_norm(leaves[0], weight.shape, leaves[1], leaves[2], EPSILON)
    beside = torch.zeros_like(dy) if dsum is None else dsum
    torch.autograd.backward([y, leaves[0]], [dy.double(), beside.double()])
    return y.detach(), [leaf.grad for leaf in leaves]


def dropout_mask(rows, step=3):
    return DropoutMask(0.25, torch.arange(rows) * 7 + 2**31, key=2**40 + 5, step=step, site=11)


@pytest.mark.parametrize(("shape", "dtype", "schedule"), CASES)
def test_forward_and_backward_are_those_of_float64(shape, dtype, schedule):
    x, dy, dsum = matrices(*shape, dtype, 3)
    weight, bias = vectors(shape[1], dtype, 2)
    with emulated.schedule(schedule):
        y, mean, rstd = forward(x, weight, bias)
        gradients = backward(dy, dsum, x, weight, mean, rstd)
    expected, exact_gradients = exact(x, weight, bias, dy, dsum)
    parity.assert_near(y, expected, "y")
    parity.assert_near(mean, x.double().mean(-1), "mean")
    variance = x.double().var(-1, correction=0)
    parity.assert_near(rstd, (variance + EPSILON).rsqrt(), "rstd")
    for name, one, other in zip(
        ("dx", "dweight", "dbias"), gradients, exact_gradients, strict=True
    ):
        parity.assert_near(one, other, name)


@pytest.mark.parametrize(("shape", "dtype", "schedule"), CASES)
def test_with_a_branch_in_front_the_same_pass_returns_its_gradient(shape, dtype, schedule):
    x, dy = matrices(*shape, dtype, 2)
    weight, bias = vectors(shape[1], dtype, 2)
    mask = dropout_mask(shape[0])
    with emulated.schedule(schedule):
        _, mean, rstd = forward(x, weight, bias)
        dx, _, _, dbranch, dbranch_bias = backward(dy, None, x, weight, mean, rstd, mask, True)
    exact_dx = exact(x, weight, bias, dy, None)[1][0]
    exact_dbranch = exact_dx * mask.kept(shape[1]) / (1 - mask.p)
    parity.assert_near(dx, exact_dx, "dx")
    parity.assert_near(dbranch, exact_dbranch, "dbranch")
    parity.assert_near(dbranch_bias, exact_dbranch.sum(0), "dbranch_bias")


@pytest.mark.parametrize(("shape", "dtype", "schedule"), CASES)
def test_norm_of_a_sum_is_the_norm_of_the_sum_as_it_was_stored(shape, dtype, schedule):
    x, residual = matrices(*shape, dtype, 2)
    bias, weight, norm_bias = vectors(shape[1], dtype, 3)
    mask = dropout_mask(shape[0])
    total, y = poisoned(*shape, dtype=dtype), poisoned(*shape, dtype=dtype)
    mean, rstd = poisoned(shape[0]), poisoned(shape[0])
    arguments = (x, bias, residual, weight, norm_bias, total, y, mean, rstd)
    dropout = emulated.dropout(mask)
    with emulated.schedule(schedule):
        launch("yuyuan_bias_dropout_add_norm", dtype, *arguments, dropout, EPSILON, *shape)
        alone = forward(total, weight, norm_bias)
    assert torch.equal(total, reference.bias_dropout_add(x, bias, residual, mask))
    for fused, other in zip((y, mean, rstd), alone, strict=True):
        assert torch.equal(fused, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_far_from_zero_keeps_its_variance(dtype):
    """Mean 1,000 and spread 1, as exactly as the dtype holds it: sum(x^2) / n - mean^2 would lose
    the variance. The mean itself is float32, half a unit of 1,000 is 3e-5: of the spread, 15 times
    what ARITHMETIC allows of the largest element."""
    x = (1000 + torch.arange(2 * 1024).view(2, 1024) % 9).to(dtype)
    weight, bias = vectors(1024, dtype, 2)
    y, _, rstd = forward(x, weight, bias)
    expected = exact(x, weight, bias, x, None)[0]
    parity.assert_near(y, expected, "y", slack=20)
    variance = x.double().var(-1, correction=0)
    parity.assert_near(rstd, (variance + EPSILON).rsqrt(), "rstd")
    square = x.float().square().mean(-1) - x.float().mean(-1) ** 2
    assert parity.largest_error((square + EPSILON).rsqrt(), (variance + EPSILON).rsqrt()) > 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_blocks_changes_no_bit_of_dx_and_little_of_the_sums(dtype):
    shape = (9, 264)
    x, dy, dsum = matrices(*shape, dtype, 3)
    weight, bias = vectors(shape[1], dtype, 2)
    _, mean, rstd = forward(x, weight, bias)
    whole, *others = (
        backward(dy, dsum, x, weight, mean, rstd, dropout_mask(9), True, blocks)
        for blocks in (1, 2, 4, 20)  # 20: more than there are rows
    )
    sums = exact(x, weight, bias, dy, dsum)[1]
    for other in others:
        assert torch.equal(other[0], whole[0])
        assert torch.equal(other[3], whole[3])
        parity.assert_near(other[1], sums[1], "dweight")
        parity.assert_near(other[2], sums[2], "dbias")


def test_without_dropout_the_branch_has_the_gradient_of_the_sum():
    x, dy = matrices(3, 64, torch.float32, 2)
    weight, bias = vectors(64, torch.float32, 2)
    _, mean, rstd = forward(x, weight, bias)
    dx, _, _, dbranch, dbranch_bias = backward(dy, None, x, weight, mean, rstd, None, True)
    assert torch.equal(dbranch, dx)
    parity.assert_near(dbranch_bias, dx.double().sum(0), "dbranch_bias")


def test_blocks_are_what_a_multiprocessor_holds_and_not_more_than_rows():
    """768 threads of up to 3,072 columns by 8 to a thread, then 512 by 16."""
    count = emulated.kernels().yuyuan_norm_blocks
    held = {8: 24, 264: 12, 768: 8, 1024: 6, 2048: 3, 2056: 2, 3072: 2, 3080: 2, 4096: 2, 8192: 1}
    with emulated.schedule("forward", multiprocessors=5):
        assert {columns: count(9999, columns) / 5 for columns in held} == held
        assert [count(rows, 768) for rows in (0, 3)] == [0, 3]


def test_no_rows_have_no_norm_and_no_gradient():
    x, weight, bias = torch.empty(0, 8), torch.ones(8), torch.ones(8)
    forward(x, weight, bias)
    _, dweight, dbias = backward(x, x, x, weight, torch.empty(0), torch.empty(0), blocks=0)
    assert not dweight.any() and not dbias.any()


@pytest.mark.parametrize("columns", [0, 12, 8200])
def test_columns_that_no_block_can_hold_are_refused(columns):
    x, weight, bias = torch.ones(1, columns), torch.ones(columns), torch.ones(columns)
    with pytest.raises(emulated.LaunchError) as refused:
        forward(x, weight, bias)
    assert refused.value.code == emulated.INVALID_VALUE


def test_the_longest_row_is_accepted():
    x, dy = matrices(1, 8192, torch.bfloat16, 2)
    weight, bias = vectors(8192, torch.bfloat16, 2)
    y, mean, rstd = forward(x, weight, bias)
    expected, gradients = exact(x, weight, bias, dy, None)
    parity.assert_near(y, expected, "y")
    parity.assert_near(backward(dy, None, x, weight, mean, rstd)[0], gradients[0], "dx")
