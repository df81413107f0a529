"""python -m megatron_yuyuan.doctor: what would keep a job from running."""

import errno
import importlib.machinery
import json
import os
import platform
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import run, train_flags
from tiny import TINY
from tiny_run import save_run

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.config import Config
from megatron_yuyuan.doctor import __main__ as command
from megatron_yuyuan.doctor import examination, last_run, machine, network, phases, storage
from megatron_yuyuan.doctor.examination import examine
from megatron_yuyuan.doctor.findings import ERROR, OK, WARNING, Finding, merged, name_ranks
from megatron_yuyuan.doctor.memory import memory_finding
from megatron_yuyuan.doctor.network import Measured, group_finding
from megatron_yuyuan.errors import ConfigError, KernelsError, LostError
from megatron_yuyuan.kernels import apex
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.watch import lease

GPU = torch.device("cuda", 0)


def examined(words: tuple, finetuning: bool = False) -> dict[str, list[Finding]]:
    """{name: findings} of a command's flags, on ranks of the pool."""
    mesh_module.stop = lambda: None  # the process group is the pool's
    found: dict[str, list[Finding]] = {}
    page = examine(parse_config("", [str(word) for word in words]), finetuning)
    for finding in page.findings:
        found.setdefault(finding.name, []).append(finding)
    return found


def test_a_good_command_on_four_ranks_is_ok_throughout(ranks, prepared, tmp_path):
    flags = train_flags(prepared, tmp_path / "run")[1:]
    layout = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    found = ranks.run(4, examined, (*flags, *layout))
    names = "torch device backend compilers kernels apex checkpoint tokenizer configuration shards"
    axes = ["group all", "group pipeline", "group tensor", "group tied"]
    assert list(found) == [
        *names.split(),
        "memory",
        *axes,
        "save directory",
        "disk",
        "disk speed",
        "barrier",
    ]
    errors = [f for findings in found.values() for f in findings if f.level == ERROR]
    assert not errors
    assert "pipeline 2 x data 1 x tensor 2; 8 samples" in found["configuration"][0].said
    assert "2 groups of 2 ranks: " in found["group tensor"][0].said
    assert "fresh weights" in found["checkpoint"][0].said
    assert "keeps up to 3" in found["disk"][0].said
    assert list(tmp_path.iterdir()) == []


def test_a_data_axis_is_measured_as_its_parts_and_whole(ranks):
    hybrid = ("--device", "cpu", "--num-distributed-optimizer-instances", 2)
    found = ranks.run(4, groups_of, hybrid)
    assert found == ["all", "replica", "shard", "data"]


def groups_of(words: tuple) -> list[str]:
    config = parse_config("", [str(word) for word in words])
    return list(network.groups(mesh_module.start(config.parallel)))


def test_what_is_wrong_is_said_all_at_once(ranks, prepared, tmp_path):
    flags = train_flags(prepared, tmp_path / "run", "--num-attention-heads", 5, "--bf16", "--fp16")
    found = ranks.run(2, examined, flags[1:])
    problems = found["configuration"]
    assert {finding.level for finding in problems} == {ERROR}
    assert [problem.said[:13] for problem in problems] == ["hidden_size=3", "fp16 and bf16"]
    assert all(problem.why and problem.remedy for problem in problems)
    assert "shards" not in found
    assert found["group all"][0].level != ERROR  # the machine is examined all the same
    assert "disk" in found


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (("--data-path", "nothing_here"), "shards", "cannot read nothing_here"),
        (("--tokenizer-model", "nothing_here"), "tokenizer", "nothing_here"),
        (("--load", "nothing_here"), "checkpoint", "no checkpoint in nothing_here"),
        (("--save", __file__ + "/run"), "save directory", f"cannot write in {__file__}/run"),
        (("--hidden-size", 2**17), "save directory", "no room for a checkpoint"),
    ],
    ids=["shards", "tokenizer", "load", "save", "space"],
)
def test_each_thing_that_is_missing_is_an_error(ranks, prepared, tmp_path, change, name, said):
    found = ranks.run(1, examined, train_flags(prepared, tmp_path / "run", *change)[1:])
    [finding] = [finding for finding in found[name] if finding.level == ERROR]
    assert said in finding.said
    assert finding.why
    assert finding.remedy


