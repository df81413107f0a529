"""A killed run goes on as if nothing had happened, to the last bit; and in another layout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run, train_flags

from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import from_dict, load_toml
from megatron_yuyuan.goodput import TimeSplit
from megatron_yuyuan.log import read_events, read_metrics
from megatron_yuyuan.watch.saved import TRACKER, find_checkpoint

OF_THE_MACHINE = ("time", "seconds", "tokens_per_second", "tflops_per_device", "mfu", "memory_bytes",
                  "eta_seconds")  # fmt: skip
LAYOUT = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)


def step_lines(save) -> dict[int, str]:
    """Iteration -> the figures of its line as text, but for those of clock and memory."""
    steps = read_metrics(save / "metrics.jsonl", "step")
    return {step["iteration"]: json.dumps(of_the_run(step)) for step in steps}


def of_the_run(event: dict) -> dict:
    """An event without what the machine and the hour have in it."""
    return {k: v for k, v in event.items() if k not in OF_THE_MACHINE}


def evaluations(save) -> list[dict]:
    return [of_the_run(e) for e in read_metrics(save / "metrics.jsonl", "evaluation")]


def continuations(save) -> list[dict]:
    return [of_the_run(e) for e in read_metrics(save / "metrics.jsonl", "continuations")]


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory):
    save = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(*train_flags(prepared, save, *LAYOUT), ranks=4)
    return save


def started(iteration: int, command: tuple, save) -> subprocess.Popen:
    """A job of 4 ranks that has taken `iteration` steps."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    job = subprocess.Popen(
        [sys.executable, *launcher, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    metrics, deadline = save / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count('"event": "step"') < iteration:
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return job


def kill_after(iteration: int, command: tuple, save) -> None:
    """Kill -9 every process of a job of 4 ranks once it has taken `iteration` steps."""
    job = started(iteration, command, save)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for pid in [*map(int, workers), job.pid]:
        os.kill(pid, signal.SIGKILL)
    job.wait()


@pytest.mark.slow  # tests/faults/test_kills.py kills two ranks in `make test`
@pytest.mark.parametrize(
    ("after", "flags"),
    [(6, ()), (9, ("--async-save", "--keep-last", 1))],
    ids=["at_once", "background"],
)
def test_a_run_killed_between_checkpoints_resumes_bit_for_bit(
    prepared, uninterrupted, tmp_path, after, flags
):
    save = tmp_path / "run"
    command = train_flags(prepared, save, *LAYOUT, *flags)
    kill_after(after, command, save)
    assert find_checkpoint(save).name in ("iter_0000004", "iter_0000008")
    assert not (save / "iter_0000012").exists()
    run(*command, ranks=4)
    assert step_lines(save) == step_lines(uninterrupted)
    [restart] = [e for line in (save / "metrics.jsonl").read_text().splitlines()
                 if (e := json.loads(line))["event"] == "restart"]  # fmt: skip
    assert restart["iteration"] in (4, 8)
    assert evaluations(save) == evaluations(uninterrupted)
    assert continuations(save) == continuations(uninterrupted)
    assert len(continuations(save)) == 2


def exit_report(save) -> dict:
    return json.loads((save / "exit.json").read_text())


@pytest.mark.slow  # tests/launch/test_slurm.py signals torchrun, tests/faults/test_kills.py ranks
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(prepared, uninterrupted, tmp_path):
    save = tmp_path / "run"
    command = train_flags(prepared, save, *LAYOUT)
    job = started(2, command, save)
    job.terminate()
    job.wait()
    report = exit_report(save)
    assert (report["class"], report["status"], report["cause"]) == ("signal", 75, "SIGTERM")
    assert 2 <= report["step"] < 12
    assert (
        report["resume_from"]
        == str(find_checkpoint(save))
        == str(save / f"iter_{report['step']:07d}")
    )
    run(*command, ranks=4)
    assert step_lines(save) == step_lines(uninterrupted)
    assert (exit_report(save)["class"], exit_report(save)["status"]) == ("done", 0)
    *events, last = read_events(save / "metrics.jsonl")
    names = [event["event"] for event in events]
    assert (names.count("start"), names.count("stop"), names.count("restart")) == (2, 1, 1)
    split = TimeSplit(events)  # from the file it is what the run said at its end, over both starts
    assert last["event"] == "goodput" and split.total <= last["wall_seconds"] < split.total + 60
    assert last["seconds_by_cause"]["steps"] == pytest.approx(split.seconds["steps"])
    assert split.seconds["idle"] > 0 and 0 < split.goodput < 1


@pytest.mark.slow
def test_a_run_in_portions_is_the_run_in_one(prepared, tmp_path):
    """Its batch grows, the steps it passes over and the losses it remembers are kept, and what it
    should have evaluated when it was stopped it evaluates."""
    whole, portions = tmp_path / "whole", tmp_path / "portions"
    ramp = ("--train-iters", 0, "--train-samples", 80, "--rampup-batch-size", 2, 2, 40)
    ramp += ("--lr-warmup-iters", 0, "--lr-warmup-samples", 16, "--skip-loss-spikes")
    run(*train_flags(prepared, whole, *ramp))
    command = train_flags(prepared, portions, *ramp, "--exit-interval", 6)
    ended = run(*command, status=75)
    assert ended.stderr.startswith("error: stopped after iteration 6: exit_interval=6 on rank 0")
    assert exit_report(portions)["class"] == "interval"
    run(*command, status=75)
    run(*command)
    sizes = [s["global_batch_size"] for s in read_metrics(whole / "metrics.jsonl", "step")]
    assert sizes == sorted(sizes)
    assert set(sizes) == {2, 4, 6, 8}
    assert 72 < sum(sizes) <= 80
    assert step_lines(portions) == step_lines(whole)
    assert len(evaluations(whole)) > 2
    assert evaluations(portions) == evaluations(whole)
    last = json.loads((find_checkpoint(portions) / "state.json").read_text())
    assert len(last["recent_losses"]) == len(sizes)


@pytest.mark.parametrize("flags", [(), ("--tensor-model-parallel-size", 2, "--sequence-parallel")])
def test_another_layout_continues_with_the_same_losses(prepared, uninterrupted, tmp_path, flags):
    save = tmp_path / "run"
    load = ("--load", uninterrupted, "--ckpt-step", 4)
    ended = run(*train_flags(prepared, save, *load, *flags), ranks=2 if flags else 0)
    tensor = 2 if flags else 1
    assert (
        f", resharded pipeline 2 x data 1 x tensor 2 -> pipeline 1 x data 1 x tensor {tensor}\n"
        in ended.stdout
    )
    steps = {s["iteration"]: s for s in read_metrics(save / "metrics.jsonl", "step")}
    expected = read_metrics(uninterrupted / "metrics.jsonl", "step")
    assert sorted(steps) == list(range(5, 13))
    for step in expected[4:]:
        mine = steps[step["iteration"]]
        assert mine["lm_loss"] == pytest.approx(step["lm_loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-4)
        assert mine["consumed_samples"] == step["consumed_samples"]


@pytest.mark.slow
def test_moments_begun_anew_are_counted_from_there(prepared, tmp_path):
    """Resumed after --no-load-optim, the optimizer's bias correction goes on where it was."""
    first, whole, parts = tmp_path / "first", tmp_path / "whole", tmp_path / "parts"
    decay = ("--lr-decay-iters", 12)
    run(*train_flags(prepared, first, *decay, "--train-iters", 4))
    anew = ("--load", first, "--no-load-optim")
    run(*train_flags(prepared, whole, *anew))
    run(*train_flags(prepared, parts, *anew, *decay, "--train-iters", 8))
    run(*train_flags(prepared, parts))
    assert step_lines(parts) == step_lines(whole)


def test_a_finished_run_started_again_changes_nothing(prepared, uninterrupted):
    before = step_lines(uninterrupted)
    ended = run(*train_flags(prepared, uninterrupted, *LAYOUT), ranks=4)
    assert "nothing left to do: 12 of 12" in ended.stdout
    assert step_lines(uninterrupted) == before
    assert (uninterrupted / TRACKER).read_text() == "12"


def test_the_run_directory_reloads_as_its_configuration(uninterrupted):
    config = Config().replace(**load_toml(uninterrupted / "config.toml"))
    saved = json.loads((uninterrupted / "iter_0000012" / "state.json").read_text())
    assert from_dict(saved["config"]) == config
    assert saved["ranks"] == 4
    assert (config.training.train_iters, config.model.vocab_size) == (12, 300)
    assert (uninterrupted / "tokenizer" / "tokenizer.json").exists()
