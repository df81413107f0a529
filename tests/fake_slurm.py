"""sbatch, srun and scontrol for one machine, which really start the processes of a job.

Every node is a loopback address (127.0.0.2, 127.0.0.3, ...). sbatch runs a job to its end, requeues
included, before it answers; so a job that depends on another is begun when that has ended, or refused.
FAKE_SLURM names a folder for what they know of each other; FAKE_GPUS the ranks of a node.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

STARTS = 6
"""Requeues beyond this are a loop."""


def install(folder: Path) -> dict[str, str]:
    """Put the three commands into `folder`/bin; return the environment in which they are found."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    for name in ("sbatch", "srun", "scontrol"):
        command = binaries / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(0o755)
    for name in ("python", "torchrun"):
        module = " -m torch.distributed.run" if name == "torchrun" else ""
        command = binaries / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        command.chmod(0o755)
    return {"PATH": f"{binaries}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def state() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def options_of(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Leading --name=value and --name value (a flag has no value if a flag or nothing follows)."""
    options, words = {}, list(words)
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        if not value and name not in ("parsable", "requeue"):
            value = words.pop(0)
        options[name] = value
    return options, words


def sbatch(words: list[str]) -> int:
    """Run a job, or each task of an array, and print its number."""
    options, (script, *flags) = options_of(words)
    asked = re.findall(r"^#SBATCH (--\S+)", Path(script).read_text(), re.MULTILINE)
    options = options_of(asked)[0] | options
    number = len(list(state().glob("job-*.status"))) + 1
    before = options.get("dependency", "").removeprefix("afterok:")
    if before and (state() / f"job-{before}.status").read_text() != "0":
        print(f"job {before} failed: DependencyNeverSatisfied", file=sys.stderr)
        return 1
    first, _, last = options.get("array", "").partition("-")
    tasks = range(int(first), int(last) + 1) if last else [None]
    status = max(_job(number, task, len(tasks), options, [script, *flags]) for task in tasks)
    (state() / f"job-{number}.status").write_text(str(status))
    print(number if "parsable" in options else f"Submitted batch job {number}")
    return 0


def _job(number: int, task: int | None, tasks: int, options: dict, command: list[str]) -> int:
    """Run a batch script to its last end; its status."""
    nodes = int(options["nodes"])
    environment = os.environ | {
        "SLURM_JOB_ID": str(number),
        "SLURM_SUBMIT_DIR": os.getcwd(),
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": f"127.0.0.[2-{1 + nodes}]",
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        "SLURM_GPUS_ON_NODE": os.environ.get("FAKE_GPUS", "1"),
    }
    if task is not None:
        environment |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(tasks)}
    requeued = state() / f"job-{number}.requeued"
    for start in range(STARTS):
        requeued.unlink(missing_ok=True)
        environment |= {"SLURM_RESTART_COUNT": str(start)} if start else {}
        with (state() / f"slurm-{number}.out").open("a") as out:
            status = subprocess.run(
                ["bash", *command], env=environment, stdout=out, stderr=out, check=False
            ).returncode
        if not requeued.exists():
            return status
    return 99


def srun(words: list[str]) -> int:
    """Run a command once on every node; when one has ended, the others have --wait seconds."""
    options, command = options_of(words)
    nodes = [
        subprocess.Popen(command, env=os.environ | _of_node(node))
        for node in range(int(os.environ["SLURM_NNODES"]))
    ]
    pids = state() / f"job-{os.environ['SLURM_JOB_ID']}.pids"
    pids.write_text(" ".join(str(node.pid) for node in nodes))
    while all(node.poll() is None for node in nodes):
        time.sleep(0.05)
    deadline = time.monotonic() + float(options["wait"])
    for node in nodes:
        try:
            node.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            node.kill()
    pids.unlink()
    return max(abs(node.wait()) for node in nodes)


def _of_node(node: int) -> dict[str, str]:
    """What differs from node to node: torchrun takes PET_LOCAL_ADDR for --local-addr."""
    return {
        "SLURM_NODEID": str(node),
        "SLURM_PROCID": str(node),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NNODES"],
        "PET_LOCAL_ADDR": f"127.0.0.{2 + node}",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def scontrol(words: list[str]) -> int:
    action, what = words[0], words[-1]
    if action == "requeue":
        (state() / f"job-{what}.requeued").touch()
    else:
        first, last = re.fullmatch(r"127\.0\.0\.\[(\d+)-(\d+)\]", what).groups()
        print("\n".join(f"127.0.0.{node}" for node in range(int(first), int(last) + 1)))
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
