"""What torchrun starts again goes on; what it cannot start again is named, and leaves nobody behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run, train_flags
from pretraining import pretrained

from megatron_yuyuan.log import read_events, read_metrics

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
STEPS = ("--train-iters", 30, "--save-interval", 5, "--eval-iters", 0)


def started(command: tuple, *options: str) -> subprocess.Popen:
    """torchrun over two ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, job.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps_taken(save: Path) -> int:
    try:
        return (save / "metrics.jsonl").read_text().count('"event": "step"')
    except OSError:
        return 0


def ranks_of(job: subprocess.Popen) -> list[int]:
    """The processes of torchrun's ranks, by rank."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    place = {
        next(
            v for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if v[:5] == "RANK="
        ): pid
        for pid in children
    }
    return [int(place[name]) for name in sorted(place)]


def losses(save: Path) -> dict[int, tuple]:
    steps = read_metrics(save / "metrics.jsonl", "step")
    return {s["iteration"]: (s["lm_loss"], s["grad_norm"], s["consumed_samples"]) for s in steps}


@pytest.mark.slow
def test_torchruns_restart_goes_on_as_if_nobody_had_died(ranks, prepared, tmp_path):
    save, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    job = started(train_flags(prepared, save, *STEPS), "--max-restarts", "2")
    wait_for(lambda: steps_taken(save) >= 7, job)
    killed = ranks_of(job)[1]
    os.kill(killed, signal.SIGKILL)
    said = job.communicate(timeout=180)[1]
    assert job.returncode == 0, said
    assert said.count("error: rank 1 (") == 1 and f"pid {killed}) died" in said
    ranks.run(2, pretrained, train_flags(prepared, undisturbed, *STEPS))
    assert len(losses(undisturbed)) == 30
    assert losses(save) == losses(undisturbed)
    events = list(read_events(save / "metrics.jsonl"))
    restarts = [e for e in events if e["event"] == "restart"]
    assert [e["iteration"] in (5, 10, 15) for e in restarts] == [True]
    first, second = (e["after"] for e in events if e["event"] == "start")
    assert first == "" and f"pid {killed}) died: signal 9 (SIGKILL)" in second
    assert json.loads((save / "exit.json").read_text())["class"] == "done"
    assert not (save / "lease.json").exists() and not (save / "heartbeats").exists()


@pytest.mark.slow
def test_a_second_job_in_the_same_directory_is_refused_and_harms_nothing(prepared, tmp_path):
    save = tmp_path / "run"
    command = train_flags(prepared, save, *STEPS, "--train-iters", 4000)
    job = started(command)
    wait_for(lambda: steps_taken(save) >= 3, job)
    refused = run(*command, ranks=2, status=1)
    assert refused.stderr.count(f"error: {save} is in use by job ") == 1
    before = steps_taken(save)
    wait_for(lambda: steps_taken(save) > before, job)
    assert not (save / "exit.json").exists()
    job.terminate()
    job.communicate(timeout=120)
    assert json.loads((save / "exit.json").read_text())["class"] == "signal"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_that_dies_at_every_start_is_refused_in_the_end(prepared, tmp_path, killed):
    save = tmp_path / "run"
    command = train_flags(prepared, save, *STEPS, "--save-interval", 100, "--train-iters", 4000)
    for _ in range(4):
        taken = steps_taken(save)
        job = started(command)
        wait_for(lambda taken=taken: steps_taken(save) > taken, job)
        os.kill(ranks_of(job)[killed], signal.SIGKILL)
        job.communicate(timeout=120)
        report = json.loads((save / "exit.json").read_text())
        assert (report["class"], report["rank"]) == ("rank_lost", killed)
        document = json.loads((save / "lease.json").read_text())
        document["furthest"] = 1000  # as if the first start had come so far
        (save / "lease.json").write_text(json.dumps(document))
        if document["starts"] == 3:
            break
    ended = run(*command, ranks=2, status=1)
    assert "error: 3 starts in a row came no further than step 1000" in ended.stderr
    assert json.loads((save / "exit.json").read_text())["status"] == 2


@pytest.mark.slow
def test_a_signal_while_torch_is_imported_ends_the_run_with_its_state_saved(prepared, tmp_path):
    save = tmp_path / "run"
    command = map(str, train_flags(prepared, save, *STEPS, "--train-iters", 4000))
    job = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    wait_for(lambda: children.read_text(), job)  # its witness: torch comes next
    os.kill(job.pid, signal.SIGUSR1)
    assert "torch" not in Path(f"/proc/{job.pid}/maps").read_text()
    said = job.communicate(timeout=180)[1]
    assert job.returncode == 75, said
    report = json.loads((save / "exit.json").read_text())
    assert (report["class"], report["cause"], report["step"]) == ("signal", "SIGUSR1", 1)


@pytest.mark.slow
def test_a_stopped_rank_is_named_within_the_timeout(prepared, tmp_path):
    save = tmp_path / "run"
    flags = (*STEPS, "--train-iters", 4000, "--distributed-timeout-minutes", 0.1)
    job = started(train_flags(prepared, save, *flags))
    wait_for(lambda: steps_taken(save) >= 3, job)
    stopped = ranks_of(job)[1]
    os.kill(stopped, signal.SIGSTOP)
    said = job.communicate(timeout=180)[1]
    assert f"pid {stopped}) did not come: rank 0 waited for it in step " in said
    report = json.loads((save / "exit.json").read_text())
    assert (report["rank"], report["pid"], report["status"]) == (1, stopped, 75)
    assert "stopped by a signal" in report["why"]
