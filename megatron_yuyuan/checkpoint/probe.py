"""Logits of a few tokens, computed with one layer of the model in memory at a time.

A conversion compares both sides by them. Both are built without storage (`meta`); a layer gets its
weights when the forward pass reaches it and gives them back when it has passed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_yuyuan.checkpoint.reading import reading
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2

Weight = Callable[[str], Tensor]
"""The weight of a name, of any dtype."""
TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest logit."""


LENGTH = 32
"""Tokens of each of the two texts, at most."""


@dataclass(frozen=True)
class Probe:
    """What both sides compute: two texts, one at the first positions of the model and one at its last."""

    tokens: Tensor
    """(2, T) int64, T at most LENGTH: from all over the vocabulary."""
    positions: Tensor
    """(2, T) int64: 0 to T - 1, and max_position_embeddings - T to max_position_embeddings - 1."""

    @classmethod
    def of(cls, config: ModelConfig) -> "Probe":
        """The probe of a shape."""
        length = min(LENGTH, config.max_position_embeddings)
        tokens = (torch.arange(2 * length) * 7919 % config.vocab_size).view(2, length)
        first = torch.tensor([[0], [config.max_position_embeddings - length]])
        return cls(tokens, first + torch.arange(length))


@torch.no_grad()
def our_logits(config: ModelConfig, weight: Weight) -> Tensor:
    """(2, T, vocab_size) float32 of the probe by `GPT2`, from weights under our names."""
    probe = Probe.of(config)
    with torch.device("meta"):
        model = GPT2(config)
    layers = {f"h.{number}.": block for number, block in model.h.items()}
    fill_as_needed(model, layers, weight)
    inputs = {"positions": probe.positions, "sample_ids": torch.arange(2), "step": 0}
    return model.eval()(probe.tokens, **inputs)


@torch.no_grad()
def transformers_logits(directory: Path, weight: Weight, probe: Probe) -> Tensor:
    """(2, T, vocab_size) float32 of the probe by transformers' GPT2LMHeadModel, as the directory's
    config.json describes it, from weights under Hugging Face's names. Raises DataError."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with reading(directory / "config.json"):
        config = GPT2Config.from_pretrained(directory, local_files_only=True)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    layers = {f"transformer.h.{number}.": b for number, b in enumerate(model.transformer.h)}
    model.lm_head.weight = model.transformer.wte.weight  # so that it is not filled a second time
    fill_as_needed(model, layers, weight)
    model.lm_head.weight = model.transformer.wte.weight  # filling has replaced the parameter
    return model.eval()(probe.tokens, position_ids=probe.positions, use_cache=False).logits


def fill_as_needed(model: nn.Module, layers: dict[str, nn.Module], weight: Weight) -> None:
    """Have each layer (prefix of its names -> module) filled before it computes and emptied after;
    fill what lies outside the layers now."""
    inside = {p + name for p, layer in layers.items() for name, _ in layer.named_parameters()}
    for name, _ in list(model.named_parameters()):
        if name not in inside:
            _put(model, name, weight(name))
    for prefix, layer in layers.items():

        def fill(module, _, prefix=prefix):
            for name, _ in list(module.named_parameters()):
                _put(module, name, weight(prefix + name))

        layer.register_forward_pre_hook(fill)
        layer.register_forward_hook(_empty)


def _empty(module: nn.Module, *_) -> None:
    module.to("meta")


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, name = name.rpartition(".")
    setattr(module.get_submodule(owner), name, nn.Parameter(value.float(), requires_grad=False))


def require_same(actual: Tensor, expected: Tensor, what: str, why: str, remedy: str) -> None:
    """Raises DataError where two sides' logits differ."""
    if actual.shape == expected.shape:
        difference = ((actual - expected).abs().max() / expected.abs().max()).item()
        if difference <= TOLERANCE:
            return
    else:
        difference = float("nan")
    raise DataError(
        f"{what} computes other logits: relative difference {difference:.1e}, at most {TOLERANCE:.0e}",
        why,
        remedy,
    )
