"""AdamW by one launch over all local shards of a rank, and their gradient's norm by two: the kernels of
csrc/adamw.cu behind the optimizer of `adamw`, which defines the result."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from megatron_yuyuan.kernels.adamw import AdamW, local, local_gradient
from megatron_yuyuan.kernels.operators import ops

PIECE = 16384
"""Most elements of a piece: YUYUAN_PIECE of csrc/launchers.h."""
ROW = np.dtype(
    [
        *((name, np.int64) for name in ("parameter", "exp_avg", "exp_avg_sq", "gradient", "count")),
        ("weight_decay", np.float32),
        ("counted", np.int32),
    ]
)
"""yuyuan_piece of csrc/launchers.h."""


class FusedAdamW(AdamW):
    """The optimizer of `adamw` on CUDA: reads 16 and writes 12 bytes per element of a step, the gradient
    scaled on the way. Its state has the same names, so a checkpoint continues with either."""

    def __init__(self, groups, **settings):
        super().__init__(groups, fused=False, **settings)
        self._table: Tensor | None = None

    def squared_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Sum of the squares of these parameters' local gradients, () float64, in an order that depends
        on nothing but their shapes."""
        self._table = self._pieces({id(parameter) for parameter in parameters})
        return ops.squared_norm(self._table)

    @torch.no_grad()
    def update(self, coefficient: float) -> None:
        """Take a step with every gradient multiplied by `coefficient`, after `squared_norm` of the same
        gradients: their table is on the device already. Nothing changes where it is not finite, but
        that `step` counts the step."""
        table, self._table = self._table, None
        assert table is not None
        first, *others = self.param_groups
        if any(group[name] != first[name] for group in others for name in ("lr", "betas", "eps")):
            raise ValueError("groups may differ in weight_decay alone: one launch takes them all")
        steps = [self.moments(p)["step"] for group in self.param_groups for p in group["params"]]
        torch._foreach_add_(steps, 1)
        taken, (beta_1, beta_2) = int(steps[0]), first["betas"]
        ops.adamw(
            table,
            torch.full((), coefficient, device=table.device),
            first["lr"],
            beta_1,
            beta_2,
            first["eps"],
            1.0 - beta_1**taken,
            1.0 - beta_2**taken,
        )

    def _pieces(self, counted: set[int]) -> Tensor:
        """(pieces, 6) int64 on the parameters' device. Made anew for each step: gradients move."""
        rows = [
            pieces(
                parameter, self.moments(parameter), group["weight_decay"], id(parameter) in counted
            )
            for group in self.param_groups
            for parameter in group["params"]
        ]
        table = torch.from_numpy(np.concatenate(rows).view(np.int64).reshape(-1, 6))
        device = local(self.param_groups[0]["params"][0]).device
        if device.type == "cuda":  # pinned: the copy waits for nothing
            return table.pin_memory().to(device, non_blocking=True)
        return table


def pieces(
    parameter: nn.Parameter, moments: dict[str, Tensor], weight_decay: float, counted: bool
) -> np.ndarray:
    """The rows of a table that cover one parameter's local shard, (ceil(elements / PIECE),) of ROW."""
    tensors = {
        "parameter": local(parameter.detach()),
        "exp_avg": local(moments["exp_avg"]),
        "exp_avg_sq": local(moments["exp_avg_sq"]),
        "gradient": local_gradient(parameter),
    }
    size = tensors["parameter"].numel()
    starts = np.arange(0, size, PIECE)
    rows = np.zeros(len(starts), ROW)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            shape = tuple(tensor.shape)
            raise ValueError(f"{name} {shape} is {tensor.dtype} with strides {tensor.stride()}")
        rows[name] = tensor.data_ptr() + 4 * starts
    rows["count"] = np.minimum(size - starts, PIECE)
    rows["weight_decay"], rows["counted"] = weight_decay, counted
    return rows
