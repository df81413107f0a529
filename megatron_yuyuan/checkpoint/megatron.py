"""Megatron-core's GPTModel: names and layout of its tensors.

    ours                  GPTModel.state_dict()                                  what changes
    wte.weight (V, C)     embedding.word_embeddings.weight                       padding rows, on the way in: zeros
    wpe.weight            embedding.position_embeddings.weight                   nothing
    h.3.attn.c_attn       decoder.layers.3.self_attention.linear_qkv             nothing: (head, q|k|v, D) on both sides
    h.3.attn.c_proj       decoder.layers.3.self_attention.linear_proj            nothing
    h.3.mlp.c_fc, c_proj  decoder.layers.3.mlp.linear_fc1, linear_fc2            nothing
    h.3.ln_1, ln_2        decoder.layers.3.input_layernorm, pre_mlp_layernorm    nothing
    ln_f                  decoder.final_layernorm                                nothing

With Transformer Engine, and in every checkpoint on a disk, a LayerNorm belongs to the layer after it:
`self_attention.linear_qkv.layer_norm_weight`. Both names are read; files are written with the latter.
Source: Megatron-LM, megatron/core/models/gpt (GPTModel and its layer specs). GPTModel must be built with
learned positions, a tied head and gelu's tanh form, which is what --bias-gelu-fusion computes.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.hf_format import padded, require_shapes
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2

WHOLE = {
    "wte": "embedding.word_embeddings",
    "wpe": "embedding.position_embeddings",
    "ln_f": "decoder.final_layernorm",
}
LAYER = {
    "ln_1": "input_layernorm",
    "attn.c_attn": "self_attention.linear_qkv",
    "attn.c_proj": "self_attention.linear_proj",
    "ln_2": "pre_mlp_layernorm",
    "mlp.c_fc": "mlp.linear_fc1",
    "mlp.c_proj": "mlp.linear_fc2",
}
"""Our module -> Megatron-core's, of the model and of a layer."""
LAYERS = "decoder.layers."
FUSED = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""A LayerNorm by itself -> within the layer after it."""
EXTRA = "_extra_state"
"""How names end that hold the scales of FP8, which a conversion does not need."""


def megatron_name(name: str) -> str:
    """h.3.mlp.c_fc.bias -> decoder.layers.3.mlp.linear_fc1.bias"""
    module, _, kind = name.rpartition(".")
    if not module.startswith("h."):
        return f"{WHOLE[module]}.{kind}"
    _, number, module = module.split(".", 2)
    return f"{LAYERS}{number}.{LAYER[module]}.{kind}"


def fused_name(name: str) -> str:
    """A name of GPTModel as checkpoints have it: LayerNorms within the layer after them."""
    for alone, within in FUSED.items():
        name = name.replace(alone, within)
    return name


def to_megatron(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (GPT2.state_dict(), undivided) as GPTModel.state_dict() of a model without
    Transformer Engine, with padded_vocab_size rows; nothing is copied."""
    return {megatron_name(name): tensor for name, tensor in state_dict.items()}


class MegatronWeights(Mapping[str, Tensor]):
    """Megatron-core's tensors, each under our name when it is asked for.

    tensors: by the names of GPTModel.state_dict(), whole, with any number of padding rows; `module.`
    before them and extra states are passed over. Raises DataError: a tensor is missing, unknown or of
    another shape.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple], config: ModelConfig
    ):
        self._tensors, self._config = tensors, config
        given = {fused_name(n.removeprefix("module.")): n for n in shapes if not n.endswith(EXTRA)}
        with torch.device("meta"):
            expected = {n: tuple(t.shape) for n, t in GPT2(config).state_dict().items()}
        found = {fused_name(n): tuple(shapes[theirs]) for n, theirs in given.items()}
        wanted = {fused_name(megatron_name(name)): shape for name, shape in expected.items()}
        rows = fused_name(megatron_name("wte.weight"))
        if found.get(rows, (0, 0))[0] >= config.vocab_size:  # padded as any tensor degree wants it
            wanted[rows] = (found[rows][0], config.hidden_size)
        require_shapes(found, wanted)
        self._theirs = {name: given[fused_name(megatron_name(name))] for name in expected}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[self._theirs[name]]
        return padded(tensor, self._config) if name == "wte.weight" else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._theirs)

    def __len__(self) -> int:
        return len(self._theirs)


def from_megatron(state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of `to_megatron`, of a model with or without Transformer Engine; padding rows of
    the embedding are zeros. Raises DataError as `MegatronWeights`."""
    tensors = {n: tensor for n, tensor in state_dict.items() if isinstance(tensor, Tensor)}
    return dict(MegatronWeights(tensors, {n: t.shape for n, t in tensors.items()}, config))


def model_shape(
    shapes: Mapping[str, tuple], num_attention_heads: int, vocab_size: int, epsilon: float = 1e-5
) -> ModelConfig:
    """The shape of the GPTModel with these tensors, of which heads, tokens and epsilon cannot be seen.
    Raises DataError: no GPT-2."""
    known = {fused_name(name.removeprefix("module.")): shape for name, shape in shapes.items()}
    wte = known.get("embedding.word_embeddings.weight")
    wpe = known.get("embedding.position_embeddings.weight")
    inner = known.get(f"{LAYERS}0.mlp.linear_fc1.bias")
    if not (wte and wpe and inner):
        raise DataError(
            "these tensors are not a GPT-2's",
            "token and position embeddings and biases are expected under Megatron-core's names",
            "a GPTModel with --position-embedding-type learned_absolute",
        )
    layers = {m[1] for name in known if (m := re.match(rf"{re.escape(LAYERS)}(\d+)\.", name))}
    if wte[1] % num_attention_heads:
        raise DataError(
            f"num_attention_heads={num_attention_heads} does not divide hidden_size {wte[1]}",
            "heads share the width equally",
            "the number the model was trained with",
        )
    return ModelConfig(
        num_layers=len(layers),
        hidden_size=wte[1],
        num_attention_heads=num_attention_heads,
        max_position_embeddings=wpe[0],
        vocab_size=vocab_size,
        ffn_hidden_size=0 if inner[0] == 4 * wte[1] else inner[0],
        layernorm_epsilon=epsilon,
    )
