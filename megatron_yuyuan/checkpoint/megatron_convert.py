"""Between our checkpoints and Megatron-core's directories, each conversion checked by its logits: by
Megatron-core's own GPTModel, or by our own reader where it is not installed."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from megatron_yuyuan.checkpoint import megatron_legacy
from megatron_yuyuan.checkpoint.conversion import new_directory, write_run
from megatron_yuyuan.checkpoint.megatron import MegatronWeights, model_shape
from megatron_yuyuan.checkpoint.megatron_directory import (
    TorchDist,
    find_torch_dist,
    read_arguments,
    write_torch_dist,
)
from megatron_yuyuan.checkpoint.model import LoadedModel, StoredModel, imported_state
from megatron_yuyuan.checkpoint.probe import our_logits, probe_tokens, require_same
from megatron_yuyuan.checkpoint.stored import StoredWeights
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import ConfigError, DataError

COMPUTES_THE_SAME = {
    "position_embedding_type": ("learned_absolute",),
    "normalization": ("LayerNorm",),
    "apply_layernorm_1p": (False,),
    "swiglu": (False,),
    "squared_relu": (False,),
    "untie_embeddings_and_output_weights": (False,),
    "apply_residual_connection_post_layernorm": (False,),
}
"""Arguments of Megatron-LM's that change what is computed -> the values that are this GPT-2."""


def export_megatron(source: StoredModel | LoadedModel, directory: str | Path) -> Path:
    """Write a directory that Megatron-LM loads with --load DIR --finetune (torch_dist, float32, as many
    rows of the embedding as padded_vocab_size); returns it. Raises ConfigError and DataError."""
    with new_directory(directory) as partial:
        path = write_torch_dist(partial, source.weights, source.config)
        tokens = probe_tokens(source.config)
        require_same(
            their_logits(path, source.config),
            our_logits(source.config, source.weights.__getitem__, tokens),
            "the exported model",
            "a mistake in the conversion",
            "report it, with the shape of the model",
        )
    return Path(directory)


def import_megatron(
    megatron_directory: str | Path,
    run_directory: str | Path,
    tokenizer: Tokenizer,
    iteration: int | None = None,
    num_attention_heads: int = 0,
    trust: bool = False,
) -> Path:
    """Make a run directory with checkpoint iter_0000000 (weights only, float32) of a Megatron-core
    checkpoint; returns it.

    tokenizer: the one it was trained with, which no checkpoint of Megatron's holds. trust: accept
    legacy mp_rank_* files, whose opening runs what they bring, in a process of its own. Raises
    ConfigError, DataError and UnsafeError.
    """
    directory = Path(megatron_directory)
    with tempfile.TemporaryDirectory() as scratch, new_directory(run_directory) as partial:
        if legacy := megatron_legacy.find_legacy(directory, iteration):
            tensors, arguments = megatron_legacy.open_legacy(legacy, Path(scratch), trust)
            path = None
        else:
            path = find_torch_dist(directory, iteration)
            tensors, arguments = TorchDist(path), read_arguments(path)
        config = _shape(tensors.shapes, arguments, num_attention_heads, tokenizer.vocab_size)
        weights = MegatronWeights(tensors, tensors.shapes, config)
        state = imported_state(config, tokenizer, TEMPLATE)
        write_run(StoredModel(config, weights, tokenizer, TEMPLATE, state, directory), partial)
        written = StoredWeights(partial / "iter_0000000", config)
        if path is None:  # give Megatron-core the same tensors in the format that it still reads
            path = write_torch_dist(Path(scratch), weights, config)
        require_same(
            our_logits(config, written.__getitem__, probe_tokens(config)),
            their_logits(path, config),
            "the imported model",
            "a mistake in the conversion",
            "report it, with the arguments the model was trained with",
        )
    return Path(run_directory)


def their_logits(path: Path, config: ModelConfig) -> Tensor:
    """Of a torch_dist checkpoint, (B, T, vocab_size) of the probe's tokens."""
    if not has_megatron():
        tensors = TorchDist(path)
        weights = MegatronWeights(tensors, tensors.shapes, config)
        return our_logits(config, weights.__getitem__, probe_tokens(config))
    with tempfile.TemporaryDirectory() as scratch:
        shape, output = Path(scratch) / "shape.json", Path(scratch) / "logits.safetensors"
        shape.write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")
        program = [sys.executable, "-W", "ignore", "-m", f"{__package__}.megatron_logits"]
        ended = subprocess.run(
            [*program, path, shape, output], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(
                f"Megatron-core cannot compute {path}: {reason}",
                "the conversion cannot be checked",
                "the release of megatron-core in constraints.txt",
            )
        return load_file(output)["logits"]


def _require_tanh_gelu(arguments: Namespace) -> None:
    """Megatron-LM's fused GeLU and its OpenAI's are the tanh form; without either it is the exact one."""
    fused = getattr(arguments, "bias_gelu_fusion", True)
    if not fused and not getattr(arguments, "openai_gelu", False):
        raise DataError(
            "the checkpoint was trained with bias_gelu_fusion=False",
            "that is the exact GeLU, GPT-2's is the tanh form",
            "a model trained with the fused GeLU, or with --openai-gelu",
        )


def has_megatron() -> bool:
    """Whether Megatron-core is installed."""
    return importlib.util.find_spec("megatron") is not None and (
        importlib.util.find_spec("megatron.core") is not None
    )


def _shape(
    shapes: dict, arguments: Namespace | None, num_attention_heads: int, vocab_size: int
) -> ModelConfig:
    """The model's shape, by its tensors and its arguments. Raises ConfigError and DataError."""
    if arguments is not None:
        _require_tanh_gelu(arguments)
    for name, accepted in COMPUTES_THE_SAME.items():
        value = getattr(arguments, name, accepted[0])
        if value not in accepted:
            raise DataError(
                f"the model was trained with {name} {value!r}",
                "this GPT-2 would compute something else",
                f"a model with {name} {accepted[0]!r}",
            )
    heads = num_attention_heads or getattr(arguments, "num_attention_heads", 0)
    if not heads:
        raise ConfigError(
            "num_attention_heads is not given",
            "tensors do not show it, and the checkpoint's arguments cannot be read without running code",
            "--num-attention-heads N, as the model was trained with",
        )
    epsilon = getattr(arguments, "norm_epsilon", None) or 1e-5
    return model_shape(shapes, heads, vocab_size, epsilon)
