"""A training step of any rank of a job that does not exist: the real code, on tensors without memory.

torch's fake process group answers every collective at once, and its fake tensors have a shape, a dtype
and a device, but no values: a step of the 3.5B model on one of 32 ranks takes seconds on a laptop. What
it builds, keeps, computes and exchanges on the way is counted.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import Borders
from megatron_yuyuan.kernels import Kernels, fused
from megatron_yuyuan.kernels.adamw import AdamW, local
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.stages import runs_as
from megatron_yuyuan.planner.flops import Flops
from megatron_yuyuan.planner.live_memory import ACTIVATIONS, GATHERED, OTHER, LiveMemory
from megatron_yuyuan.planner.memory import predict_memory
from megatron_yuyuan.planner.sizes import Sizes
from megatron_yuyuan.planner.traffic import Exchanged, Traffic
from megatron_yuyuan.train.state import build_state, named_parameters
from megatron_yuyuan.train.trainer import Trainer

aten = torch.ops.aten
PARTS = ("weights", "moments", GATHERED, ACTIVATIONS, OTHER)
"""Of the memory of a rank. Gradients and what a layer works with are `other`."""
REPEATING = {"1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble"}
"""Schedules of which a long step repeats a shorter one's middle."""


@dataclass(frozen=True)
class RankReport:
    """What a training step takes on one rank."""

    place: dict[str, int]
    """Axis -> the rank's place on it: pipeline, data, tensor."""
    parameters: int
    """That it holds at rest."""
    gradients: int
    """Bytes of them between two steps."""
    activations: int
    """Bytes that the forwards of one micro batch through its stages keep for their backwards."""
    at_peak: dict[str, int]
    """Part of PARTS -> bytes at the moment when most live."""
    flops: int
    """Of matrix products and attention, what is computed again included."""
    exchanged: Exchanged
    """(axis, kind) -> (how often, bytes)."""

    @property
    def peak(self) -> int:
        return sum(self.at_peak.values())


class Pretence(TorchDispatchMode):
    """What fake tensors cannot answer by themselves: any number that is asked for is 1. Tensors that are
    real, as those of a mesh are, stay so."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                return function(*args, **kwargs)
        if function is aten._local_scalar_dense.default:
            return 1
        return function(*args, **kwargs)


class Ones:
    """Samples whose every token is 1."""

    def __init__(self, config: Config):
        self.seq_length = config.data.seq_length

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(self.seq_length, np.int64), np.ones(self.seq_length, np.int64)


def dry_run(config: Config, ranks: int, rank: int) -> RankReport:
    """Take one step of a rank of a job of so many, with a valid configuration whose batch and vocabulary
    are known, as if its optimizer had taken others before. No process group may exist."""
    with fake_rank(config, ranks, rank) as mesh:
        return count_a_step(config, mesh)


@contextmanager
def fake_rank(config: Config, ranks: int, rank: int) -> Iterator[Mesh]:
    """The mesh of a job, in which this process plays one of the ranks."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        on_cpu = dataclasses.replace(config.parallel, device="cpu", distributed_backend="auto")
        yield mesh_module.start(on_cpu)
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # it keeps the meshes of groups that are gone


def count_a_step(config: Config, mesh: Mesh) -> RankReport:
    """What the gradients of a global batch take, of the largest of the run. The update that follows writes
    in place.

    A long step repeats itself: it is counted from two shorter ones, which differ by one period of the
    pipeline's schedule.
    """
    config = config.replace(rampup_batch_size=(), epochs=0.0, train_samples=0, train_iters=1)
    ranks, pipeline = dist.get_world_size(), config.parallel.pipeline_model_parallel_size
    micro_batches = Sizes(config, ranks).micro_batches
    fewer = 2 * pipeline + micro_batches % pipeline
    counts = (fewer, fewer + pipeline, micro_batches)
    schedules = {runs_as(config.parallel, count) for count in counts}
    if micro_batches <= fewer + pipeline or not schedules <= REPEATING:
        return count_whole_step(config, mesh)
    sample = config.training.global_batch_size // micro_batches
    short, longer = (config.replace(global_batch_size=count * sample) for count in counts[:2])
    received = [predict_memory(c, ranks, mesh.rank("pipeline")).received for c in (longer, config)]
    return extended(
        count_whole_step(short, mesh),
        count_whole_step(longer, mesh),
        (micro_batches - counts[1]) // pipeline,
        received[1] - received[0],
    )


def extended(short: RankReport, longer: RankReport, periods: int, received: int) -> RankReport:
    """The report of a step that is so many periods longer than `longer`, which is one longer than `short`.
    Of its memory only what the pipeline receives into grows, by so many bytes."""
    exchanged = {}
    for what, (calls, size) in longer.exchanged.items():
        fewer, smaller = short.exchanged[what]
        exchanged[what] = (calls + periods * (calls - fewer), size + periods * (size - smaller))
    return dataclasses.replace(
        longer,
        at_peak=longer.at_peak | {OTHER: longer.at_peak[OTHER] + received},
        flops=longer.flops + periods * (longer.flops - short.flops),
        exchanged=exchanged,
    )


def count_whole_step(config: Config, mesh: Mesh) -> RankReport:
    """Take one step on fake tensors with every micro batch, and report it."""
    live, traffic, flops = LiveMemory(), Traffic(), Flops()
    with FakeTensorMode(allow_non_fake_inputs=True), Pretence():
        documents = Borders(eod=0, reset_attention_mask=True)
        borders = documents if config.data.divides_attention else None
        trainer = Trainer(config, build_state(config, mesh, counted_kernels(config)), borders)
        state = trainer.state
        parameters = [parameter for _, parameter in named_parameters(state.stages)]
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        moments = [moment for p in learned for moment in state.moments(p).values()]
        kept = watch_forwards(state.stages, live)
        with live, traffic, flops:
            live.include(parameters, "weights")
            live.include(moments, "moments")
            trainer.gradients(Ones(config))
    return RankReport(
        {axis: mesh.rank(axis) for axis in ("pipeline", "data", "tensor")},
        sum(local(parameter).numel() for parameter in parameters),
        sum(local(parameter).nbytes for parameter in learned),
        sum(kept.values()),
        {part: live.at_peak[part] for part in PARTS},
        flops.total,
        traffic.over(mesh),
    )


def counted_kernels(config: Config) -> Kernels:
    """Those of the job's device. torch.compile's and apex's keep what the reference keeps."""
    if not config.parallel.means_fused_kernels:
        return Kernels()
    return dataclasses.replace(fused.KERNELS, adamw=AdamW)


def watch_forwards(stages: list[GPT2], live: LiveMemory) -> dict[int, int]:
    """Have gathered weights counted as such; return a table, number of a stage -> bytes that a forward
    of one micro batch keeps, which the first forward of each fills."""
    kept: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for module in stage.modules():
            if isinstance(module, FSDPModule):
                module.register_forward_pre_hook(
                    lambda gathered, _: live.include(gathered.parameters(), GATHERED)
                )

        def before(*_, number=number):
            kept.setdefault(number, -live.now[ACTIVATIONS])

        def after(*_, number=number):
            if kept[number] <= 0:
                kept[number] += live.now[ACTIVATIONS]

        stage.register_forward_pre_hook(before)
        stage.register_forward_hook(after)
    return kept
