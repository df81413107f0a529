"""Float8 numbers: what is rounded, what is multiplied, and who may."""

import pytest
import torch

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.float8 import E4M3, E5M2, scale_of, scaled_product, with_float8
from megatron_yuyuan.kernels.reference import float8_product, largest, to_float8

GPU = torch.device("cuda", 0)
DIGITS = {E4M3: 3, E5M2: 2}
"""Format -> bits of its mantissa."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_tensor_is_rounded_to_the_digits_of_its_format(dtype, size):
    x = normal(64, 48) * size
    scale = scale_of(largest(x), dtype)
    stored = to_float8(x, scale, dtype)
    assert stored.float().abs().max() == torch.finfo(dtype).max
    error = (stored.double() * scale.double() / x.double() - 1).abs()
    large = x.abs() > x.abs().max() * 1e-3
    assert 0.4 < error[large].max() * 2 ** (DIGITS[dtype] + 1) <= 1.001
    clipped = to_float8(x, scale / 2, dtype)  # what a scale that is too small does to the largest
    assert (clipped.double() * scale.double() / 2 / x.double() - 1).abs().max() > 0.4


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=["e4m3", "e5m2"])
def test_what_is_not_finite_stays_so_and_zeros_stay_zeros(dtype):
    """So that such a step is seen, and passed over."""
    for value in (float("inf"), float("-inf"), float("nan")):
        x = normal(4, 4)
        x[1, 2] = value
        scale = scale_of(largest(x), dtype)
        assert (to_float8(x, scale, dtype).float() * scale)[1, 2].isnan()
    zeros = torch.zeros(4, 4)
    assert (to_float8(zeros, scale_of(largest(zeros), dtype), dtype).float() == 0).all()


def test_a_scale_that_is_too_small_is_clamped_and_never_infinite():
    x = torch.tensor([1.0, -3.0])
    for dtype in (E4M3, E5M2):
        assert to_float8(x, torch.tensor(1e-9), dtype).float().abs().max() == torch.finfo(dtype).max


@pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 has this product on GPUs alone")
@pytest.mark.parametrize("format_of_a", [E4M3, E5M2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_torchs_product_is_the_reference(format_of_a, with_bias):
    """By its operator on the CPU, the one that tensor cores have on a GPU. A bfloat16 apart, where sums in
    another order are rounded to the other side."""
    a, b = normal(32, 48), normal(16, 48, seed=1)
    scales = scale_of(largest(a), format_of_a), scale_of(largest(b), E4M3)
    a, b = to_float8(a, scales[0], format_of_a), to_float8(b, scales[1], E4M3)
    bias = normal(16, seed=2).bfloat16() if with_bias else None
    expected = float8_product(a, b, scales, torch.bfloat16, bias).float()
    found = scaled_product(a, b, scales, torch.bfloat16, bias).float()
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)
    exact = scales[0].double() * a.double() @ (scales[1].double() * b.double()).t()
    exact = exact + bias.double() if with_bias else exact
    torch.testing.assert_close(expected.double(), exact, rtol=2**-8, atol=1e-5)
    assert torch.equal(scaled_product(a, b, scales, torch.bfloat16, bias, fast=True).float(), found)
    other = scaled_product(a, b, (scales[0] * 1.1, scales[1]), torch.bfloat16, bias).float()
    assert (other - expected).abs().max() > 10 * (found - expected).abs().max()


def test_the_reference_emulates_where_it_is_asked_for_by_name():
    kernels = Kernels()
    assert with_float8(kernels, "reference", torch.device("cpu")) is kernels


@pytest.mark.parametrize("name", ["auto", "compile"])
def test_a_cpu_has_no_float8_products(name):
    with pytest.raises(KernelsError, match="lives on cpu") as raised:
        with_float8(Kernels(), name, torch.device("cpu"))
    assert "--kernels reference" in raised.value.remedy


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_a_gpu_has_them_from_its_capability_on(monkeypatch, capability, has):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a played GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if has:
        assert with_float8(Kernels(), "cuda", GPU).float8_product is scaled_product
        return
    with pytest.raises(KernelsError, match="a played GPU has no float8 products") as raised:
        with_float8(Kernels(), "cuda", GPU)
    assert "8.9 at least; this one has 8.0" in raised.value.why
