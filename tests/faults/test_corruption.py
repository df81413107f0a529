"""Damaged files are refused, passed over with a warning, or harmless; none is read silently.

The matrix is in corruption.py. A part of it is run always, the whole with the slow tests.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from commands import run, train_flags
from faults import corruption
from faults.corruption import VERDICTS, Subject, checkpoint, make_run, matrix, subjects, table

from megatron_yuyuan.checkpoint import manifest
from megatron_yuyuan.checkpoint.dcp import load_tensors, read_run, save_checkpoint
from megatron_yuyuan.checkpoint.manifest import digests, verify, verify_sizes
from megatron_yuyuan.checkpoint.newest import named_checkpoint, newest_before, newest_whole
from megatron_yuyuan.checkpoint.writer import BESIDE
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import ConfigErrors, DamagedError, DataError
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.origin import Origin, starting_point
from megatron_yuyuan.resolve import fall_back
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import MANIFEST, TRACKER, find_checkpoint

PORTION = 9
"""Of the cases, what is run always."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Subject]:
    return subjects(tmp_path_factory.mktemp("subjects"))


def test_no_damage_is_silent(made, tmp_path):
    found = {subject.name: matrix(subject, tmp_path, PORTION) for subject in made}
    print(table(found))
    counted = Counter(verdict for cases in found.values() for verdict in cases.values())
    assert [case for cases in found.values() for case in cases if cases[case] == "silent"] == []
    assert counted.total() > 100 and all(counted[verdict] for verdict in VERDICTS[:-1])


@pytest.mark.slow
def test_no_damage_of_the_whole_matrix_is_silent(made, tmp_path):
    found = {subject.name: matrix(subject, tmp_path) for subject in made}
    print(table(found))
    assert [case for cases in found.values() for case in cases if cases[case] == "silent"] == []
    assert sum(map(len, found.values())) > 1000


def test_without_the_checksums_most_damage_would_be_silent(made, tmp_path, monkeypatch):
    """The matrix can see it."""
    monkeypatch.setattr(manifest, "_refuse", lambda path, faults, manifest: None)
    [export] = (subject for subject in made if subject.name == "export")
    found = Counter(matrix(with_file(export, "model-00002"), tmp_path).values())
    assert found["silent"] > found["refused"]


