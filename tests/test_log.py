"""metrics.jsonl: one object an event, readable after a kill, exact to the bit."""

import json
import subprocess
import sys

import pytest

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.log import SCHEMA, Log, read_metrics

FIGURES = {
    "iteration": 7,
    "lm_loss": 0.1 + 0.2,
    "grad_norm": 1.0,
    "learning_rate": 1e-4,
    "seconds": 0.5,
    "consumed_samples": 8,
    "global_batch_size": 8,
    "tokens_per_second": 12.0,
}


def test_floats_are_written_to_the_last_bit(tmp_path):
    Log(tmp_path, True).event("step", **FIGURES)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert '"lm_loss": 0.30000000000000004' in line
    assert json.loads(line) == {"event": "step", "schema": SCHEMA, **FIGURES}


def test_a_silent_rank_writes_nothing(tmp_path, capsys):
    log = Log(tmp_path / "run", False)
    log.event("step", **FIGURES)
    log.step(FIGURES, 10)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_nothing_is_written_before_the_first_event(tmp_path):
    log = Log(tmp_path / "run", True)
    log.line("hello")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*metrics\.jsonl"):
        Log(tmp_path / "file", True).event("step", **FIGURES)


def test_a_reader_who_leaves_does_not_end_the_run():
    program = (
        "from megatron_yuyuan.log import Log\n"
        "import sys\n"
        "log = Log(None, True)\n"
        "for _ in range(20000): log.line('x' * 80)\n"
        "print('done', file=sys.stderr)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == "done\n"
    assert writer.wait() == 0


def test_a_restart_takes_back_what_came_after_its_checkpoint(tmp_path):
    log = Log(tmp_path, True)
    for iteration in (1, 2, 3):
        log.event("step", iteration=iteration, lm_loss=float(iteration))
    log.event("restart", iteration=1)
    log.event("step", iteration=2, lm_loss=20.0)
    log.event("evaluation", iteration=2, validation_loss=5.0)
    steps = read_metrics(tmp_path / "metrics.jsonl", "step")
    assert [(s["iteration"], s["lm_loss"]) for s in steps] == [(1, 1.0), (2, 20.0)]


def test_a_run_knows_that_another_wrote_before_it(tmp_path):
    log = Log(tmp_path, True)
    assert not log.has_history
    log.event("step", iteration=1)
    assert Log(tmp_path, True).has_history


def test_a_line_cut_by_a_kill_is_skipped_and_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "step", "schema": 1, "iteration": 1}\n{"event": "st')
    Log(tmp_path, True).event("step", iteration=2)
    assert [s["iteration"] for s in read_metrics(path, "step")] == [1, 2]


def test_a_step_that_was_passed_over_is_an_event_and_counted_once(tmp_path, capsys):
    log = Log(tmp_path, True)
    skipped = FIGURES | {"lm_loss": float("nan"), "reason": "not finite", "samples": [0, 7]}
    log.skip(skipped)
    log.skip(FIGURES | {"reason": "loss spike", "samples": [8, 15]})
    log.step(FIGURES, 10)
    log.step(FIGURES, 10)
    first, second = read_metrics(tmp_path / "metrics.jsonl", "skip")
    assert (first["lm_loss"], first["grad_norm"], first["samples"]) == (None, 1.0, [0, 7])
    assert second["lm_loss"] == FIGURES["lm_loss"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "warning: iteration 7 skipped: not finite, loss nan, gradient norm 1"
    )
    assert "| number of skipped iterations:   2 | number of nan iterations:   1 |" in lines[2]
    assert "| number of skipped iterations:   0 | number of nan iterations:   0 |" in lines[3]


def test_the_console_line_is_megatrons(capsys):
    Log(None, True).step(FIGURES, 10)
    line = capsys.readouterr().out
    assert "] iteration        7/      10 | consumed samples:            8 | elapsed" in line
    assert (
        " learning rate: 1.000000E-04 | global batch size:     8 | lm loss: 3.000000E-01 |" in line
    )
    assert line.endswith(" | tokens/s: 12 |\n")
