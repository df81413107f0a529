"""Hugging Face's GPT-2: names and layout of its tensors, and config.json.

    ours                       Hugging Face's                     what changes
    wte.weight (V, C)          transformer.wte.weight             rows from vocab_size on are cut, or filled with zeros
    c_attn.weight (3 C, C)     ...c_attn.weight (C, 3 C)          (head, q|k|v, D) <-> (q|k|v, head, D), transposed
    c_attn.bias (3 C)          ...c_attn.bias                     (head, q|k|v, D) <-> (q|k|v, head, D)
    c_proj, c_fc .weight       ...                                transposed: Conv1D holds (in, out)
    the rest                   ...                                nothing
    no head: it is wte         lm_head.weight, if there, is wte   not written

Source of the layout: Hugging Face transformers, models/gpt2 (Conv1D and GPT2Attention). The files
are opened by `hf_directory`.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2

PARAMETER_PREFIX = "transformer."
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias")
"""Causal masks that old versions of transformers saved among the weights."""
NUMBERS = ("initializer_range", "layer_norm_epsilon", "resid_pdrop", "attn_pdrop")
"""Entries of config.json that may be absent."""
SHAPE = {
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "vocab_size": "vocab_size",
}
"""Our field -> the entry of config.json that must be there."""
ACCEPTED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "tie_word_embeddings": (True,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
"""Entries of config.json that change what is computed -> the values that are this GPT-2; absent
means the first."""


def to_huggingface(state_dict: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors (GPT2.state_dict(), undivided) under Hugging Face's names, in its layout; dtypes
    are kept."""
    return {
        PARAMETER_PREFIX + name: huggingface_tensor(name, t, config)
        for name, t in state_dict.items()
    }


def huggingface_tensor(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """One of our tensors in Hugging Face's layout."""
    if name == "wte.weight":
        tensor = tensor[: config.vocab_size]
    if ".c_attn." in name:
        tensor = _regroup(tensor, config.num_attention_heads, 3)
    if name.endswith(TRANSPOSED):
        tensor = tensor.t()
    return tensor.detach().contiguous()


class HuggingFaceWeights(Mapping[str, Tensor]):
    """Hugging Face's tensors, each under our name and in our layout when it is asked for.

    Names may lack `transformer.`; lm_head.weight is accepted where it is the embedding, and masks
    that old files hold are passed over. Raises DataError: a tensor is missing, unknown or of
    another shape, or the head is not tied.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: ModelConfig):
        self._tensors, self._config = tensors, config
        self._theirs = {
            n.removeprefix(PARAMETER_PREFIX): n for n in tensors if not n.endswith(OLD_BUFFERS)
        }
        head = self._theirs.pop("lm_head.weight", None)
        shapes = {name: tuple(tensors[theirs].shape) for name, theirs in self._theirs.items()}
        require_shapes(shapes, _huggingface_shapes(config))
        if head is not None and not torch.equal(tensors[head], tensors[self._theirs["wte.weight"]]):
            raise DataError(
                "lm_head.weight differs from wte.weight",
                "this GPT-2 predicts with its embedding",
                "a model with tie_word_embeddings true",
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._theirs)

    def __len__(self) -> int:
        return len(self._theirs)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, of the dtype it has; padding rows of the embedding are zeros."""
        tensor, config = self._tensors[self._theirs[name]], self._config
        if name.endswith(TRANSPOSED):
            tensor = tensor.t()
        if ".c_attn." in name:
            tensor = _regroup(tensor, 3, config.num_attention_heads)
        return padded(tensor, config) if name == "wte.weight" else tensor.contiguous()


def padded(rows: Tensor, config: ModelConfig) -> Tensor:
    """An embedding with at least vocab_size rows, cut there and filled with zeros to the padded size."""
    padding = config.padded_vocab_size - config.vocab_size
    return torch.cat([rows[: config.vocab_size], rows.new_zeros(padding, rows.shape[1])])


def from_huggingface(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`; padding rows of the embedding are zeros. Raises DataError as
    `HuggingFaceWeights`."""
    return dict(HuggingFaceWeights(tensors, config))


def _regroup(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Rows ordered (outer, inner, D) to rows ordered (inner, outer, D)."""
    return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


def _huggingface_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our names -> shapes in Hugging Face's layout."""
    with torch.device("meta"):
        expected = to_huggingface(GPT2(config).state_dict(), config)
    return {
        name.removeprefix(PARAMETER_PREFIX): tuple(tensor.shape)
        for name, tensor in expected.items()
    }


def require_shapes(given: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raises DataError, naming the tensors at fault, where names or shapes are not those of the
    model."""
    faults = [f"{name} is missing" for name in expected.keys() - given.keys()]
    faults += [f"{name} is unknown" for name in given.keys() - expected.keys()]
    faults += [
        f"{name} is {given[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (
            f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        )
        raise DataError(
            f"these weights are not those of the configuration: {shown}",
            "each tensor has one place in the model",
            "the configuration that belongs to the weights",
        )


def huggingface_config(config: ModelConfig, eod: int, dtype: str) -> dict:
    """config.json of a GPT2LMHeadModel; `dtype` as torch names it, twice: transformers 4 reads
    torch_dtype."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_position_embeddings,
        "n_ctx": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.mlp_size,
        "layer_norm_epsilon": config.layernorm_epsilon,
        "initializer_range": config.init_method_std,
        "resid_pdrop": config.hidden_dropout,
        "embd_pdrop": config.hidden_dropout,
        "attn_pdrop": config.attention_dropout,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "use_cache": True,
        "bos_token_id": eod,
        "eos_token_id": eod,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def model_config(values: dict, source: str | Path) -> ModelConfig:
    """The inverse of `huggingface_config`. Raises DataError: not this GPT-2, or its shape is not
    there."""
    for name, accepted in ACCEPTED.items():
        value = values.get(name, accepted[0])
        if value not in accepted:
            raise DataError(
                f"{source}: {name} is {value!r}",
                "this GPT-2 would compute something else",
                f"a model with {name} {' or '.join(map(repr, accepted))}",
            )
    for theirs in SHAPE.values():
        if type(values.get(theirs)) is not int or values[theirs] < 1:
            raise DataError(
                f"{source}: {theirs} is {values.get(theirs)!r}",
                "the model cannot be built without it",
                "the config.json as it was published",
            )
    if values["n_embd"] % values["n_head"]:
        raise DataError(
            f"{source}: n_embd {values['n_embd']} is not a multiple of n_head {values['n_head']}",
            "heads share the width equally",
            "the config.json as it was published",
        )
    for theirs in NUMBERS:
        value = values.get(theirs, 0.0)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise _no_number(source, theirs, value)
    inner = values.get("n_inner") or 0
    if type(inner) is not int or inner < 0:
        raise _no_number(source, "n_inner", inner)
    return ModelConfig(
        **{ours: values[theirs] for ours, theirs in SHAPE.items()},
        ffn_hidden_size=0 if inner == 4 * values["n_embd"] else inner,
        init_method_std=float(values.get("initializer_range", 0.02)),
        layernorm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
        hidden_dropout=float(values.get("resid_pdrop", 0.1)),
        attention_dropout=float(values.get("attn_pdrop", 0.1)),
    )


def _no_number(source: str | Path, name: str, value: object) -> DataError:
    return DataError(
        f"{source}: {name} is {value!r}",
        "it is a number, 0 or more",
        "the config.json as it was published",
    )
