"""Float8 numbers for matrix products: which formats, with which scale, multiplied by what.

A tensor x is stored as x / scale in 8 bits, its largest element as the largest number of the format: one
scale for the whole tensor, taken anew each time (`tensorwise`, dynamic). e4m3 has more digits, e5m2 more
range. Source: Micikevicius et al. 2022, arXiv:2209.05433; the recipe is Transformer Engine's current
scaling and torchao's tensorwise one.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import Kernels, reference

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
GRADIENT_FORMATS = {"hybrid": E5M2, "e4m3": E4M3}
"""--fp8-format -> the format of the gradients of activations. Weights and activations are always e4m3."""
SMALLEST_SCALE = 2.0**-100
"""Of a tensor of zeros, or nearly: its inverse is still a float32."""
CAPABILITY = (8, 9)
"""The first GPUs whose tensor cores multiply float8 numbers: H100 has 9.0."""


def scale_of(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale with which max |x| becomes the largest number of a format; any shape, float32."""
    return (largest / torch.finfo(dtype).max).clamp(min=SMALLEST_SCALE)


def scaled_product(
    a: Tensor,
    b: Tensor,
    scales: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    bias: Tensor | None = None,
    fast: bool = False,
) -> Tensor:
    """`reference.float8_product` by tensor cores."""
    recipe = F.ScalingType.TensorWise
    return F.scaled_mm(
        a,
        b.t(),
        scales[0],
        recipe,
        scales[1],
        recipe,
        bias=bias,
        output_dtype=dtype,
        use_fast_accum=fast,
    )


def with_float8(kernels: Kernels, name: str, device: torch.device) -> Kernels:
    """The kernels of --kernels `name` with products by the tensor cores of `device`, and with the rounding and
    the transposing of their factors compiled by torch. The reference, asked for by name, emulates them, which
    takes longer than without float8. Raises KernelsError."""
    if name == "reference":
        return kernels
    remedy = "--fp8-format none; or, to try it, --kernels reference, which emulates them slowly"
    if device.type != "cuda":
        what = f"fp8_format is given, but the model lives on {device.type}"
        raise KernelsError(what, "its products are those of a GPU's tensor cores", remedy)
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        raise KernelsError(
            f"fp8_format is given, but {torch.cuda.get_device_name(device)} has no float8 products",
            "H100 and later have them, compute capability "
            f"{'.'.join(map(str, CAPABILITY))} at least; this one has {'.'.join(map(str, capability))}",
            remedy,
        )
    return dataclasses.replace(
        kernels,
        largest=torch.compile(reference.largest),
        to_float8=torch.compile(reference.to_float8),
        transposed=torch.compile(reference.transposed),
        float8_product=scaled_product,
    )
