"""What a run is at a moment: the divided model, its optimizer, and two numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.mesh import Mesh

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """Everything that a step changes. There is no random state: see kernels/philox.py."""

    stages: list[GPT2]
    """This rank's pipeline stages, divided; one under 1F1B."""
    optimizer: torch.optim.AdamW
    mesh: Mesh
    iteration: int = 0
    """Optimizer steps taken."""
    consumed_samples: int = 0
    """Samples read; the place in the data."""

    @property
    def model(self) -> GPT2:
        return self.stages[0]

    def tensors(self, with_moments: bool = True) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name, divided as it lies here: `model.NAME`,
        `exp_avg.NAME`, ..."""
        named = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        if with_moments:
            for name, parameter in self.model.named_parameters():
                moments = self.moments(parameter)
                named |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS}
        return named

    def moments(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """AdamW's state of one parameter, made as AdamW makes it if no step has been taken.

        A fresh optimizer has no state at all, and a checkpoint loaded into nothing restores
        nothing, silently.
        """
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def continue_after(
        self, iteration: int, consumed_samples: int, with_moments: bool = True
    ) -> None:
        """Stand where `iteration` steps have been taken. Loaded moments are corrected for the bias
        of as many steps; fresh ones (with_moments False) begin to count now."""
        self.iteration, self.consumed_samples = iteration, consumed_samples
        if with_moments:
            for parameter in self.model.parameters():
                self.moments(parameter)["step"].fill_(iteration)
