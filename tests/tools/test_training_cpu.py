"""tools/benchmark/training_cpu.py at a tiny size: every row runs, and what is timed side by side computes
the same."""

import importlib
import math
import re
import sys

import pytest

OTHERS = ("AdamW", "AdamW(fused=True)")
CANDIDATES = {
    "step": ["ours", *(f"transformers, {adamw}" for adamw in OTHERS)],
    "tensor": ["ours", *(f"parallelize_module, {adamw}" for adamw in OTHERS)],
    "layouts": ["one process, two threads", "pipeline 2 x data 2 x tensor 2"],
}


@pytest.fixture
def training_cpu(repository, monkeypatch):
    """The benchmark."""
    monkeypatch.syspath_prepend(repository / "tools" / "benchmark")
    return importlib.import_module("training_cpu")


@pytest.fixture
def in_the_pool(training_cpu, ranks, repository, monkeypatch):
    """The benchmark starts its processes in the pool; returns what they measured."""
    folder, measured = str(repository / "tools" / "benchmark"), {}

    def launch(config, side: str, processes: int, threads: int, rounds: int):
        found = ranks.run(processes, measure, folder, config, side, rounds)
        measured.update(found)
        return found

    monkeypatch.setattr(training_cpu, "launch", launch)
    return measured


def measure(folder: str, config, side: str, rounds: int):
    """On a rank: what a process of the benchmark does."""
    sys.path.insert(0, folder)
    import training_cpu

    return training_cpu.measure(config, side, rounds)


def assert_same_losses(measured: dict, rtol: float = 1e-5) -> None:
    """In all steps, the first and those after an update."""
    expected = next(iter(measured.values())).losses
    assert len(expected) == 3
    for name, (losses, _) in measured.items():
        assert losses == pytest.approx(expected, rel=rtol), name


def candidates_of(report: str) -> list[str]:
    return re.findall(r"^  (.+?) +\d+\.\d+ s \(", report, re.MULTILINE)


@pytest.mark.parametrize(("row", "rounds"), [("tensor", 2), ("layouts", 1)])
def test_a_row_of_several_processes(training_cpu, in_the_pool, row, rounds, capsys):
    training_cpu.main(["--tiny", "--rounds", str(rounds), "--only", row])
    assert list(in_the_pool) == CANDIDATES[row] == candidates_of(capsys.readouterr().out)
    assert_same_losses(in_the_pool)


def test_the_row_of_one_process_as_it_is_launched(training_cpu, capsys):
    pytest.importorskip("transformers")
    measured = training_cpu.launch(training_cpu.TINY, "step", 1, 1, 2)
    assert list(measured) == CANDIDATES["step"]
    assert_same_losses(measured)
    assert all(len(steps.seconds) == 2 for steps in measured.values())
    training_cpu.report("a title", 128, measured)
    assert candidates_of(capsys.readouterr().out) == CANDIDATES["step"]


def test_other_weights_or_another_update_would_show(training_cpu, in_the_pool):
    found = {}
    for change in ({}, {"seed": 5}, {"lr": 5e-3}):
        config = training_cpu.TINY.replace(**change)
        found[str(change)] = training_cpu.launch(config, CANDIDATES["layouts"][0], 1, 1, 1)
    same, seed, rate = (next(iter(measured.values())).losses for measured in found.values())
    assert abs(seed[0] / same[0] - 1) > 1e-3 and rate[0] == same[0]
    assert abs(rate[1] / same[1] - 1) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("row", "side"), [("loss", "all logits"), ("checkpoint", "one file")])
def test_a_row_that_another_script_measures(training_cpu, capfd, row, side):
    training_cpu.main(["--tiny", "--rounds", "1", "--only", row])
    assert f"\n  {side} " in capfd.readouterr().out


def test_other_losses_are_not_timed(training_cpu):
    training_cpu.require_same_loss({"ours": 5.0, "theirs": 5.00001})
    for wrong in (5.001, math.nan):
        with pytest.raises(RuntimeError, match="losses of the first step differ"):
            training_cpu.require_same_loss({"ours": 5.0, "theirs": wrong})
