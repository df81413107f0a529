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

import hashlib
import json
import os
import pickle
import shutil
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from megatron_yuyuan.config import Config
from megatron_yuyuan.data import permutation
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import DataError, UnsafeError

FORMAT_VERSION = 1
TRACKER = "latest_checkpointed_iteration.txt"
_TENSOR_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
"""What DCP's .metadata is made of; beside these it names dtypes of torch."""


def checkpoint_path(directory: str | Path, iteration: int) -> Path:
    """SAVE/iter_0000500."""
    return Path(directory) / f"iter_{iteration:07d}"


def find_checkpoint(directory: str | Path, iteration: int | None = None) -> Path | None:
    """The whole checkpoint of an iteration; without one, what the tracker names, or else the newest
    whole; or None.

    Whole means that it has its manifest, which is written last.
    """
    whole = _whole(directory)
    if iteration is not None:
        path = checkpoint_path(directory, iteration)
        return path if path in whole else None
    with suppress(OSError, ValueError):
        path = checkpoint_path(
            directory, int((Path(directory) / TRACKER).read_text(encoding="utf-8"))
        )
        if path in whole:
            return path
    return whole[-1] if whole else None


def _whole(directory: str | Path) -> list[Path]:
    """Checkpoints with their manifest, in order; not one being written (.tmp) or replaced (.old)."""
    found = (p.parent for p in Path(directory).glob("iter_*/manifest.json"))
    return sorted(p for p in found if p.suffix == "")


def require_checkpoint(directory: str | Path, iteration: int | None = None) -> Path:
    """`find_checkpoint`, or DataError where it finds none."""
    path = find_checkpoint(directory, iteration)
    if path is None:
        which = f"of iteration {iteration} " if iteration is not None else ""
        found = [p.name for p in _whole(directory)]
        raise DataError(
            f"no checkpoint {which}in {directory}",
            "it was named as the place to start from",
            f"one of {', '.join(found)}"
            if found
            else "a run directory that holds iter_*/manifest.json",
        )
    return path


def read_state(path: Path) -> dict:
    """state.json of a checkpoint. Raises DataError: unreadable, or written by another version of
    the format."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}/state.json cannot be read: {error}",
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
    directory: str | Path, iteration: int, tensors: dict[str, Tensor], document: dict
) -> Path:
    """Write one checkpoint, on every rank of the job together (or by one process without a process
    group).

    tensors: by name, DTensors or plain; document: the rest of state.json. Atomic: nothing that
    looks whole exists before everything is on the disk. Raises DataError on the rank that could not
    write.
    """
    final = checkpoint_path(directory, iteration)
    partial = final.with_name(final.name + ".tmp")
    first = _rank() == 0
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _barrier()
        with _quiet():
            dcp.save(
                tensors,
                storage_writer=dcp.FileSystemWriter(partial),
                no_dist=not dist.is_initialized(),
            )
        if first:
            state = {"format_version": FORMAT_VERSION, "iteration": iteration, **document}
            (partial / "state.json").write_text(
                json.dumps(state, indent=1) + "\n", encoding="utf-8"
            )
        _barrier()
        manifest = _digests(partial)
        if first:
            (partial / "manifest.json").write_text(
                json.dumps(manifest, indent=1) + "\n", encoding="utf-8"
            )
            _publish(partial, final)
            with AtomicFiles() as files:
                files.open(Path(directory) / TRACKER).write(str(iteration).encode())
        _barrier()
    except (OSError, CheckpointException) as error:
        raise DataError(
            f"cannot write the checkpoint {final}: {error}",
            "its place refused it; the one before it stands",
            "a --save directory with room that may be written to",
        ) from None
    return final


def load_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place, each as it lies here, from a checkpoint of any layout. Every name
    must be there.

    The files are checked against the manifest first, shared among the ranks. Raises DataError
    (damaged, a name or shape that does not fit) and UnsafeError (metadata that would run code).
    """
    _verify(path)
    reader = _Reader(path)
    try:
        with _quiet():
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


class _RestrictedUnpickler(pickle.Unpickler):
    """Opens DCP's own .metadata, a pickle, and nothing in it but the classes that describe
    tensors."""

    def find_class(self, module: str, name: str):
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _TENSOR_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise UnsafeError(
            f"a checkpoint's .metadata names {module}.{name}",
            "opening it would run code",
            "a checkpoint from a source you trust",
        )


class _Reader(dcp.FileSystemReader):
    """DCP's reader with its metadata opened safely, once, before DCP takes over."""

    def __init__(self, path: Path):
        super().__init__(path)
        with (path / ".metadata").open("rb") as stream:
            self._metadata = _RestrictedUnpickler(stream).load()

    def read_metadata(self, *args, **kwargs) -> Metadata:
        self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


def _digests(path: Path) -> dict[str, dict]:
    """{file name: {"bytes", "sha256"}} of a directory, as rank 0 lists it; the ranks share the
    reading."""
    names = [sorted(p.name for p in path.iterdir() if p.name != "manifest.json")]
    if dist.is_initialized():
        dist.broadcast_object_list(names, src=0)
    mine = {}
    for name in names[0][_rank() :: _ranks()]:
        with (path / name).open("rb") as stream:
            mine[name] = {
                "bytes": os.path.getsize(path / name),
                "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            }
    return {name: entry for part in _gathered(mine) for name, entry in sorted(part.items())}


def _verify(path: Path) -> None:
    """Compare a checkpoint's files with its manifest. Raises DataError on every rank, naming each
    file at fault."""
    try:
        expected = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found = _digests(path)
        faults = [f"{n} is missing" for n in expected.keys() - found.keys()]
        faults += [
            f"{n} has {found[n]['bytes']} bytes and sha256 {found[n]['sha256'][:12]}, expected "
            f"{e['bytes']} and {e['sha256'][:12]}"
            for n, e in expected.items()
            if n in found and found[n] != e
        ]
    except (OSError, ValueError) as error:
        faults = [f"manifest.json: {error}"]
    if faults:
        raise DataError(
            f"{path} is damaged: {'; '.join(sorted(faults))}",
            "its weights cannot be trusted",
            "an earlier checkpoint, by --ckpt-step",
        )


def _publish(partial: Path, final: Path) -> None:
    """Put a whole directory under its name: every file and the directory itself on the disk
    first."""
    for entry in (*partial.iterdir(), partial):
        descriptor = os.open(entry, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    for left in final.parent.glob("iter_*.tmp"):  # of a run that was killed while it saved
        if left != partial:
            shutil.rmtree(left, ignore_errors=True)
    if final.exists():  # the same iteration saved again after a restart: the old one makes way
        aside = final.with_name(final.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
        os.rename(partial, final)
        shutil.rmtree(aside)
    else:
        os.rename(partial, final)


@contextmanager
def _quiet():
    """Without DCP's remarks about running in one process, or about gloo, which are as intended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _gathered(value) -> list:
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
