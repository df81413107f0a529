"""Between our checkpoints and Megatron-core's, each conversion checked by its logits: by Megatron-core's own
GPTModel, or by our own reader where it is not installed."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from megatron_yuyuan.checkpoint.conversion import new_directory, scratch_beside, write_run
from megatron_yuyuan.checkpoint.megatron import MegatronWeights
from megatron_yuyuan.checkpoint.megatron_directory import TorchDist, write_torch_dist
from megatron_yuyuan.checkpoint.megatron_legacy import find_legacy, open_legacy
from megatron_yuyuan.checkpoint.megatron_source import MegatronSource, open_source
from megatron_yuyuan.checkpoint.model import LoadedModel, StoredModel, imported_state
from megatron_yuyuan.checkpoint.probe import our_logits, require_same
from megatron_yuyuan.checkpoint.stored import StoredWeights
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import DataError


def export_megatron(source: StoredModel | LoadedModel, directory: str | Path) -> Path:
    """Write a directory that Megatron-LM loads with --load DIR --finetune (torch_dist, float32, as many
    rows of the embedding as padded_vocab_size); returns it. Raises ConfigError and DataError."""
    with new_directory(directory) as partial, scratch_beside(partial) as scratch:
        path = write_torch_dist(partial, source.weights, source.config)
        require_same(
            their_logits(path, source.config, scratch),
            our_logits(source.config, source.weights.__getitem__),
            "the exported model",
            "a mistake in the conversion",
            "report it, with the shape of the model",
        )
    return Path(directory)


def import_megatron(
    checkpoint: str | Path,
    run_directory: str | Path,
    tokenizer: Tokenizer,
    iteration: int | None = None,
    num_attention_heads: int = 0,
    trust: bool = False,
) -> Path:
    """Make a run directory with checkpoint iter_0000000 (weights only, float32) of a Megatron-core
    checkpoint, a directory or a file; returns it.

    tokenizer: the one it was trained with, which no checkpoint of Megatron's holds. trust: accept
    legacy mp_rank_* files, whose opening runs what they bring, in a process of its own. Raises
    ConfigError, DataError and UnsafeError.
    """
    checkpoint = Path(checkpoint)
    with new_directory(run_directory) as partial, scratch_beside(partial) as scratch:
        legacy = find_legacy(checkpoint, iteration) if trust else None
        source = (
            MegatronSource(legacy, *open_legacy(legacy, scratch))
            if legacy
            else open_source(checkpoint, iteration)
        )
        config, weights = source.weights(num_attention_heads, tokenizer.vocab_size)
        state = imported_state(config, tokenizer, TEMPLATE)
        write_run(StoredModel(config, weights, tokenizer, TEMPLATE, state, checkpoint), partial)
        written, path = StoredWeights(partial / "iter_0000000", config), source.path
        if not isinstance(source.tensors, TorchDist):  # the format that Megatron-core still reads
            path = write_torch_dist(scratch, weights, config)
        require_same(
            our_logits(config, written.__getitem__),
            their_logits(path, config, scratch),
            "the imported model",
            "a mistake in the conversion",
            "report it, with the arguments the model was trained with",
        )
    return Path(run_directory)


def their_logits(path: Path, config: ModelConfig, scratch: Path) -> Tensor:
    """Of a torch_dist checkpoint, (2, T, vocab_size) of the probe; `scratch`: a folder for a few files."""
    if not has_megatron():
        tensors = TorchDist(path)
        weights = MegatronWeights(tensors, tensors.shapes, config)
        return our_logits(config, weights.__getitem__)
    shape, output = scratch / "shape.json", scratch / "logits.safetensors"
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


def has_megatron() -> bool:
    """Whether Megatron-core is installed."""
    return importlib.util.find_spec("megatron") is not None and (
        importlib.util.find_spec("megatron.core") is not None
    )
