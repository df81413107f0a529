"""A run that starts from a checkpoint of Megatron-core's GPTModel: of its weights what each rank needs.

As from a Hugging Face directory (`hf_start`), a rank reads one tensor at a time (of stacked layers, one
layer of it) and keeps its own part. The tokenizer is the run's: no checkpoint of Megatron's holds its own.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from megatron_yuyuan.checkpoint.hf_start import fill_parts
from megatron_yuyuan.checkpoint.megatron_source import open_source
from megatron_yuyuan.config import Config

MEGATRON_PREFIX = "megatron:"
"""How --load names such a checkpoint."""


def open_megatron(
    path: Path, iteration: int | None, num_attention_heads: int, vocab_size: int
) -> tuple[dict, Callable[[dict[str, Tensor]], None]]:
    """What a run must know of the checkpoint before it starts, named as in a state.json, and what fills
    tensors (model.NAME, as each lies on a rank) in place with its weights.

    num_attention_heads, vocab_size: as of `MegatronSource.weights`. Names and shapes of all tensors are
    compared now. Raises ConfigError, DataError and UnsafeError.
    """
    config, weights = open_source(path, iteration).weights(num_attention_heads, vocab_size)
    state = {"config": Config(model=config).to_dict(), "tokenizer": None}
    return state, partial(fill_parts, weights)