def without_a_tokenizer(words: tuple) -> dict[str, list[Finding]]:
    """The same, where the host of rank 1 lacks the tokenizer."""
    at = words.index("--tokenizer-model") + 1
    own = (*words[:at], "nothing_here", *words[at + 1 :])
    return examined(own if dist.get_rank() == 1 else words)


def test_a_file_that_one_host_lacks_is_an_error_of_its_rank(ranks, prepared, tmp_path):
    layout = ("--tensor-model-parallel-size", 2)
    flags = train_flags(prepared, tmp_path / "run", *layout)[1:]
    found = ranks.run(2, without_a_tokenizer, flags)
    [error] = [finding for finding in found["tokenizer"] if finding.level == ERROR]
    assert "nothing_here" in error.said
    assert error.said.endswith("(rank 1)")
    assert found["configuration"][0].level == WARNING  # rank 0 came further
    assert "group all" in found
    assert "group tensor" not in found  # the mesh of the layout is not built by one rank alone


def test_finetuning_is_told_that_it_needs_weights(ranks, prepared, tmp_path):
    found = ranks.run(1, examined, train_flags(prepared, tmp_path / "run")[1:], True)
    assert found["checkpoint"][0].remedy.startswith("--load RUN_DIRECTORY")


def test_the_command_ends_with_2_for_an_error_and_leaves_nothing(prepared, tmp_path):
    flags = train_flags(prepared, tmp_path / "run", "--lr", "-1", "--json")
    bad = run("-m", "megatron_yuyuan.doctor", *flags, status=2)
    findings = json.loads(bad.stdout)
    assert [f["said"] for f in findings if f["level"] == ERROR] == ["lr=-1.0"]
    assert bad.stderr.startswith("error: the doctor found errors: configuration\n  why: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # four processes import torch
def test_torchrun_gives_one_page(prepared, tmp_path):
    flags = train_flags(prepared, tmp_path / "run", "--lr", "-1")
    ended = run("-m", "megatron_yuyuan.doctor", *flags, ranks=2, status=None)
    assert ended.returncode
    assert ended.stdout.count("torch           ") == 1
    assert ended.stderr.count("error: the doctor found errors") == 1


def test_without_a_command_the_machine_alone_is_examined(ranks):
    found = ranks.run(1, examined, ("--device", "cpu"))
    assert "job" in found
    assert not {"shards", "save directory"} & found.keys()
    assert found["groups"][0].said == "one rank has nobody to talk to"


def test_a_device_that_is_absent_ends_the_examination():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    page = examine(Config().replace(device="cuda"), finetuning=False)
    assert [finding.name for finding in page.findings] == ["torch", "device"]
    assert page.findings[1].level == ERROR
    assert page.broken_off.what == page.findings[1].said


def late(begins: bool) -> tuple[str, str, list[str]]:
    """Rank 1 of 2 does not come through the phase `job`: what rank 0 raises, rank 1's host, what was said."""
    told, lines = dist.distributed_c10d._get_default_store(), []
    phases.SAY = -1.0
    way = phases.Phases(limit=0.5, say=lines.append)
    with way.phase("machine"):
        pass
    if dist.get_rank() == 1:
        if not begins:
            way._store.delete_key("phase/1")
        with way.phase("job") if begins else nullcontext():
            told.set("rank 1 is held up", "")
            told.wait(["rank 0 has said it"])
        return "", "", []
    with pytest.raises(LostError) as error, way.phase("job"):
        told.wait(["rank 1 is held up"])
    told.set("rank 0 has said it", "")
    return error.value.what, way._said("host", 1), lines


def test_a_late_rank_is_named_with_its_host_and_phase(ranks):
    what, host, lines = ranks.run(2, late, True)
    assert what.startswith("rank 1 not through with `job` 0 s after")
    assert what.endswith(f": rank 1 ({host}) in `job`")
    assert lines[-1] == f"waiting for rank 1 ({host}) in `job` ... 0 s"
    assert ", process " in host
    assert ranks.run(2, late, False)[0].endswith(": rank 1, which has not begun")


def late_page() -> list[str]:
    """The doctor's page where rank 1 is held up in the machine's checks."""
    told = dist.distributed_c10d._get_default_store()
    mesh_module.stop = lambda: None
    examination.Phases = lambda _: phases.Phases(limit=0.5)
    if dist.get_rank() == 1:
        original = examination.examine_machine

        def held_up(parallel):
            told.wait(["over"])
            return original(parallel)

        examination.examine_machine = held_up
    page = examine(Config().replace(device="cpu"), finetuning=False)
    if dist.get_rank() == 0:
        told.set("over", "")
    return [finding.name for finding in page.findings] + [page.broken_off.what]


def test_the_page_of_a_late_rank_says_what_is_known(ranks):
    *names, why = ranks.run(2, late_page)
    assert names[0] == "torch"
    assert why.startswith("rank 1 not through with `machine`")


def slow_finding() -> Finding:
    """Rank 2 of 3 took much longer than the others."""
    way = phases.Phases(limit=9.0)
    way.seconds = {"machine": 0.1, "job": 9.0 if dist.get_rank() == 2 else 0.5}
    return way.finding()


def test_a_slow_rank_is_a_warning(ranks):
    finding = ranks.run(3, slow_finding)
    assert finding.level == WARNING
    assert finding.said.startswith("rank 2 (")
    assert finding.said.endswith("took 9.0 s for `job`, half of them 0.5 s")


def seen(first: str, other: str) -> tuple[Finding, Finding]:
    """Whether ranks with save directories of their own notice."""
    directory = Path(first if dist.get_rank() == 0 else other)
    original, ranks = Path.exists, Ranks()

    def elsewhere(path: Path) -> bool:  # another host has another disk
        return original(path) and path.is_relative_to(directory)

    same = storage.same_place(directory, ranks)
    Path.exists = elsewhere
    try:
        return same, storage.same_place(directory, ranks)
    finally:
        Path.exists = original


def test_a_rank_that_sees_another_save_directory_is_named(ranks, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    same, other = ranks.run(2, seen, str(tmp_path / "a"), str(tmp_path / "b"))
    assert same.level == OK
    assert other.level == ERROR
    assert other.said.startswith("rank 1: what rank 0 writes in ")
    assert not list((tmp_path / "a").iterdir())


def without_room(directory: str) -> list[Finding]:
    """What is found where the disk of rank 1 is full."""

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if dist.get_rank() == 1:
        storage.TemporaryFile = full
    config = Config().replace(save=directory)
    return storage.examine_storage(config, resolved=False)


def test_a_rank_that_cannot_write_is_named_and_nobody_waits_for_it(ranks, tmp_path):
    place, speed = ranks.run(2, without_room, str(tmp_path))
    assert (place.level, speed.level) == (OK, ERROR)
    assert speed.said == "rank 1: cannot write 32 MiB there: No space left on device"


def failing() -> str:
    """What a network that carries nothing is called."""

    def refuse(*_, **__):
        raise RuntimeError("[gloo] Connection closed by peer\nmore")

    mesh = mesh_module.start(Config().replace(device="cpu").parallel)
    original, dist.all_reduce = dist.all_reduce, refuse
    try:
        with pytest.raises(LostError) as error:
            network.examine_groups(mesh)
    finally:
        dist.all_reduce = original
    return error.value.what


def test_a_network_that_carries_nothing_is_an_error(ranks):
    assert ranks.run(2, failing) == "a collective failed: [gloo] Connection closed by peer"


GROUP = Measured(ranks=(0, 1), seconds=1e-4, bytes_per_second=2e9, adds_up=True)


def test_a_slow_group_is_a_warning_and_a_wrong_sum_an_error():
    other = replace(GROUP, ranks=(2, 3))
    even = group_finding("tensor", [GROUP, replace(other, bytes_per_second=1.9e9)])
    assert (even.level, even.said[:31]) == (OK, "2 groups of 2 ranks: 2.00 GB/s,")
    slow = group_finding("tensor", [GROUP, replace(other, bytes_per_second=0.5e9)])
    assert slow.level == WARNING
    assert "the slowest 0.50 (ranks 2 3)" in slow.said
    wrong = group_finding("tensor", [GROUP, replace(other, adds_up=False)])
    assert (wrong.level, wrong.said) == (ERROR, "an all-reduce of ranks 2 3 gave a wrong sum")


def test_a_gpu_that_is_too_small_is_a_warning():
    gib = 2**30
    assert memory_finding([(9 * gib, 0), (8 * gib, 0)]).said.startswith("9.00 GiB predicted")
    fits = memory_finding([(60 * gib, 80 * gib), (70 * gib, 140 * gib)])
    assert fits.level == OK
    assert fits.said.endswith("on rank 0, the fullest, whose GPU has 80")
    small = memory_finding([(60 * gib, 80 * gib), (79.9 * gib, 80 * gib)])
    assert small.level == WARNING
    assert "on rank 1" in small.said
    assert "4 GiB are assumed" in small.why
    assert "--dry-run" in small.remedy


def test_what_not_all_ranks_found_names_them():
    good, other = Finding("torch", OK, "2.13.0"), Finding("torch", OK, "2.11.0")
    bad = Finding("device", ERROR, "no CUDA", "why", "try")
    found = merged([[good], [other, bad], [good]])
    assert [(f.level, f.said) for f in found] == [
        (WARNING, "2.13.0 (ranks 0, 2)"),
        (WARNING, "2.11.0 (rank 1)"),
        (ERROR, "no CUDA (rank 1)"),
    ]
    assert merged([[good], [good]]) == [good]
    assert name_ranks([6, 0, 1, 2]) == "ranks 0-2, 6"


def test_the_disk_must_hold_what_the_run_keeps():
    config = TINY.replace(save="x", save_interval=1, train_iters=100)
    needed = storage.checkpoint_bytes(config)
    assert needed == 12 * config.model.num_parameters
    [disk, speed] = storage.room(config, free=10 * needed, needed=needed, speed=1e9)
    assert (disk.level, speed.level) == (WARNING, OK)
    assert disk.remedy.startswith("--keep-last 9,")
    kept = storage.room(config.replace(keep_last=9), 10 * needed, needed, needed / 301)
    assert [finding.level for finding in kept] == [OK, WARNING]
    assert "--async-save" in kept[1].remedy
    patient = config.replace(keep_last=9, async_save=True)
    assert [f.level for f in storage.room(patient, 10 * needed, needed, needed / 301)] == [OK, OK]
    adapted = storage.checkpoint_bytes(config.replace(lora_rank=1))
    assert 4 * config.model.num_parameters < adapted < needed


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, 20),
        ({"keep_last": 2}, 3),
        ({"keep_best": 1}, 3),
        ({"save_retain_interval": 700}, 4),
        ({"save_retain_interval": 200, "keep_last": 2}, 13),
        ({"save_retain_interval": 100}, 20),
    ],
    ids=str,
)
def test_the_checkpoints_that_lie_there_while_one_is_written(rules, kept):
    """Two that two rules keep are counted twice: never too few."""
    config = TINY.replace(save="x", save_interval=100, train_iters=2000, **rules)
    assert storage.checkpoints_kept(config) == kept


