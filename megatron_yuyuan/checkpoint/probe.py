"""Logits of a few tokens, computed with one layer of the model in memory at a time.

A conversion compares both sides by them. Both are built without storage (`meta`); a layer gets its
weights when the forward pass reaches it and gives them back when it has passed.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2

Weight = Callable[[str], Tensor]
"""The weight of a name, of any dtype."""
TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest logit."""


def probe_tokens(config: ModelConfig) -> Tensor:
    """(2, at most 32) int64: tokens from all over the vocabulary."""
    length = min(32, config.max_position_embeddings)
    return (torch.arange(2 * length) * 7919 % config.vocab_size).view(2, length)


@torch.no_grad()
def our_logits(config: ModelConfig, weight: Weight, tokens: Tensor) -> Tensor:
    """(B, T) int64 -> (B, T, vocab_size) float32 by `GPT2`, from weights under our names."""
    with torch.device("meta"):
        model = GPT2(config)
    layers = {f"h.{number}.": block for number, block in model.h.items()}
    fill_as_needed(model, layers, weight)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model.eval()(tokens, positions=positions, sample_ids=tokens[:, 0], step=0)


@torch.no_grad()
def transformers_logits(directory: Path, weight: Weight, tokens: Tensor) -> Tensor:
    """(B, T) int64 -> (B, T, vocab_size) float32 by transformers' GPT2LMHeadModel, as the directory's
    config.json describes it, from weights under Hugging Face's names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config.from_pretrained(directory, local_files_only=True))
    layers = {f"transformer.h.{number}.": b for number, b in enumerate(model.transformer.h)}
    model.lm_head.weight = model.transformer.wte.weight
    fill_as_needed(model, layers, weight)
    model.lm_head.weight = model.transformer.wte.weight
    return model.eval()(tokens, use_cache=False).logits


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
