"""From the undivided model to this rank's part of it: one table, applied from here and nowhere
else."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor, Shard

from megatron_yuyuan.config import Config
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.float8 import GRADIENT_FORMATS
from megatron_yuyuan.model.gpt2 import GPT2, AttentionDropout
from megatron_yuyuan.model.initialization import initial_values
from megatron_yuyuan.model.lora import initial_factor, is_factor
from megatron_yuyuan.model.recomputation import Recomputation
from megatron_yuyuan.parallel.cross_entropy import VocabParallelHead
from megatron_yuyuan.parallel.data import compute_dtype, divide_over_data
from megatron_yuyuan.parallel.float8 import Float8Axis
from megatron_yuyuan.parallel.lora import freeze_all_but_factors, plan_with_factors
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.stages import StagePlan, plan_stages
from megatron_yuyuan.parallel.tensor import (
    ColumnParallelLinear,
    ColumnParallelLinearBeforeBias,
    PositionEmbedding,
    ResidualDropout,
    ResidualLayerNorm,
    RowParallelLinear,
    TensorAxis,
    VocabParallelEmbedding,
)

MODEL_PLAN = {
    "wte": VocabParallelEmbedding,
    "wpe": PositionEmbedding,
    "drop": ResidualDropout,
    "ln_f": ResidualLayerNorm,
    "head": VocabParallelHead,
}
BLOCK_PLAN = {
    "ln_1": ResidualLayerNorm,
    "attn.c_attn": ColumnParallelLinear,
    "attn.c_proj": RowParallelLinear,
    "resid_1": ResidualDropout,
    "ln_2": ResidualLayerNorm,
    "mlp.c_fc": ColumnParallelLinearBeforeBias,
    "mlp.c_proj": RowParallelLinear,
    "resid_2": ResidualDropout,
}
"""Module name -> what stands in its place on a tensor rank. Each is built from the module it
replaces."""


def build_stages(config: Config, mesh: Mesh, kernels: Kernels | None = None) -> list[GPT2]:
    """This rank's stages of the model, in order, divided over all axes and initialized. Without
    `kernels` they compute with the reference.

    Built on the meta device, cut to the stage's layers, its layers exchanged for tensor-parallel
    ones, then one unit at a time given memory, filled, and divided over the data axis: a rank never
    holds more than its own part and one unit's tensor slice.
    """
    plan = plan_stages(config)
    mine = plan.of_rank(mesh.rank("pipeline"))
    return [build_stage(config, mesh, plan, stage, kernels) for stage in mine]


def build_stage(
    config: Config, mesh: Mesh, plan: StagePlan, stage: int, kernels: Kernels | None = None
) -> GPT2:
    """Build one stage of the plan on the meta device, and divide it over the mesh."""
    with torch.device("meta"):
        model = GPT2(config.model, config.training.seed, kernels)
    keep_stage(model, plan, stage)
    parallel = config.parallel
    again = (parallel.recomputed, parallel.recompute_method, parallel.recompute_num_layers)
    model.recompute(Recomputation(*again))
    axis = tensor_axis(config, mesh, model.kernels)
    divide_over_tensor(model, axis)
    if config.model.lora_rank:
        freeze_all_but_factors(model)
    for name, unit in [(f"h.{i}.", block) for i, block in model.h.items()] + [("", model)]:
        own = [n for n, p in unit.named_parameters() if p.is_meta]
        _give_memory(unit, mesh.device)
        for parameter in own:
            _initialize(name + parameter, unit.get_parameter(parameter), config, axis)
        strategy = parallel.data_parallel_sharding_strategy
        divide_over_data(unit, mesh, strategy, compute_dtype(config.training))
    return model


def tensor_axis(config: Config, mesh: Mesh, kernels: Kernels) -> TensorAxis:
    """The tensor ranks of this rank's stages, multiplying as the configuration asks."""
    parallel, float8 = config.parallel, config.training.fp8_format
    axis = mesh.axes["tensor"], parallel.sequence_parallel, parallel.splits_backward
    if float8 == "none":
        return TensorAxis(*axis)
    return Float8Axis(*axis, kernels, GRADIENT_FORMATS[float8])


def keep_stage(model: GPT2, plan: StagePlan, stage: int) -> None:
    """Remove every layer, and embedding or head, that stands on another stage. Tied: both ends keep
    wte."""
    first, last = stage == 0, stage == len(plan) - 1
    for name in list(model.h):
        if int(name) not in plan.layers[stage]:
            del model.h[name]
    if not first:
        model.wpe = None
    if not last:
        model.ln_f = model.head = None
    if not (first or last):
        model.wte = None


def divide_over_tensor(model: GPT2, axis: TensorAxis) -> None:
    """Apply the plan. Attention learns which heads it holds, for its dropout."""
    of_block = plan_with_factors(BLOCK_PLAN, model.config)
    for module, plan in [(model, MODEL_PLAN), *((block, of_block) for block in model.h.values())]:
        for name, layer in plan.items():
            path, _, last = name.rpartition(".")
            parent = module.get_submodule(path)
            if getattr(parent, last) is not None:
                setattr(parent, last, layer(getattr(parent, last), axis))
    for dropout in model.modules():
        if isinstance(dropout, AttentionDropout):
            dropout.first_head = axis.rank * dropout.num_heads // axis.size


def _give_memory(unit: nn.Module, device: torch.device) -> None:
    """Replace meta parameters that no inner unit has taken yet by uninitialized ones on the
    device."""
    for module in unit.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                given = torch.empty_like(parameter, device=device)
                setattr(module, name, nn.Parameter(given, parameter.requires_grad))


@torch.no_grad()
def _initialize(name: str, parameter: nn.Parameter, config: Config, axis: TensorAxis) -> None:
    """Fill this rank's slice with the values that the undivided parameter has there. A dry run's fake
    tensors take none."""
    assert isinstance(parameter, DTensor)  # the plan exchanges every module that has parameters
    local, shape = parameter.to_local(), tuple(parameter.shape)
    if isinstance(local, FakeTensor):
        return
    [placement] = parameter.placements
    dim = placement.dim if isinstance(placement, Shard) else None
    first = axis.rank * local.shape[0] if dim == 0 else 0
    rows = range(first, first + local.shape[0])
    initial = initial_factor if is_factor(name) else initial_values
    values = initial(name, shape, rows, config.model, config.training.seed, local.device)
    local.copy_(values.chunk(axis.size, dim=1)[axis.rank] if dim == 1 else values)
