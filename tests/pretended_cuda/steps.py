"""Training steps on GPUs that are not there: `LD_PRELOAD=LIBRARY python steps.py NAME...`.

The code is what runs on CUDA, on fake tensors of device cuda, which have no values: every number that is
asked for is 1, and torch's fake process group answers every collective. What is found is a tensor on
another device than those it meets. LIBRARY is made of device.cpp.
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from megatron_yuyuan.data.loader import Borders
from megatron_yuyuan.kernels import Kernels, fused
from megatron_yuyuan.model import gpt2
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.train.state import build_state
from megatron_yuyuan.train.trainer import Trainer

SMALL = TINY.replace(num_layers=4, global_batch_size=4)
HALF = SMALL.replace(bf16=True, hidden_dropout=0.1, attention_dropout=0.1)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
WIDE = Layout(2, 2, 2, True)
CASES = {
    "float32": (SMALL, Layout(), 0),
    "bf16": (HALF, WIDE, 7),
    "fp16": (SMALL.replace(fp16=True), Layout(1, 2, 2), 3),
    "fp8": (HALF.replace(fp8_format="hybrid"), WIDE, 0),
    "flash": (HALF.replace(attention_dropout_rng="torch"), Layout(), 0),
    "lora": (HALF.replace(lora_rank=4), WIDE, 0),
    "documents": (HALF.replace(reset_attention_mask=True), Layout(1, 2, 2), 0),
    "recomputed": (HALF.replace(**FULL), Layout(2), 1),
    "briefly": (
        HALF.replace(data_parallel_sharding_strategy="optim_grads_params"),
        Layout(2, 2),
        0,
    ),
    "interleaved": (HALF.replace(pipeline_schedule="Interleaved1F1B"), Layout(2, 2), 3),
    "astray": (HALF, Layout(), 0),
}
"""What is rehearsed: a configuration, a layout of it, and one of the ranks. `astray`: with numbers of rows that
stay on the host."""


class Stream:
    """torch.cuda.Stream and Event, on which nothing ever waits."""

    def __init__(self, *_, **__):
        self.device, self.stream_id = torch.device("cuda", 0), 0

    def record_event(self, *_):
        return Stream()

    def nothing(self, *_):
        """Is at once."""

    wait_stream = wait_event = synchronize = record = wait = nothing

    def query(self) -> bool:
        return True


def pretend() -> None:
    """Have torch.cuda answer as if there were eight H200."""
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 8,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "NVIDIA H200",
        "max_memory_allocated": 1 << 30,
        "get_rng_state": torch.zeros(1),
        "current_stream": Stream(),
    }
    silent = (
        "set_device",
        "set_stream",
        "synchronize",
        "set_rng_state",
        "manual_seed_all",
        "_lazy_init",
    )
    for name, answer in {**answers, **dict.fromkeys(silent)}.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.Stream = torch.cuda.Event = Stream
    torch.cuda.stream = contextlib.nullcontext
    torch.Tensor.record_stream = lambda *_: None
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    torch.Tensor.data_ptr = lambda _: 4096
    torch._C._set_only_lift_cpu_tensors(True)
    dist.barrier = lambda **_: None


class Pretence(TorchDispatchMode):
    """Numbers are 1; what goes to a device becomes fake; what is real, as a mesh's ranks, stays so."""

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            args, kwargs = tree_map_only(torch.Tensor, self.faked, (args, kwargs))
        elif tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                return function(*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1
        return function(*args, **kwargs)

    def faked(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)


def take_steps(name: str, kernels: Kernels) -> None:
    """Two steps and an evaluation."""
    config, layout, rank = CASES[name]
    config = layout.of(config).replace(device="cuda")
    borders = Borders(eod=0, reset_attention_mask=True) if name == "documents" else None
    os.environ["LOCAL_RANK"] = "0"  # each is alone on its machine
    dist.init_process_group("fake", rank=rank, world_size=layout.ranks, store=FakeStore())
    try:
        mesh, fake = mesh_module.start(config.parallel), FakeTensorMode(allow_non_fake_inputs=True)
        with fake, Pretence(fake):
            trainer = Trainer(config, build_state(config, mesh, kernels), borders)
            parameters = (p for stage in trainer.state.stages for p in stage.parameters())
            assert {parameter.to_local().device.type for parameter in parameters} == {"cuda"}
            trainer.step(RandomText(config))
            trainer.evaluate(RandomText(config, 8))
            trainer.step(RandomText(config))
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()


if __name__ == "__main__":
    pretend()
    if "astray" in sys.argv:
        numbers = gpt2.numbers_of_rows
        gpt2.numbers_of_rows = lambda *given: numbers(*given).cpu()
    for chosen in sys.argv[1:]:
        for computing in (Kernels(), fused.KERNELS):
            take_steps(chosen, computing)
        print(chosen, flush=True)