LEASE = lease._document("47", 0, 0, None)


@pytest.mark.parametrize(
    ("name", "content", "level", "said"),
    [
        ("lease.json", LEASE, WARNING, f"is in use by job 47 on {platform.node()} (pid {os.getpid()})"),
        ("lease.json", LEASE | {"ended": True}, None, ""),
        ("exit.json", {"class": "data", "status": 2, "step": 3, "cause": "bad id"}, WARNING,
         "data at step 3: bad id"),
        ("exit.json", {"class": "signal", "status": 75, "step": 3, "cause": "SIGTERM"}, OK, "signal at"),
        ("exit.json", [], None, ""),
    ],
    ids=["held", "ended", "refused", "stopped", "not ours"],
)  # fmt: skip
def test_the_run_before_is_remembered(tmp_path, name, content, level, said):
    (tmp_path / name).write_text(json.dumps(content))
    found = last_run.examine_last_run(tmp_path)
    assert [finding.level for finding in found] == [level] * (level is not None)
    assert all(said in finding.said for finding in found)


def test_a_run_that_goes_on_says_from_where_and_a_cut_checkpoint_is_an_error(ranks, tmp_path):
    tokenizer = save_run(tmp_path / "run", ["gout is a painful disease of joints"] * 9, 270)
    flags = ("--device", "cpu", "--load", tmp_path / "run", "--no-load-optim", "--train-iters", 9)
    found = ranks.run(1, examined, flags)
    assert found["checkpoint"][0].said.startswith(
        f"continues {tmp_path / 'run' / 'iter_0000003'}: "
    )
    assert (
        "iteration 3, 20 samples read; saved at tensor 1 x pipeline 1"
        in found["checkpoint"][0].said
    )
    assert tokenizer.fingerprint[:12] in found["tokenizer"][0].said
    [part, *_] = (tmp_path / "run").rglob("*.distcp")
    part.write_bytes(part.read_bytes()[:-1])
    [damaged] = ranks.run(1, examined, flags)["checkpoint"]
    assert damaged.level == ERROR
    assert f"is damaged: {part.name} has {part.stat().st_size} bytes of" in damaged.said
    part.unlink()
    [missing] = ranks.run(1, examined, flags)["checkpoint"]
    assert f"{part.name} is missing" in missing.said


