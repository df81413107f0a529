"""Checkpoints as Megatron-core itself and Megatron-LM of old write them, made on the CPU.

    python megatron_peer.py save DIRECTORY      torch_dist of a GPTModel, one directory a layout of layers
    python megatron_peer.py load DIRECTORY OUT  Megatron-core opens a directory of ours

A process of its own: Megatron-core keeps its state in the process and expects CUDA.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megatron_yuyuan.checkpoint.megatron_logits import NoGenerator, gpt_model
from megatron_yuyuan.config import ModelConfig

SHAPE = ModelConfig(
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=40,
    vocab_size=280,
    ffn_hidden_size=96,
    layernorm_epsilon=1e-4,
)
ROWS = 512
"""As Megatron pads 280 tokens for two tensor ranks and a divisor of 256."""
LAYOUTS = {
    "stacked": None,
    "numbered": {"non_homogeneous_layers": True, "singleton_local_shards": True},
}


def alone() -> None:
    """One rank, and a Megatron-core that needs no CUDA and no psutil."""
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *_: None
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._process_memory = lambda: 0
    tensor_parallel.get_cuda_rng_tracker = lambda *_, **__: NoGenerator()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()


def shaken_model(rows: int):
    """Weights of which each shows in the logits."""
    model, noise = gpt_model(SHAPE, rows), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=noise))
            parameter += "layernorm.weight" in name
    return model.eval()


def save(directory: Path) -> None:
    from megatron.core import dist_checkpointing

    model = shaken_model(ROWS)
    arguments = {"num_attention_heads": 4, "norm_epsilon": 1e-4, "normalization": "LayerNorm"}
    for layout, metadata in LAYOUTS.items():
        path = directory / layout / "iter_0000500"
        path.mkdir(parents=True)
        state = model.sharded_state_dict(**({"metadata": metadata} if metadata else {}))
        state |= {"args": argparse.Namespace(**arguments), "iteration": 500}
        dist_checkpointing.save(state, str(path))
        (directory / layout / "latest_checkpointed_iteration.txt").write_text("500")
    tensors = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "state_dict.safetensors")


def load(path: Path, output: Path) -> None:
    from megatron.core import dist_checkpointing

    model = gpt_model(SHAPE, SHAPE.padded_vocab_size)
    wanted = {n: t for n, t in model.sharded_state_dict().items() if "_extra_state" not in n}
    model.load_state_dict(dist_checkpointing.load(wanted, str(path)), strict=False)
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, output)


if __name__ == "__main__":
    alone()
    {"save": save, "load": load}[sys.argv[1]](*map(Path, sys.argv[2:]))
