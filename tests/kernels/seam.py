"""The functions of the seam with arguments for them, so that one set of kernels can be compared with
another."""

import torch
from torch import Tensor

from megatron_yuyuan.kernels import DropoutMask, Kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (2, 3, 40)
EPSILON = 1e-5
TOLERANCE = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error, over the largest element of the tensor: float32's own sums, and a few roundings of what
is stored in half precision between two kernels."""


def tensor(*shape: int, seed: int, dtype=torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    made = torch.randn(shape, generator=generator, device="cpu") * scale
    return made.to(DEVICE, dtype).requires_grad_()


def some_mask(shape=SHAPE, step: int = 3) -> DropoutMask:
    rows = torch.arange(shape[0] * shape[1]).view(shape[:2]) * 7 + (1 << 33)
    return DropoutMask(0.3, rows, (1 << 63) + 5, step, 17)


MASKS = {"dropped": some_mask, "kept": lambda: None}
SEAM = {
    "layer_norm": lambda k, x, r, a, b, c, mask: [k.layer_norm(x, a, b, EPSILON)],
    "norm_beside": lambda k, x, r, a, b, c, mask: k.norm_beside(x, a, b, EPSILON),
    "bias_gelu": lambda k, x, r, a, b, c, mask: [k.bias_gelu(x, a)],
    "dropout": lambda k, x, r, a, b, c, mask: [k.dropout(x, mask)],
    "bias_dropout_add": lambda k, x, r, a, b, c, mask: [k.bias_dropout_add(x, a, r, mask)],
    "bias_dropout_add_norm": lambda k, x, r, a, b, c, mask: k.bias_dropout_add_norm(
        x, a, r, mask, b, c, EPSILON
    ),
    "causal_softmax": lambda k, x, r, a, b, c, mask: [k.causal_softmax(x, 0.5)],
}
"""Every differentiable function of the seam, of a matrix, a residual, three vectors and a mask."""


def arguments(dtype=torch.float32, shape=SHAPE) -> list[Tensor]:
    matrices = [tensor(*shape, seed=seed, dtype=dtype, scale=2.0) for seed in (1, 2)]
    return matrices + [tensor(shape[-1], seed=seed, dtype=dtype) for seed in (3, 4, 5)]


def with_gradients(function, kernels: Kernels, tensors: list[Tensor], mask) -> list[Tensor]:
    """What a function of the seam returns, and the gradients of what it depends on."""
    results = function(kernels, *tensors, mask)
    loss = sum((result.float() * (i + 1.5)).square().sum() for i, result in enumerate(results))
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [result.detach() for result in results] + [g for g in gradients if g is not None]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        error = (one.float() - other.float()).abs().max() / other.float().abs().max()
        assert error <= tolerance, error
