"""The job scripts of examples/, run by a SLURM of this machine: two nodes, a kill, a signal before the
time limit, and a requeue after each. The run that comes out is the one that nothing disturbed."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from commands import ROOT, SAMPLE_DATA
from fake_slurm import install
from pretraining import pretrained

from megatron_yuyuan.log import read_metrics

OF_THE_MACHINE = ("time", "seconds", "tokens_per_second", "tflops_per_device", "mfu", "memory_bytes",
                  "eta_seconds", "schema")  # fmt: skip
TINY = (
    *("--device", "cpu", "--kernels", "auto", "--num-layers", 2, "--hidden-size", 32),
    *("--num-attention-heads", 4),
    *("--vocab-size", 300, "--seq-length", 32, "--max-position-embeddings", 32, "--no-bf16"),
    *("--micro-batch-size", 4, "--global-batch-size", 8, "--train-iters", 40, "--epochs", 0),
    *("--tensor-model-parallel-size", 1, "--no-sequence-parallel", "--hidden-dropout", 0.1),
    *("--lr", 3e-3, "--save-interval", 5, "--eval-interval", 0, "--log-interval", 1),
)
"""Flags after the script's own, which win: one rank on each of two nodes."""


def figures(save: Path) -> dict[int, dict]:
    """Iteration -> what its step computed."""
    return {
        s["iteration"]: {k: v for k, v in s.items() if k not in OF_THE_MACHINE}
        for s in read_metrics(save / "metrics.jsonl", "step")
    }


def environment(prepared: Path, save: Path, folder: Path) -> dict[str, str]:
    return os.environ | install(folder) | {
        "DATA_PATH": str(prepared / "text_text_document"),
        "VOCAB_FILE": str(prepared / "tokenizer" / "vocab.json"),
        "MERGE_FILE": str(prepared / "tokenizer" / "merges.txt"),
        "SAVE": str(save),
        "FAKE_GPUS": "1",
    }  # fmt: skip


def steps_taken(save: Path) -> int:
    try:
        return (save / "metrics.jsonl").read_text().count('"event": "step"')
    except OSError:
        return 0


class Disturber(threading.Thread):
    """Kills a rank of the first start after some steps, and has the second one's torchruns get SIGUSR1, as
    SLURM sends it before the time limit. `reports`: exit.json after each."""

    def __init__(self, save: Path, folder: Path):
        super().__init__(daemon=True)
        self.save, self.folder, self.reports = save, folder, []

    def run(self) -> None:
        self._wait(lambda: steps_taken(self.save) >= 7)
        os.kill(self._rank(of=1), signal.SIGKILL)
        self.reports.append(self._report())
        taken = steps_taken(self.save)
        self._wait(lambda: steps_taken(self.save) >= taken + 3)
        for launcher in self._launchers():
            os.kill(launcher, signal.SIGUSR1)
        self.reports.append(self._report())

    def _launchers(self) -> list[int]:
        [pids] = self.folder.glob("job-*.pids")
        return [int(pid) for pid in pids.read_text().split()]

    def _rank(self, of: int) -> int:
        launcher = self._launchers()[of]
        return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[0])

    def _report(self) -> dict:
        path = self.save / "exit.json"
        self._wait(path.exists)
        return json.loads(path.read_text())

    def _wait(self, condition) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.005)


