"""A tiny tokenizer and shards, and the commands run as a person runs them."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAMPLE_DATA = ROOT / "examples" / "sample_data"


def run(
    *command: object, ranks: int = 0, status: int | None = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """A command of ours by itself (`forked`), or by torchrun over `ranks` processes; check the exit status
    (None: any)."""
    arguments = [*map(str, command)]
    if ranks:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        ended = subprocess.run(
            [sys.executable, *launcher, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    else:
        ended = forked(arguments, cwd)
    if status is not None:
        assert ended.returncode == status, ended.stdout + ended.stderr
    return ended


def forked(arguments: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` in a process of its own, forked from one that has imported torch already: to
    import it takes longer than most commands do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "megatron_yuyuan.run"])
    with tempfile.TemporaryDirectory() as directory:
        outputs = [f"{directory}/{name}" for name in ("stdout", "stderr")]
        process = context.Process(target=serve, args=(arguments, cwd or Path.cwd(), outputs))
        process.start()
        process.join()
        stdout, stderr = (Path(output).read_text(encoding="utf-8") for output in outputs)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def serve(arguments: list[str], cwd: Path, outputs: list[str]) -> None:
    import torch

    for descriptor, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    torch.set_num_threads(1)
    run_main(arguments)


def run_main(arguments: list[str]) -> None:
    """Run a script, or a module after -m, as `python` does."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def tokenizer_flags(directory: Path | str) -> tuple[str, ...]:
    return "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(directory)


def prepare(directory: Path) -> Path:
    """tokenizer/, text_text_document and qa_{train,test}_qa_document of the sample data."""
    flags = tokenizer_flags(directory / "tokenizer")
    pubmed, medquad = SAMPLE_DATA / "pubmed_sample.xml", SAMPLE_DATA / "medquad_train.xml"
    tools = ROOT / "tools"
    run(tools / "train_tokenizer.py", "--input", pubmed, "--vocab-size", 300, "--output-dir",
        directory / "tokenizer")  # fmt: skip
    run(tools / "preprocess_data.py", "--input", pubmed, "--output-prefix", directory / "text",
        "--append-eod", *flags)  # fmt: skip
    run(tools / "preprocess_data.py", "--input", medquad, "--output-prefix", directory / "qa",
        "--split", "80,0,20", *flags)  # fmt: skip
    return directory


def train_flags(prepared: Path, save: Path, *more: object) -> tuple[object, ...]:
    """A pretraining run of 12 steps of a very small model."""
    return (
        *(ROOT / "pretrain_gpt.py", "--device", "cpu", "--num-layers", 2, "--hidden-size", 32),
        *("--num-attention-heads", 4, "--seq-length", 32, "--global-batch-size", 8),
        *("--hidden-dropout", 0.1, "--lr", 3e-3, "--lr-warmup-iters", 2, "--train-iters", 12),
        *("--save-interval", 4, "--eval-interval", 6, "--eval-iters", 1, "--split", "90,10,0"),
        *("--data-path", prepared / "text_text_document", "--save", save),
        *tokenizer_flags(prepared / "tokenizer"),
        *more,
    )