def apex_level(monkeypatch, found, refusal: KernelsError | None = None) -> tuple[str, str]:
    """What is said where find_spec finds this, and `apex.require` refuses it so."""

    def require():
        if refusal:
            raise refusal

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(apex, "require", require)
    finding = machine.apex_finding()
    return finding.level, finding.said


def test_an_apex_that_is_not_nvidias_is_a_warning(monkeypatch, tmp_path):
    assert apex_level(monkeypatch, None)[0] == OK
    with monkeypatch.context() as patched:
        refusal = KernelsError("kernels=apex, but the apex is not NVIDIA's", "why", "pip uninstall")
        there = importlib.machinery.ModuleSpec("apex", None)
        assert apex_level(patched, there, refusal) == (WARNING, "the apex is not NVIDIA's")
        assert apex_level(patched, there) == (OK, "NVIDIA's, with its CUDA extensions")


def test_a_gpu_without_compilers_or_kernels_is_warned_of(monkeypatch):
    def missing(name):
        raise KernelsError(f"there is no {name}", "why", "try")

    monkeypatch.setattr(machine.compilers, "find", missing)
    assert machine.compiler_finding(torch.device("cpu")).level == OK
    finding = machine.compiler_finding(GPU)
    assert (finding.level, finding.said) == (WARNING, "no nvcc; no g++")
    monkeypatch.setattr(machine, "choose", lambda *_: (None, "reference, because there is no nvcc"))
    assert machine.kernels_finding("auto", GPU).level == WARNING
    assert machine.kernels_finding("reference", GPU).level == OK
    with pytest.raises(KernelsError):
        monkeypatch.undo()
        machine.kernels_finding("apex", torch.device("cpu"))


