"""What a run is at a moment: the divided model, its optimizer, and a few numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_yuyuan.config import Config
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.adamw import MOMENTS, AdamW
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.lora import is_factor
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.plan import build_stages
from megatron_yuyuan.train.loss_scale import LossScale
from megatron_yuyuan.train.optimizer import build_optimizer
from megatron_yuyuan.train.spikes import Ranges


@dataclass
class TrainState:
    """Everything that a step changes. There is no random state: see kernels/philox.py, and
    `trainer.seed_torch` where torch's own generator is asked for."""

    stages: list[GPT2]
    """This rank's pipeline stages, divided; one under 1F1B."""
    optimizer: AdamW
    mesh: Mesh
    loss_scale: LossScale
    iteration: int = 0
    """Steps taken."""
    consumed_samples: int = 0
    """Samples read; the place in the data."""
    optimizer_steps: int = 0
    """Steps that the optimizer's moments have seen; fewer than iteration if they were begun anew, or if
    steps were passed over."""
    skipped_iterations: int = 0
    """Steps passed over because their loss or gradient was not finite, those aside that the loss scale
    overflowed and fell for."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last steps, if spikes are watched for; see train/spikes.py."""
    left_out: Ranges = field(default_factory=list)
    """Samples that led to loss spikes: consumed_samples counts without them."""
    rollbacks: int = 0
    """Times that the run was taken back for that."""
    began_with: str | None = None
    """--load that the first weights came from, empty if they were drawn; None if nobody knows."""
    data: list[str] = field(default_factory=list)
    """Fingerprint of every shard that the run learns from, in their order."""
    evaluation_due: bool = False
    """The run was stopped when it should have evaluated; it does so when it goes on."""

    def tensors(self, with_moments: bool = True) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name, divided as it lies here: `model.NAME`, and of what is
        not frozen `exp_avg.NAME`, ..."""
        named = {}
        for name, parameter in named_parameters(self.stages):
            named[f"model.{name}"] = parameter.detach()
            if with_moments and parameter.requires_grad:
                moments = self.moments(parameter)
                named |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS}
        return named

    def begin_with(self, load: Callable[[dict[str, Tensor]], None]) -> None:
        """Have `load` fill the weights in place, from another run that has no factors of LoRA's: these
        keep their initial values."""
        weights = self.tensors(with_moments=False)
        load({name: tensor for name, tensor in weights.items() if not is_factor(name)})
        self._copy_embedding()

    def fill(self, load: Callable[[dict[str, Tensor]], None], with_moments: bool = True) -> None:
        """Have `load` fill `tensors` in place."""
        load(self.tensors(with_moments))
        self._copy_embedding()

    def _copy_embedding(self) -> None:
        """Where both copies of the embedding lie on this rank, the last stage's is the one that `tensors`
        names; the first stage's takes its values."""
        copies = [stage.wte.weight for stage in self.stages if stage.wte is not None]
        for copy in copies[:-1]:
            copy.detach().copy_(copies[-1].detach())
            for moment in MOMENTS if copy.requires_grad else ():
                self.moments(copy)[moment].copy_(self.moments(copies[-1])[moment])

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one parameter."""
        return self.optimizer.moments(parameter)

    def continue_after(self, iteration: int, consumed_samples: int, optimizer_steps: int) -> None:
        """Stand where `iteration` steps have been taken. AdamW corrects its moments for the bias
        of as many steps as they have seen."""
        self.iteration, self.consumed_samples = iteration, consumed_samples
        self.optimizer_steps = optimizer_steps
        for _, parameter in named_parameters(self.stages):
            if parameter.requires_grad:
                self.moments(parameter)["step"].fill_(optimizer_steps)

    def history(self) -> dict:
        """What state.json keeps of the steps before, beside their number."""
        return {
            "skipped_iterations": self.skipped_iterations,
            "recent_losses": self.recent_losses,
            "left_out": self.left_out,
            "rollbacks": self.rollbacks,
            "began_with": self.began_with,
            "data": self.data,
            "evaluation_due": self.evaluation_due,
            "loss_scale": self.loss_scale.state_dict(),
        }

    def recall(self, document: dict) -> None:
        """Take the history from a state.json; an older one has none. What the run learns from is named by
        the one that goes on."""
        for name in self.history().keys() - {"loss_scale", "data"}:
            setattr(self, name, document.get(name, getattr(self, name)))
        self.loss_scale.load_state_dict(document.get("loss_scale", {}))


def build_state(config: Config, mesh: Mesh, kernels: Kernels | None = None) -> TrainState:
    """A state before its first step: this rank's stages, initialized, with nothing in their optimizer.
    Without `kernels` it computes with the reference."""
    stages = build_stages(config, mesh, kernels)
    optimizer = build_optimizer(stages, config.optimizer)
    return TrainState(stages, optimizer, mesh, LossScale(config.training))


def named_parameters(stages: list[GPT2]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) of every stage. Layers carry their global number; only the two copies of the
    tied embedding share a name, and a value."""
    for stage in stages:
        yield from stage.named_parameters()
