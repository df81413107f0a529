"""A model so small that eight ranks train it in a second, and samples for it."""

import itertools
import os
from typing import NamedTuple

import numpy as np
import torch

from megatron_yuyuan.config import IGNORE, Config
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.train.state import build_state
from megatron_yuyuan.train.trainer import Trainer

TINY = Config().replace(
    num_layers=8,
    hidden_size=32,
    num_attention_heads=8,
    vocab_size=120,
    max_position_embeddings=16,
    seq_length=16,
    micro_batch_size=1,
    global_batch_size=8,
    train_iters=5,
    lr=1e-2,
    lr_warmup_iters=2,
    seed=7,
    init_method_std=0.2,
    device=os.environ.get("YUYUAN_TEST_DEVICE", "cpu"),
)


class Layout(NamedTuple):
    """How ranks are laid out; printed as pp2dp2tp2sp."""

    pipeline: int = 1
    data: int = 1
    tensor: int = 1
    sequence_parallel: bool = False

    @property
    def ranks(self) -> int:
        return self.pipeline * self.data * self.tensor

    def of(self, config: Config) -> Config:
        """This layout of a configuration, with as many micro batches as stages (two at least, if
        the batch allows)."""
        share = config.training.global_batch_size // self.data
        return config.replace(
            tensor_model_parallel_size=self.tensor,
            pipeline_model_parallel_size=self.pipeline,
            sequence_parallel=self.sequence_parallel,
            micro_batch_size=max(1, share // max(2, self.pipeline)),
        )

    def __str__(self) -> str:
        return f"pp{self.pipeline}dp{self.data}tp{self.tensor}{'sp' * self.sequence_parallel}"


def all_layouts(*sizes: int) -> list[Layout]:
    """Every layout of so many ranks, with and without sequence parallelism where there is a tensor
    axis."""
    found = []
    for ranks in sizes:
        for pipeline, data in itertools.product(range(1, ranks + 1), repeat=2):
            if ranks % (pipeline * data) == 0:
                tensor = ranks // (pipeline * data)
                found += [
                    Layout(pipeline, data, tensor, sp)
                    for sp in ((False, True) if tensor > 1 else (False,))
                ]
    return found


class RandomText:
    """Random tokens; sample i has very unequal loss masks: sample 0 learns all, others down to a
    single token."""

    def __init__(self, config: Config = TINY, length: int = 64):
        self.vocab_size, self.seq_length, self.length = (
            config.model.vocab_size,
            config.data.seq_length,
            length,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        text = np.random.default_rng(number % self.length).integers(
            0, self.vocab_size, self.seq_length + 1
        )
        tokens, labels = text[:-1], text[1:].copy()
        labels[: min(5 * number % 17, self.seq_length - 1)] = IGNORE
        return tokens, labels


def build_trainer(
    config: Config, kernels: Kernels | None = None, one_layout: bool = False
) -> Trainer:
    """A trainer on the ranks of the process group that is there; one_layout: what it finds will not be
    compared with another layout's."""
    assert one_layout or config.is_layout_free, (
        "layouts of this configuration are not to be compared"
    )
    mesh = mesh_module.start(config.parallel)
    return Trainer(config, build_state(config, mesh, kernels))


def largest_difference(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """Over all tensors, the largest max|a - b| / max|b|, and its name."""
    assert actual.keys() == expected.keys()
    return max(
        ((actual[n] - expected[n]).abs().max().item() / expected[n].abs().max().item(), n)
        for n in expected
    )
