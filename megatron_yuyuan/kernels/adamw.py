"""AdamW over the local float32 shards of a rank: what a training step asks of its optimizer, by
torch's operators.

Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW; its state is `step`, `exp_avg` and `exp_avg_sq`, as ever."""

    def __init__(self, groups, fused: bool = True, **settings):
        super().__init__(groups, fused=fused, **settings)

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of one parameter, made as torch makes it if no step has been taken.

        A fresh optimizer has no state at all, and a checkpoint loaded into nothing restores nothing,
        silently.
        """
        state = self.state[parameter]
        if not state:
            fused = self.defaults["fused"]  # then it reads the step on the device, else on the host
            state["step"] = torch.zeros((), device=parameter.device if fused else "cpu")
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def squared_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Sum of the squares of these parameters' local gradients, () float64.

        Within a row float32 is exact enough; a float64 copy of all elements would take longer than
        the optimizer's step.
        """
        total = 0.0
        for parameter in parameters:
            rows = torch.linalg.vector_norm(local_gradient(parameter), dim=-1)
            total = total + rows.double().square().sum()
        return torch.as_tensor(total, dtype=torch.float64)

    @torch.no_grad()
    def update(self, coefficient: float) -> None:
        """Take a step with every gradient multiplied by `coefficient`."""
        if coefficient != 1.0:
            gradients = [local_gradient(p) for group in self.param_groups for p in group["params"]]
            torch._foreach_mul_(gradients, coefficient)
        self.step()


def local(x: Tensor) -> Tensor:
    """What this rank holds of a tensor, divided or not."""
    return x.to_local() if hasattr(x, "to_local") else x


def local_gradient(parameter: Tensor) -> Tensor:
    """What this rank holds of the gradient that a backward has left at a parameter."""
    assert parameter.grad is not None
    return local(parameter.grad)
