"""Conversions leave whole directories or none, say what could not be read or written, and see a wrong row
of any table."""

import os
import shutil
from pathlib import Path

import pytest
from tiny_run import save_run

from megatron_yuyuan.checkpoint import hf_shards
from megatron_yuyuan.checkpoint.conversion import new_directory, scratch_beside
from megatron_yuyuan.checkpoint.hf import export_directory, import_directory
from megatron_yuyuan.checkpoint.hf_format import huggingface_tensor
from megatron_yuyuan.checkpoint.megatron_convert import export_megatron
from megatron_yuyuan.checkpoint.megatron_directory import TorchDist, write_torch_dist
from megatron_yuyuan.checkpoint.model import open_model
from megatron_yuyuan.checkpoint.probe import Probe
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import DataError, SpaceError

TEXTS = ["Question:What is gout? answer: Gout is a disease."] * 4
POSITIONS = 256


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("original") / "run"
    save_run(directory, TEXTS, max_position_embeddings=POSITIONS)
    return directory


@pytest.fixture
def run(original, tmp_path) -> Path:
    """A run, to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def by_ourselves(monkeypatch):
    """Exports are checked by our own readers."""
    monkeypatch.setattr("megatron_yuyuan.checkpoint.hf._has_transformers", lambda: False)
    monkeypatch.setattr("megatron_yuyuan.checkpoint.megatron_convert.has_megatron", lambda: False)


def test_a_directory_is_on_the_disk_when_it_has_its_name(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync

    def watched(descriptor):
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "new").exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with new_directory(tmp_path / "new") as partial:
        (partial / "file").write_text("a")
        with scratch_beside(partial) as scratch:
            assert scratch.parent == partial.parent == tmp_path and scratch != partial
    expected = [(str(partial / "file"), False), (str(partial), False), (str(tmp_path), True)]
    assert flushed == expected
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_another_process_left_or_makes_is_in_nobodys_way(tmp_path):
    """In a container every process may have the same number."""
    with new_directory(tmp_path / "new") as theirs, scratch_beside(theirs):
        with new_directory(tmp_path / "new") as ours, scratch_beside(ours):
            (ours / "file").write_text("a")
        assert theirs.is_dir()
        (tmp_path / "new" / "file").unlink()


def test_what_fails_to_be_written_is_said_and_removed(tmp_path):
    for number, error, said in ((28, SpaceError, "No space left"), (13, DataError, "Permission")):
        with (
            pytest.raises(error, match=f"cannot write {tmp_path / 'new'}: {said}") as raised,
            new_directory(tmp_path / "new") as partial,
            scratch_beside(partial),
        ):
            raise OSError(number, os.strerror(number))
        assert type(raised.value) is error and not list(tmp_path.iterdir())


def lose(run: Path, name: str) -> None:
    [path] = run.rglob(name)
    path.unlink()


def cut(run: Path, name: str) -> None:
    [path] = run.rglob(name)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("spoil", [lose, cut])
@pytest.mark.parametrize("kind", ["run", "huggingface"])
def test_what_cannot_be_read_while_writing_is_named(run, tmp_path, by_ourselves, spoil, kind):
    """It vanishes, or is cut, after it was opened: the error is not one of the target."""
    if kind == "huggingface":
        run = export_directory(open_model(run), tmp_path / "exported")
    name = "model.safetensors" if kind == "huggingface" else "*.distcp"
    for export in (export_directory, export_megatron):
        copy = Path(shutil.copytree(run, tmp_path / f"copy_{export.__name__}"))
        source = open_model(copy)
        spoil(copy, name)
        with pytest.raises(DataError, match=f"{copy}.* cannot be read") as raised:
            export(source, tmp_path / "new")
        assert "cannot write" not in str(raised.value)
        with pytest.raises(DataError):
            import_directory(copy, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damage_of_a_torch_dist_directory_is_named(run, tmp_path):
    source = open_model(run)
    for name, said in ((".metadata", r"\.metadata cannot be read"), ("*.distcp", "cannot be read")):
        (tmp_path / name[1:]).mkdir()
        path = write_torch_dist(tmp_path / name[1:], source.weights, source.config)
        cut(path, name)
        with pytest.raises(DataError, match=said):
            TorchDist(path)["decoder.final_layernorm.bias"]


def test_the_probe_reads_the_first_and_the_last_positions():
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 50}
    long = Probe.of(ModelConfig(max_position_embeddings=POSITIONS, **shape))
    assert long.positions.tolist() == [[*range(32)], [*range(POSITIONS - 32, POSITIONS)]]
    short = Probe.of(ModelConfig(max_position_embeddings=5, **shape))
    assert short.positions.tolist() == [[*range(5)]] * 2 and short.tokens.max() < 50


@pytest.mark.parametrize(
    ("row", "by_transformers"),
    [(31, True), (POSITIONS - 1, True), (0, False), (POSITIONS - 32, False)],
)
def test_one_wrong_row_of_positions_is_seen(
    original, tmp_path, monkeypatch, request, row, by_transformers
):
    def spoilt(name, tensor, config):
        tensor = huggingface_tensor(name, tensor, config).clone()
        if name == "wpe.weight":
            tensor[row] *= 1.01
        return tensor

    if by_transformers:
        pytest.importorskip("transformers", reason="needs transformers")
    else:
        request.getfixturevalue("by_ourselves")
    monkeypatch.setattr(hf_shards, "huggingface_tensor", spoilt)
    with pytest.raises(DataError, match="computes other logits"):
        export_directory(open_model(original), tmp_path / "bad")
    assert not list(tmp_path.iterdir())