@pytest.mark.timeout(600)  # twelve processes import torch; a crowded machine is slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks of a job in /proc")
def test_a_killed_and_a_signalled_job_are_requeued_and_end_as_if_undisturbed(
    ranks, prepared, tmp_path
):
    save, folder = tmp_path / "runs" / "yuyuan", tmp_path / "slurm"
    script = ROOT / "examples" / "pretrain_yuyuan_32xA100.slurm"
    disturber = Disturber(save, folder)
    disturber.start()
    command = ["sbatch", "--nodes=2", script, *TINY]
    subprocess.run(
        list(map(str, command)), env=environment(prepared, save, folder), cwd=ROOT, check=True,
        timeout=480, capture_output=True,
    )  # fmt: skip
    output = (folder / "slurm-1.out").read_text()
    assert (folder / "job-1.status").read_text() == "0", output
    killed, signalled = disturber.reports
    assert (killed["class"], killed["status"], killed["rank"]) == ("rank_lost", 75, 1)
    assert killed["signal"] in ("SIGKILL", None)
    assert (signalled["class"], signalled["cause"]) == ("signal", "SIGUSR1")
    assert output.count("\nerror: rank 1 (") == 1
    assert output.count("requeued: job 1 goes on") == 2
    undisturbed = tmp_path / "undisturbed"
    configs = [f"examples/configs/yuyuan_3.5b{part}.toml" for part in ("", "_32xA100")]
    flags = ("--config", ROOT / configs[0], "--config", ROOT / configs[1], "--data-path",
             prepared / "text_text_document", "--vocab-file", prepared / "tokenizer" / "vocab.json",
             "--merge-file", prepared / "tokenizer" / "merges.txt")  # fmt: skip
    ranks.run(2, pretrained, ("pretrain_gpt.py", *flags, "--save", undisturbed, *TINY))
    assert len(figures(undisturbed)) == 40
    assert figures(save) == figures(undisturbed)


def test_an_array_reads_and_a_dependent_job_writes_the_shard(prepared, tmp_path):
    folder, script = tmp_path / "slurm", str(ROOT / "examples" / "prepare_pubmed.slurm")
    given = environment(prepared, tmp_path, folder) | {
        "INPUT": str(SAMPLE_DATA / "pubmed_sample.xml"), "OUTPUT_PREFIX": str(tmp_path / "text")
    }  # fmt: skip
    answers = []
    for flags in (["--array=0-1"], ["--dependency=afterok:1"]):
        command = ["sbatch", "--parsable", *flags, script, "--workers", "1"]
        ended = subprocess.run(
            command, env=given, cwd=ROOT, check=False, timeout=240, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        answers.append(ended.stdout.strip())
        output = (folder / f"slurm-{len(answers)}.out").read_text()
        assert (folder / f"job-{len(answers)}.status").read_text() == "0", output
    assert answers == ["1", "2"]
    assert "task 1 of 2" in (folder / "slurm-1.out").read_text()
    for part in (".bin", ".idx"):
        made = (tmp_path / f"text_text_document{part}").read_bytes()
        assert made == (prepared / f"text_text_document{part}").read_bytes()


@pytest.mark.parametrize(
    ("report", "status", "requeued"),
    [('{"status": 75}', 75, True), ('{"status": 2}', 2, False), ('{"status": 0}', 0, False),
     ("", 1, False)],
)  # fmt: skip
def test_the_report_of_this_start_decides_what_comes_after_it(tmp_path, report, status, requeued):
    save, folder = tmp_path / "run", tmp_path / "slurm"
    save.mkdir()
    (save / "exit.json").write_text('{"status": 75}')  # of the start before: it counts for nothing
    os.utime(save / "exit.json", (0, 0))
    given = install(folder) | {"SAVE": str(save), "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    (folder / "bin" / "torchrun").write_text(
        f"#!/bin/sh\n[ -z '{report}' ] || printf '%s' '{report}' > {save}/exit.json\nexit 1\n"
    )
    ended = subprocess.run(
        ["bash", ROOT / "examples" / "slurm_torchrun.sh", "pretrain_gpt.py"],
        env=os.environ | given | {"SLURM_JOB_NODELIST": "127.0.0.[2-3]"},
        check=False, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert (folder / "job-7.requeued").exists() == requeued
    assert [path.name for path in save.iterdir()] == ["exit.json"]


SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.s*") if path.is_file())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_bash_and_say_what_they_need(name):
    path = ROOT / "examples" / name
    subprocess.run(["bash", "-n", str(path)], check=True)
    needed = re.findall(r'^: "\$\{(\w+):\?(.+)\}"$', path.read_text(), re.MULTILINE)
    without = {k: v for k, v in os.environ.items() if k not in dict(needed)}
    ended = subprocess.run(
        ["bash", str(path)], env=without, capture_output=True, text=True, check=False
    )
    assert ended.returncode and ended.stderr.endswith(": ".join(needed[0]) + "\n")
