"""Hugging Face's GPT-2 on disk: names and layout of its tensors, config.json, weight files.

    ours                       Hugging Face's                     what changes
    wte.weight (V, C)          transformer.wte.weight             rows from vocab_size on are cut, or filled with zeros
    c_attn.weight (3 C, C)     ...c_attn.weight (C, 3 C)          (head, q|k|v, D) <-> (q|k|v, head, D), transposed
    c_attn.bias (3 C)          ...c_attn.bias                     (head, q|k|v, D) <-> (q|k|v, head, D)
    c_proj, c_fc .weight       ...                                transposed: Conv1D holds (in, out)
    the rest                   ...                                nothing
    no head: it is wte         lm_head.weight, if there, is wte   not written

Nothing of a directory is ever run: config.json is JSON, weights are safetensors or opened with
weights_only. Source of the layout: Hugging Face transformers, models/gpt2 (Conv1D and
GPT2Attention).
"""

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.errors import DataError, UnsafeError
from megatron_yuyuan.model.gpt2 import GPT2

PREFIX = "transformer."
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias")
"""Causal masks that old versions of transformers saved among the weights."""
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
    renamed = {}
    for name, tensor in state_dict.items():
        if name == "wte.weight":
            tensor = tensor[: config.vocab_size]
        if ".c_attn." in name:
            tensor = _regroup(tensor, config.num_attention_heads, 3)
        if name.endswith(TRANSPOSED):
            tensor = tensor.t()
        renamed[PREFIX + name] = tensor.detach().contiguous()
    return renamed


def from_huggingface(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`; padding rows of the embedding are zeros.

    Names may lack `transformer.`; lm_head.weight is accepted where it is the embedding, and masks
    that old files hold are passed over. Raises DataError: a tensor is missing, unknown or of
    another shape, or the head is not tied.
    """
    given = {
        name.removeprefix(PREFIX): t
        for name, t in tensors.items()
        if not name.endswith(OLD_BUFFERS)
    }
    head = given.pop("lm_head.weight", None)
    _check_tensors(given, config)
    if head is not None and not torch.equal(head, given["wte.weight"]):
        raise DataError(
            "lm_head.weight differs from wte.weight",
            "this GPT-2 predicts with its embedding",
            "a model with tie_word_embeddings true",
        )
    ours = {}
    for name, tensor in given.items():
        if name.endswith(TRANSPOSED):
            tensor = tensor.t()
        if ".c_attn." in name:
            tensor = _regroup(tensor, 3, config.num_attention_heads)
        if name == "wte.weight":
            padding = tensor.new_zeros(
                config.padded_vocab_size - config.vocab_size, config.hidden_size
            )
            tensor = torch.cat([tensor, padding])
        ours[name] = tensor.contiguous()
    return ours


def _regroup(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Rows ordered (outer, inner, D) to rows ordered (inner, outer, D)."""
    return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


def _check_tensors(given: dict[str, Tensor], config: ModelConfig) -> None:
    with torch.device("meta"):
        expected = to_huggingface(GPT2(config).state_dict(), config)
    shapes = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in expected.items()}
    faults = [f"{name} is missing" for name in shapes.keys() - given.keys()]
    faults += [f"{name} is unknown" for name in given.keys() - shapes.keys()]
    faults += [
        f"{name} is {tuple(given[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (
            f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        )
        raise DataError(
            f"these weights are not those of the configuration: {shown}",
            "each tensor has one place in the model",
            "the config.json that belongs to the weights",
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
    inner = values.get("n_inner") or 0
    return ModelConfig(
        **{ours: values[theirs] for ours, theirs in SHAPE.items()},
        ffn_hidden_size=0 if inner == 4 * values["n_embd"] else inner,
        init_method_std=float(values.get("initializer_range", 0.02)),
        layernorm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
        hidden_dropout=float(values.get("resid_pdrop", 0.1)),
        attention_dropout=float(values.get("attn_pdrop", 0.1)),
    )


def read_directory(directory: str | Path) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """Shape, tensors under our names and tokenizer of a Hugging Face GPT-2 directory.

    Raises DataError (damaged, incomplete, another kind of model, more tokens than rows of the
    embedding) and UnsafeError (it brings code).
    """
    directory = Path(directory)
    values = read_json(directory / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if (directory / name).exists() and "auto_map" in read_json(directory / name):
            raise UnsafeError(
                f"{directory / name} has auto_map",
                "it asks to run code that came with the model",
                "a model that plain GPT2LMHeadModel and GPT2Tokenizer load",
            )
    config = model_config(values, directory / "config.json")
    tokenizer = read_tokenizer(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, config.json vocab_size "
            f"{config.vocab_size}",
            "every token needs a row of the embedding",
            "the tokenizer that the model was trained with",
        )
    return config, from_huggingface(read_tensors(directory), config), tokenizer


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, of its shards, or of pytorch_model.bin. Raises DataError
    and UnsafeError."""
    index = directory / "model.safetensors.index.json"
    try:
        if (directory / "model.safetensors").exists():
            return load_file(directory / "model.safetensors")
        if index.exists():
            return _read_shards(index)
        if (directory / "pytorch_model.bin").exists():
            return torch.load(
                directory / "pytorch_model.bin", map_location="cpu", weights_only=True
            )
    except pickle.UnpicklingError:
        raise UnsafeError(
            f"{directory / 'pytorch_model.bin'} holds more than tensors",
            "opening it would run code",
            "the same model as model.safetensors",
        ) from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DataError(
            f"the weights in {directory} cannot be read: {error}",
            "the file is damaged or incomplete",
            "download it again and compare its checksum",
        ) from None
    raise DataError(
        f"no weights in {directory}",
        "it has neither model.safetensors nor pytorch_model.bin",
        "a directory that GPT2LMHeadModel.save_pretrained wrote",
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(
            f"{index} has no weight_map",
            "it says which file holds which tensor",
            "the file as it was published",
        )
    tensors = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise UnsafeError(
                f"{index} names {name!r}",
                "it lies outside the model's directory",
                "a model from a source you trust",
            )
        tensors |= load_file(index.parent / name)
    return tensors


def read_json(path: Path) -> dict:
    """A JSON object. Raises DataError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "it describes the model",
            "the file as it was published",
        ) from None
    if not isinstance(values, dict):
        raise DataError(
            f"{path} is not a JSON object", "it describes the model", "the file as it was published"
        )
    return values