def test_a_gpu_is_described_and_one_in_use_is_a_warning(monkeypatch):
    about = type("About", (), {"name": "A100", "major": 8, "minor": 0})
    monkeypatch.setattr(machine, "choose_device", lambda _: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 << 30, 80 << 30))
    free = machine.device_finding(TINY.parallel)
    assert (free.level, free.said) == (OK, "A100, 80 GiB, compute capability 8.0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40 << 30, 80 << 30))
    taken = machine.device_finding(TINY.parallel)
    assert taken.level == WARNING
    assert taken.said.endswith("40.0 GiB of cuda:0 are taken")


def test_only_rank_0_prints(monkeypatch, capsys):
    page = [Finding("torch", OK, "2.13.0"), Finding("disk", WARNING, "small", "why", "more")]
    given = examination.Page(page)
    monkeypatch.setattr(examination, "examine", lambda *_: given)
    command.main([])
    assert capsys.readouterr().out.splitlines() == [
        "ok       torch           2.13.0",
        "warning  disk            small",
        "                         why: why",
        "                         try: more",
        "ok: 1, warning: 1, error: 0",
    ]
    monkeypatch.setattr(mesh_module, "rank", lambda: 1)
    page.append(Finding("disk", ERROR, "full", "why", "try"))
    with pytest.raises(ConfigError, match="the doctor found errors: disk"):
        command.main(["somewhere/finetune_qa.py"])
    with pytest.raises(ConfigError, match=r"does not know nope\.py"):
        command.main(["nope.py"])
    given = examination.Page(page, LostError("rank 0 is late", "why", "try"))
    with pytest.raises(ConfigError, match="rank 0 is late"):
        command.main([])
    assert not capsys.readouterr().out
