"""The picture of the losses: whole or absent."""

import importlib.util

import pytest

from megatron_yuyuan.log import Log


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with steps, and one that only began."""
    directory = tmp_path_factory.mktemp("runs")
    for name in ("pretrained", "finetuned", "idle"):
        log = Log(directory / name, speaks=True)
        log.event("restart", iteration=0)
        for iteration in range(1, 4) if name != "idle" else ():
            log.event("step", iteration=iteration, lm_loss=7.0 / iteration)
        log.event("evaluation", iteration=3, validation_loss=3.0)
    return directory


def test_two_runs_become_one_picture(command, runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "new" / "loss.png"
    given = ("--run", f"pretraining={runs / 'pretrained'}", "--run", runs / "finetuned")
    for _ in range(2):  # the second replaces the first
        command("plot_metrics", *given, "--output", output)
        assert str(output) in capsys.readouterr().out
        assert output.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert [path.name for path in output.parent.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(("run", "what"), [("nowhere", "no "), ("idle", "holds no step")])
def test_a_run_without_steps_is_refused_and_leaves_nothing(refused, runs, tmp_path, run, what):
    pytest.importorskip("matplotlib")
    output = tmp_path / "loss.png"
    message = refused("plot_metrics", "--run", runs / run, "--output", output)
    assert what in message and f"{runs / run}/metrics.jsonl" in message
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_drawn_is_refused(refused, runs, tmp_path, monkeypatch):
    given = ("--run", runs / "pretrained", "--output")
    message = refused("plot_metrics", *given, tmp_path / "loss.pdf")
    assert "does not end in .png" in message and f"try: --output {tmp_path / 'loss.png'}" in message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "matplotlib is not installed" in refused("plot_metrics", *given, tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())
