"""Our checkpoint on disk: torch's distributed checkpoint (DCP) for tensors, JSON for everything
else.

    SAVE/latest_checkpointed_iteration.txt      the newest one's number, Megatron-LM's file
    SAVE/iter_0000500/*.distcp, .metadata       tensors by name: model.NAME, exp_avg.NAME, exp_avg_sq.NAME
    SAVE/iter_0000500/state.json                format_version, iteration, consumed_samples, configuration, tokenizer,
                                                template, random key, order of the data
    SAVE/iter_0000500/manifest.json             size and sha256 of every other file; written last

A checkpoint is written as iter_0000500.tmp and renamed when whole. Tensors carry their global
shape, so any layout loads what any layout saved. docs/checkpoint_format.md has the details.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from megatron_yuyuan.checkpoint.leftovers import remove_leftovers
from megatron_yuyuan.checkpoint.manifest import STATE, digest, verify
from megatron_yuyuan.checkpoint.metadata import SafeReader
from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.checkpoint.reading import DAMAGED_PICKLE, quiet, reading
from megatron_yuyuan.checkpoint.space import checkpoint_bytes, no_space, require_space
from megatron_yuyuan.checkpoint.writer import DigestingWriter, without_crc32
from megatron_yuyuan.config import Config
from megatron_yuyuan.data import permutation
from megatron_yuyuan.data.files import AtomicFiles, to_disk
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import NO_SPACE, DataError, YuyuanError
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.watch.saved import (
    MANIFEST,
    TRACKER,
    checkpoint_path,
    find_checkpoint,
    iteration_of,
    whole_checkpoints,
)

FORMAT_VERSION = 1
DESCRIBED = {
    "iteration": int,
    "consumed_samples": int,
    "optimizer": bool,
    "optimizer_steps": int | None,
    "tokenizer": dict,
    "template": dict,
    "data_order": int,
    "config": dict,
}
"""Entries of state.json that every run has -> what they are."""


def require_checkpoint(directory: str | Path, iteration: int | None = None) -> Path:
    """`find_checkpoint`, or DataError where it finds none."""
    path = find_checkpoint(directory, iteration)
    if path is None:
        which = f"of iteration {iteration} " if iteration is not None else ""
        raise DataError(
            f"no checkpoint {which}in {directory}",
            "it was named as the place to start from"
            if Path(directory).exists()
            else "there is no such directory",
            _what_to_name(Path(directory)),
        )
    return path


def _what_to_name(directory: Path) -> str:
    """What a person may have meant by a directory without the checkpoint."""
    if found := [str(iteration_of(path)) for path in whole_checkpoints(directory)]:
        return f"--ckpt-step with one of {', '.join(found)}"
    if (directory / MANIFEST).exists():
        return f"the run that it belongs to: {directory.parent} and --ckpt-step {iteration_of(directory)}"
    if (directory / "config.json").exists():
        return f"hf:{directory}, if it is a model of Hugging Face's"
    return "a run directory that holds iter_*/manifest.json"


def read_state(path: Path) -> dict:
    """state.json of a checkpoint. Raises DataError: unreadable, or written by another version of
    the format."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}/{STATE} cannot be read: {error}",
            "the checkpoint is damaged",
            "an earlier checkpoint, by --ckpt-step",
        ) from None
    if state.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format_version {state.get('format_version')}, this code reads {FORMAT_VERSION}",
            "names or layout of its tensors may differ",
            "the version of megatron_yuyuan that wrote it",
        )
    return state


def read_run(path: Path) -> dict:
    """`read_state` of a checkpoint that `describe_run` describes. Raises DataError: an entry missing, or
    not of its kind."""
    state = read_state(path)
    wrong = [name for name, kind in DESCRIBED.items() if not isinstance(state.get(name), kind)]
    for name, inner in (("config", "model"), ("tokenizer", "fingerprint")):
        if name not in wrong and inner not in state[name]:
            wrong.append(f"{name}.{inner}")
    if wrong:
        raise DataError(
            f"{path}/{STATE}: {', '.join(wrong)} missing or of the wrong type",
            "the run and its model are rebuilt from these entries",
            "a checkpoint that this package wrote",
        )
    return state


def describe_run(
    config: Config,
    tokenizer: Tokenizer,
    consumed_samples: int,
    optimizer_steps: int | None,
    template: QuestionTemplate = TEMPLATE,
) -> dict:
    """What state.json says of a run beside format and iteration. optimizer_steps: how many the
    moments have seen; None if the checkpoint holds weights only."""
    return {
        "consumed_samples": consumed_samples,
        "optimizer": optimizer_steps is not None,
        "optimizer_steps": optimizer_steps,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "template": template.to_dict(),
        "random": {"generator": "philox4x32-10", "key": config.training.seed},
        "data_order": permutation.VERSION,
        "config": config.to_dict(),
    }


