"""What the reference says beyond what torch's own operators say."""

from dataclasses import replace

import pytest
import torch

from megatron_yuyuan.kernels import DropoutMask, reference

MASK = DropoutMask(p=0.1, rows=torch.arange(400).view(4, 100), key=9, step=1, site=0)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_p_and_keeps_the_mean(p):
    x, mask = torch.ones(4, 100, 1000), replace(MASK, p=p)
    y = reference.dropout(x, mask)
    assert abs((y == 0).float().mean() - p) < 3e-3
    assert abs(y.mean() - 1) < 1e-2
    assert torch.equal(y, reference.dropout(x, mask))
    assert not torch.equal(y, reference.dropout(x, replace(mask, step=2)))


def draws(*shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    """x, residual of a shape; bias, weight and another bias of its columns."""
    draw = torch.Generator().manual_seed(3)
    shapes = (shape, shape, shape[-1:], shape[-1:], shape[-1:])
    return [torch.randn(s, generator=draw).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("mask", [None, replace(MASK, rows=torch.arange(6).view(2, 3), p=0.4)])
def test_the_fused_forms_are_what_their_parts_are_one_after_the_other(mask):
    x, residual, bias, weight, norm_bias = draws(2, 3, 8, dtype=torch.float32)
    kept = 1.0 if mask is None else mask.kept(8) / (1 - mask.p)
    expected = residual + (x + bias) * kept
    norm = torch.nn.functional.layer_norm(expected, (8,), weight, norm_bias, 1e-5)
    fused = reference.bias_dropout_add_norm(x, bias, residual, mask, weight, norm_bias, 1e-5)
    for actual, wanted in zip(fused, (expected, norm), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(reference.bias_dropout_add(x, bias, residual, mask), fused[0])
    assert torch.equal(reference.norm_beside(x, weight, bias, 1e-5)[0], x)


def test_sums_are_float32_and_rounded_once():
    """In bfloat16 1 + 2^-8 is 1: adding one after the other would lose both small terms."""
    one, small = torch.ones(1, 1, 8), torch.full((1, 1, 8), 2.0**-8)
    x, bias, residual = small.bfloat16(), small[0, 0].bfloat16(), one.bfloat16()
    assert (x + residual == residual).all()
    assert (reference.bias_dropout_add(x, bias, residual, None) == 1 + 2.0**-7).all()
