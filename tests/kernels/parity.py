"""How near a kernel comes to float64, and why not nearer."""

import torch
from torch import Tensor

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Half a unit in the last place, relative: what one rounding at the store costs at most."""

ARITHMETIC = 2e-6
"""Of float32 in front of that rounding, relative to the largest element of the tensor: sums of up to
3,072 terms in a tree, tanh and rsqrt. Measured under the emulator: at most 4e-7; CUDA's own tanhf,
expf and rsqrtf may be off by two units more."""


def largest_error(actual: Tensor, expected: Tensor, arithmetic: float = ARITHMETIC) -> float:
    """Largest difference of an element, in units of what may be expected: 1 is the bound. NaN is
    infinitely far. `arithmetic`: a caller that needs another bound says why."""
    expected = expected.detach().double()
    scale = expected.abs().amax().clamp_min(1e-30)
    allowed = arithmetic * scale + 1.01 * ROUNDING[actual.dtype] * expected.abs()
    if actual.dtype == torch.float16:
        allowed = allowed + 2.0**-25  # half the step of subnormal numbers
    error = ((actual.double() - expected).abs() / allowed).amax().item()
    return error if error == error else float("inf")


def assert_near(
    actual: Tensor, expected: Tensor, name: str, slack: float = 1.0, arithmetic: float = ARITHMETIC
) -> None:
    """`slack` times the bound; a caller that needs more than 1 says why."""
    error = largest_error(actual, expected, arithmetic)
    assert error <= slack, f"{name} is off by {error:.3g} times what rounding explains"
