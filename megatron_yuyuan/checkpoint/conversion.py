"""What every conversion shares: a directory that appears whole or not at all, and a run directory made
of weights from elsewhere."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.dcp import save_checkpoint
from megatron_yuyuan.checkpoint.model import StoredModel
from megatron_yuyuan.config_toml import from_dict, to_toml
from megatron_yuyuan.data.files import to_disk
from megatron_yuyuan.errors import ConfigError, refused_by_disk
from megatron_yuyuan.faults import fault_point
from megatron_yuyuan.model.gpt2 import GPT2


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its name when the `with` block ends well,
    else goes. A process that is killed leaves it, as `.NAME.HEX.tmp`.

    Raises ConfigError where the target exists and is not an empty directory, DataError where the
    disk refuses, and of these SpaceError where it is full. What is read within must say itself that
    it cannot be (`reading`): an OSError is taken for one of writing.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} exists and is not empty",
            "nothing that is there is overwritten",
            "a --save that does not exist yet",
        )
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        fault_point("convert.made")
        yield partial
        fault_point("convert.written")
        for entry in (*partial.rglob("*"), partial):
            to_disk(entry)
            fault_point("convert.file_synced")
        os.rename(partial, target)
        fault_point("convert.renamed")
        to_disk(target.parent)
    except OSError as error:
        raise refused_by_disk(error)(
            f"cannot write {target}: {error.strerror or error}",
            "the output would be incomplete",
            "a --save in a folder with room that may be written to",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_beside(partial: Path) -> Iterator[Path]:
    """A folder for what a conversion needs on the way: on the file system of its target, which has room,
    as the system's folder for temporary files need not."""
    with tempfile.TemporaryDirectory(
        ".tmp", f"{partial.stem}.scratch.", partial.parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


class Deferred(torch.Tensor):
    """A tensor of the `meta` device that is made when DCP writes it. Source: torch's protocol `_Checkpointable`,
    of which DCP needs no more for a tensor that is not divided."""

    make: Callable[[], Tensor]

    def __get_tensor_shard__(self, index) -> Tensor:
        return self.make()


def write_run(source: StoredModel, partial: Path) -> None:
    """Make a run directory of checkpoint iter_0000000 in an empty one: weights only, float32, a file for
    each tensor, of which one is in memory at a time."""
    with torch.device("meta"):
        weights = GPT2(source.config).state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        deferred = tensor.as_subclass(Deferred)
        deferred.make = lambda name=name: source.weights[name].float()
        tensors[f"model.{name}"] = deferred
    source.tokenizer.save(partial / "tokenizer")
    config = to_toml(from_dict(source.state["config"]))
    (partial / "config.toml").write_text(config, encoding="utf-8")
    save_checkpoint(partial, 0, tensors, source.state, one_file=False)