def with_file(subject: Subject, name: str) -> Subject:
    """A subject of which one file alone is damaged, by flipped bits."""
    [file] = (file for file in subject.files if file.startswith(name))
    return Subject(subject.name, subject.folder, (file,), subject.read)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A run with checkpoints 1 and 3."""
    folder = tmp_path_factory.mktemp("original")
    train_bpe(iter(["gout is a disease"] * 9), 270).save(folder / "tokenizer")
    return make_run(folder / "run", folder / "tokenizer")


@pytest.fixture
def saved(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_with_strict_every_damage_of_a_checkpoint_stops_the_run(original, tmp_path):
    found = matrix(checkpoint(original, strict=True), tmp_path, PORTION)
    assert set(found.values()) == {"refused", "harmless"}


def newest(folder: Path) -> tuple[str, str]:
    """(name of the checkpoint that a run goes on from, what is said)."""
    found = newest_whole(folder, strict=False)
    return found.path.name, "; ".join(found.faults)


def test_what_is_whole_is_taken_without_a_word(saved):
    assert newest(saved) == ("iter_0000003", "")
    (saved / TRACKER).unlink()
    assert newest(saved) == ("iter_0000003", "")
    assert newest_whole(saved / "new", strict=True).path is None
    (saved / "first" / "iter_0000001.tmp").mkdir(parents=True)  # killed in its first save
    assert newest_whole(saved / "first", strict=True).path is None


@pytest.mark.parametrize("said", ["", "x", "-3", "3.0", "9", "1_0", "٣", "9" * 5000, "\0"])
def test_a_tracker_that_names_nothing_is_named_and_passed_over(saved, said):
    (saved / TRACKER).write_text(said)
    name, fault = newest(saved)
    assert name == "iter_0000003" and f"{TRACKER} says" in fault
    with pytest.raises(DamagedError, match="and that is not there"):
        newest_whole(saved, strict=True)
    with pytest.raises(DamagedError, match="--ckpt-step"):
        named_checkpoint(saved)
    assert named_checkpoint(saved, 1).name == "iter_0000001"


def test_a_run_that_was_taken_back_says_what_it_leaves(saved):
    (saved / TRACKER).write_text("1")
    name, fault = newest(saved)
    assert name == "iter_0000001" and "iter_0000003 are left alone" in fault
    assert newest_whole(saved, strict=True).path.name == "iter_0000001"


def test_a_checkpoint_that_a_killed_save_moved_aside_is_found(saved):
    (saved / "iter_0000003").rename(saved / "iter_0000003.old")
    assert newest(saved) == ("iter_0000003.old", "")
    assert find_checkpoint(saved) == saved / "iter_0000003.old"


def test_a_checkpoint_of_which_a_file_is_gone_is_passed_over(saved):
    (saved / "iter_0000003" / ".metadata").unlink()
    name, fault = newest(saved)
    assert name == "iter_0000001" and "iter_0000003 is damaged: .metadata is missing" in fault
    with pytest.raises(DamagedError, match="missing"):
        newest_whole(saved, strict=True)


def test_where_nothing_whole_is_left_a_run_never_begins_anew(saved):
    for path in saved.glob(f"iter_*/{MANIFEST}"):
        path.unlink()
    with pytest.raises(DamagedError, match="that is not there"):
        starting_point(Config().replace(save=str(saved)))
    (saved / TRACKER).unlink()
    with pytest.raises(DamagedError, match=r"no iter_\* there has its manifest.json"):
        starting_point(Config().replace(save=str(saved)))
    with pytest.raises(DamagedError):
        newest_before(saved / "iter_0000003")


def test_who_named_a_checkpoint_gets_that_one_or_none(saved):
    damaged = DamagedError("iter_0000003 is damaged", "why", "try")
    config = Config().replace(save=str(saved))
    origin = starting_point(config)
    for other in ({"strict": True}, {"ckpt_step": 3}):
        with pytest.raises(DamagedError, match="iter_0000003"):
            fall_back(origin, config.replace(**other), damaged)
    new = Origin(origin.path, True, origin.state, None, print)
    with pytest.raises(DamagedError, match="iter_0000003"):
        fall_back(new, config, damaged)
    shutil.rmtree(saved / "iter_0000001")
    with pytest.raises(DamagedError, match="iter_0000003"):
        fall_back(origin, config, damaged)


def test_strict_needs_a_run_to_continue():
    config = Config().replace(num_layers=1, hidden_size=8, num_attention_heads=1, train_iters=1)
    with pytest.raises(ConfigErrors, match="strict without save or load"):
        validate(config.replace(strict=True, vocab_size=9), 1)


MANIFESTS = {
    "[]": "is not a table",
    '{"a": 1}': "is not a table",
    "{": "is not a table",
    '{"../a": {"bytes": 1, "sha256": "' + "0" * 64 + '"}}': "is not a table",
    "{}": "says nothing of .metadata; manifest.json says nothing of __0_0.distcp",
}


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_manifest_that_vouches_for_nothing_is_refused(saved, content):
    path = saved / "iter_0000003"
    (path / MANIFEST).write_text(content)
    for check in (verify, verify_sizes):
        with pytest.raises(DamagedError, match=MANIFESTS[content]):
            check(path)


def test_state_json_is_compared_before_anything_of_it_is_believed(saved):
    path = saved / "iter_0000003"
    content = (path / "state.json").read_text()
    (path / "state.json").write_text(content.replace('"iteration": 3', '"iteration": 4'))
    with pytest.raises(DamagedError, match=r"state.json has another sha256"):
        verify_sizes(path)


@pytest.mark.parametrize("name", ["config", "optimizer", "tokenizer", "data_order", "template"])
def test_a_state_that_says_too_little_is_refused(saved, name):
    path = saved / "iter_0000003"
    state = json.loads((path / "state.json").read_text())
    for value in ({}, None, "text"):
        (path / "state.json").write_text(json.dumps(state | {name: value}))
        if not (name == "template" and value == {}):
            with pytest.raises(
                DataError, match=f"state.json: {name}.*missing or of the wrong type"
            ):
                read_run(path)
    del state[name]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=f"state.json: {name}.*missing or of the wrong type"):
        read_run(path)
    (path / "state.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read: it is not a JSON object"):
        read_run(path)


def test_a_file_that_cannot_be_read_is_named(saved, monkeypatch):
    def refuse(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(manifest, "digest", refuse)
    with pytest.raises(DamagedError, match=r"__0_0.distcp cannot be read \(Input/output error\)"):
        verify(saved / "iter_0000003")


def test_a_large_piece_has_the_digest_of_what_is_on_the_disk(tmp_path):
    """A thread computes it beside the writing."""
    path = save_checkpoint(tmp_path, 1, {"model.a": torch.randn(BESIDE)}, {})
    [file] = path.glob("*.distcp")
    assert file.stat().st_size > 4 * BESIDE
    verify(path)
    with file.open("r+b") as stream:
        stream.seek(2 * BESIDE)
        stream.write(b"x")
    with pytest.raises(DamagedError, match=file.name):
        verify(path)


def said_by_ranks(path: Path) -> str:
    """What loading a damaged checkpoint says on this rank."""
    try:
        load_tensors(path, {})
    except DamagedError as error:
        return error.what
    return ""


def test_every_rank_says_the_same_of_a_file_that_one_has_read(ranks, tmp_path):
    tensors = {f"model.{n}": torch.full((9,), float(n)) for n in range(3)}
    path = save_checkpoint(tmp_path, 1, tensors, {})
    assert ranks.run(2, said_by_ranks, path) == ""
    content = bytearray((path / "__0_0.distcp").read_bytes())
    content[40] ^= 1
    (path / "__0_0.distcp").write_bytes(content)
    assert "__0_0.distcp has" in ranks.run(2, said_by_ranks, path)
    assert digests(path).keys() == {".metadata", "__0_0.distcp", "state.json"}


def losses(save: Path) -> dict[int, float]:
    return {
        step["iteration"]: step["lm_loss"] for step in read_metrics(save / "metrics.jsonl", "step")
    }


def test_a_run_goes_on_from_the_whole_checkpoint_before_a_damaged_one(prepared, tmp_path):
    """And takes the steps that it had taken, bit for bit."""
    save, flags = tmp_path / "run", ("--eval-prompt-tokens", 0)
    run(*train_flags(prepared, save, *flags))
    undisturbed = losses(save)
    [file] = (save / "iter_0000012").glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    stopped = run(*train_flags(prepared, save, *flags, "--strict"), status=2)
    assert "iter_0000012 is damaged: __0_0.distcp has" in stopped.stderr
    ended = run(*train_flags(prepared, save, *flags))
    assert f"warning: {save / 'iter_0000012'} is damaged: __0_0.distcp has" in ended.stdout
    assert f"continuing {save / 'iter_0000008'}" in ended.stdout
    assert losses(save) == undisturbed
    verify(save / "iter_0000012")  # saved again, whole


def test_the_table_counts_every_case_once():
    cases = {corruption.Damage("a", "flipped", n): "refused" for n in range(3)}
    cases[corruption.Damage("b", "cut")] = "harmless"
    lines = table({"shard": cases}).splitlines()
    assert lines[-2:] == [
        "| shard | 4 | 3 | 0 | 0 | 1 | 0 |",
        "| **all** | 4 | 3 | 0 | 0 | 1 | 0 |",
    ]