def save_checkpoint(
    directory: str | Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    document: dict,
    group: dist.ProcessGroup | None = None,
    one_file: bool = True,
) -> Path:
    """Write one checkpoint, on every rank of the job together (or by one process without a process
    group).

    tensors: by name, DTensors or plain; document: the rest of state.json; group: see `Ranks`;
    one_file: False gives every tensor a file of its own, so that only one need be in memory
    (`conversion.Deferred`).
    Atomic: nothing that looks whole exists before everything is on the disk, and what was begun and
    failed is removed. Raises DataError on every rank alike, and of these SpaceError where there is
    no room: before the first byte if so few are free, else when the disk says so.
    """
    final, ranks = checkpoint_path(directory, iteration), Ranks(group)
    partial = final.with_name(final.name + ".tmp")
    needed = checkpoint_bytes(tensors, ranks)
    writer = DigestingWriter(partial, one_file)
    try:
        ranks.on_first(lambda: _begin(partial, needed))
        with quiet(), without_crc32():
            dcp.save(
                dict(tensors),
                storage_writer=writer,
                process_group=group,
                no_dist=not dist.is_initialized(),
            )
        digests = {
            n: entry
            for part in ranks.all_gather_object(writer.digests)
            for n, entry in part.items()
        }
        state = {"format_version": FORMAT_VERSION, "iteration": iteration, **document}
        ranks.on_first(lambda: _finish(partial, final, state, digests))
    except (OSError, CheckpointException) as error:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise _refused(final, error) from None
    return final


def _begin(partial: Path, needed: int) -> None:
    """Remove what killed runs left, require so many free bytes, and make an empty directory."""
    remove_leftovers(partial.parent)
    require_space(partial.parent, needed)
    partial.mkdir(parents=True)
    fault_point("save.made")


def _finish(partial: Path, final: Path, state: dict, digests: dict[str, dict]) -> None:
    """Add to the tensors what makes a checkpoint of them, and publish it."""
    _write_json(partial / STATE, state)
    fault_point("save.state_written")
    digests = digests | {STATE: digest(partial / STATE)}
    _write_json(partial / MANIFEST, digests)
    fault_point("save.manifest_written")
    _publish(partial, final)
    fault_point("save.published")
    with AtomicFiles() as files:
        files.open(final.parent / TRACKER).write(str(state["iteration"]).encode())
    fault_point("save.tracked")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _refused(final: Path, error: OSError | CheckpointException) -> YuyuanError:
    """The error for a checkpoint that could not be written, or one of whose tensors could not be produced."""
    causes: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        causes = [found for found, _ in error.failures.values()]
    for cause in causes:
        if isinstance(cause, YuyuanError):
            return cause
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            return no_space(final, str(cause.strerror))
    return DataError(
        f"cannot write the checkpoint {final}: {'; '.join(sorted({str(c) for c in causes}))}",
        "it was refused there; the previous checkpoint is intact",
        "a --save directory with room that may be written to",
    )


def load_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place, each as it lies here, from a checkpoint of any layout. Every name
    must be there.

    The files are checked against the manifest first, shared among the ranks. Raises DataError
    (damaged, a name or shape that does not fit) and UnsafeError (metadata that would run code).
    """
    verify(path)
    with reading(path / ".metadata", *DAMAGED_PICKLE):
        reader = SafeReader(path)
    try:
        with quiet():
            dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        causes = {
            str(cause[0] if isinstance(cause, tuple) else cause)
            for cause in error.failures.values()
        }
        raise DataError(
            f"{path} does not fit: {'; '.join(sorted(causes))}",
            "its tensors are not those of this model",
            "the configuration it was saved with, in its state.json",
        ) from None
    except (torch.OutOfMemoryError, dist.DistError):
        raise  # not the checkpoint's fault
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{path} does not fit: {error}",
            "its tensors are not those of this model",
            "the configuration it was saved with, in its state.json; --no-load-optim if it has weights only",
        ) from None


def _publish(partial: Path, final: Path) -> None:
    """Put a whole directory under its name: every file and the directory itself on the disk
    first, and the new name on the disk when it returns."""
    for entry in (*partial.iterdir(), partial):
        to_disk(entry)
        fault_point("save.file_synced")
    if final.exists():  # the same iteration saved again after a restart: the old one makes way
        aside = final.with_name(final.name + ".old")
        os.rename(final, aside)
        fault_point("save.moved_aside")
        os.rename(partial, final)
        to_disk(final.parent)  # before the old one goes: a power loss takes one of them at most
        shutil.rmtree(aside)
    else:
        os.rename(partial, final)
    fault_point("save.renamed")
    to_disk(final.parent)
