"""Every command in README and docs/ is one that works.

Every command is read by its own parser, and one that trains is validated on as many ranks as it starts.
Beyond that a command is run, in a small form, on the sample data (RUN), or it stands in NOT_RUN with the
reason.
"""

import contextlib
import gzip
import json
import re
import runpy
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from commands import ROOT, SAMPLE_DATA, forked
from documents import PAGES, Command, commands

from megatron_yuyuan.cli import ArgumentParser, parse_config
from megatron_yuyuan.errors import ConfigError

REFERENCE = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "write_cli_reference.py")))
load, parser_of = REFERENCE.load, REFERENCE.parser_of

TRAINING = ("pretrain_gpt.py", "finetune_qa.py")
DOCTOR = "-m megatron_yuyuan.doctor"

SMALL = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 64 --device cpu --micro-batch-size 4 "
    "--global-batch-size 8 --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --no-sequence-parallel "
    "--epochs 0 --train-iters 2 --eval-iters 1 --eval-prompt-tokens 2 --split 90,10,0"
)
"""What is added to a command that trains, so that one process takes it in seconds."""

RUN = {
    "tools/train_tokenizer.py": "--vocab-size 300",
    "tools/preprocess_data.py": "--workers 1 --encoder reference",
    "tools/check_data.py": "",
    "pretrain_gpt.py": SMALL,
    "finetune_qa.py": SMALL,
    "tools/evaluate_qa.py": "--limit 2 --max-new-tokens 4",
    "tools/generate_text.py": "--max-new-tokens 4",
    "tools/convert_checkpoint.py": "",
    "tools/evaluate_perplexity.py": "--stride 32",
    "tools/judge_facts.py": "",
    "tools/plot_metrics.py": "",
    "tools/report.py": "",
    "tools/plan_parallelism.py": "",
}
"""Script -> what is added where it is run; on several nodes a command that trains becomes a `--dry-run`."""

NOT_RUN = {
    "tests/faults/corruption.py": "tests/faults/test_corruption.py calls what it prints",
    "tests/faults/coverage_fuzzing.py": "atheris is no dependency: it has no wheel for every system",
    "tools/download_data.py": "it needs a network; tests/tools/test_download_data.py runs it on a server of its own",
    "tools/translate_args.py": "it needs a script of Megatron-LM's; tests/tools/test_translate_args.py has some",
    "tools/write_cli_reference.py": "it would write this repository; its page is compared below",
    "tools/benchmark/": "minutes each, or a GPU",
    "tools/gpu_check.sh": "it needs a GPU; tests/tools/test_gpu_check.py reads it",
    DOCTOR: "tests/test_doctor.py runs it on ranks",
    "-m timeit": "no test asserts a time",
    "-m pytest": "it would run the tests within a test",
    "tests/pairs.py": "it would write tests/pairs.csv",
    "examples/sample_data/generate.py": "tests/test_sample_data.py runs it",
    "make": "it installs the package, and runs the tests or the quickstart, which has tests/test_quickstart.py",
    "pip": "it installs from an index",
    "docker": "tests/test_docker.py reads the Dockerfile",
    "sbatch": "tests/launch/test_slurm.py runs these scripts",
    "vllm": "it is no part of this package",
    "curl": "it asks vllm's server",
    "lm_eval": "it downloads its tasks",
}
"""Beginning of a command less `python` -> why nothing runs it here."""

ALL = [command for page in PAGES for command in commands(page)]
TAKEN = {"torchrun", "python", ".venv/bin/python"}


def launched(command: Command) -> tuple[list[str], int, int]:
    """(words from the script on, ranks, nodes) of a command of Python's. Ends the process where torchrun
    does not know a flag."""
    words = list(command.words)
    if words[0] != "torchrun":
        return words[1:], 1, 1
    if command.partial and words[1] == "...":
        return words[2:], 1, 1
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words[1:])
    script, nodes = parsed.training_script, int(parsed.nnodes.split(":")[0])
    start = ["-m", script] if parsed.module else [script]
    return [*start, *parsed.training_script_args], nodes * int(parsed.nproc_per_node), nodes


def script_of(command: Command) -> str:
    """What NOT_RUN and RUN know a command by."""
    if command.words[0] not in TAKEN:
        return command.words[0]
    words, _, _ = launched(command)
    return " ".join(words[:2]) if words[0] == "-m" else words[0]


def reason_of(script: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if script.startswith(start)), None)


class Read(BaseException):
    """A command has read its words, and is stopped."""


def read(script: str, words: list[str]) -> None:
    """Have a tool read the words as it would, and do nothing with them. Raises ConfigError."""
    parse = ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise Read

    beside = [str((ROOT / script).parent), *sys.path]  # where a script finds its neighbours
    with mock.patch.object(sys, "path", beside):
        module = load(ROOT / script)
    with mock.patch.object(ArgumentParser, "parse_args", stop), contextlib.suppress(Read):
        module.main(words)


def known_flags(script: str) -> set[str]:
    if script in TRAINING or script == DOCTOR:
        return set(parser_of(lambda: parse_config("", []))._option_string_actions)
    module = load(ROOT / script)
    return set(parser_of(lambda: module.main([]))._option_string_actions)


def validated(words: list[str], ranks: int, finetunes: bool) -> None:
    """Refuse what a run would refuse before it opens a file. The tokenizer is taken to be GPT-2's; a run
    that starts from weights without naming their shape, to have that of gpt2_124m. Raises ConfigError."""
    from megatron_yuyuan.resolve import resolve
    from megatron_yuyuan.validation import validate

    shape = ("--config", str(ROOT / "examples" / "configs" / "gpt2_124m.toml")) if finetunes else ()
    config = parse_config("", [*shape, *words])
    ranks = config.parallel.dry_run_ranks or ranks
    validate(resolve(config, 50257, None, ranks), ranks)


def check(command: Command) -> None:
    """Read a command as its program would. Raises ConfigError, or fails."""
    if command.words[0] == "make":
        return check_make(command)
    if command.words[0] == "pip":
        return check_pip(command)
    if command.words[0] == "sbatch":
        [script] = [word for word in command.words if word.startswith("examples/")]
        assert (ROOT / script).is_file()
        return None
    if command.words[0] not in TAKEN:
        return None
    words, ranks, _ = launched(command)
    script, rest = script_of(command), words[2 if words[0] == "-m" else 1 :]
    if command.partial:
        ours = rest[: rest.index("--")] if "--" in rest else rest
        flags = {word for word in ours if word.startswith("--")}
        assert flags <= known_flags(script) | {"--json"}
    elif script == "-m pytest":
        assert all((ROOT / word).exists() for word in rest if not word.startswith("-"))
    elif script == "-m timeit":
        assert len(rest) >= 1
    elif script == DOCTOR:
        assert not rest or rest[0] in TRAINING
    elif script in TRAINING and not {"--help", "--print-config"} & set(rest):
        validated(rest, ranks, script == "finetune_qa.py")
    elif script.startswith("tools/") and "def main(args" in (ROOT / script).read_text():
        read(script, rest)
    else:
        assert (ROOT / script).is_file()
    return None


def check_make(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        name, assigned, _ = word.partition("=")
        pattern = rf"^{name} \?=" if assigned else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_pip(command: Command) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for asked in re.findall(r"\[([\w,-]+)\]", str(command)):
        assert set(asked.split(",")) <= set(extras)
    assert all((ROOT / word).is_file() for word in command.words if word.endswith(".txt"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_is_one_that_its_program_takes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(path):
        try:
            check(command)
        except (ConfigError, AssertionError, SystemExit) as error:
            pytest.fail(f"{command.page}:{command.line}: {command}\n{error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "python tools/check_data.py --no-such-flag data/x",
        "python tools/train_tokenizer.py --vocab-size many --input x --output-dir y",
        "torchrun --no-such-flag 8 pretrain_gpt.py",
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 2 --hidden-size 6 --num-attention-heads 4",
        "torchrun --nproc-per-node 3 pretrain_gpt.py --config examples/configs/tiny.toml",
        "torchrun ... tools/generate_text.py --no-such-flag ...",
        "python tools/no_such_tool.py",
        "make no-such-target",
        "make test NO_SUCH_VARIABLE=1",
        "pip install -e .[no-such-extra]",
        "sbatch examples/no_such.slurm",
    ],
)
def test_a_wrong_command_is_noticed(wrong, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ConfigError, AssertionError, SystemExit, OSError)):
        check(Command("a page", 1, tuple(wrong.split())))


def test_every_command_is_run_or_says_why_not():
    scripts = {script_of(command) for command in ALL if not command.partial}
    for script in scripts:
        assert (script in RUN) != (reason_of(script) is not None), script
    assert len(scripts) > 25
    stale = [start for start in NOT_RUN if not any(s.startswith(start) for s in scripts)]
    assert not stale
    assert set(RUN) <= scripts


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder that looks like the repository, with the sample data where a reader would have real ones."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("examples", "tools", *TRAINING):
        (folder / name).symlink_to(ROOT / name)
    for raw in ("raw", "DATA"):
        for place in ("pubmed", "pubmed_xml/derived", "pubmed_xml/real"):
            (folder / raw / place).mkdir(parents=True)
            shutil.copy(SAMPLE_DATA / "pubmed_sample.xml", folder / raw / place)
        (folder / raw / "medquad").mkdir()
        shutil.copy(SAMPLE_DATA / "medquad_train.xml", folder / raw / "medquad")
    (folder / "docs").mkdir()
    return folder


@pytest.fixture(scope="module")
def after_readme(bare, tmp_path_factory) -> Path:
    """That folder after every command of README's that is run."""
    folder = tmp_path_factory.mktemp("after") / "README"
    shutil.copytree(bare, folder, symlinks=True)
    run_all(ROOT / "README.md", folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / "data" / "tokenizer" / name, folder)
    return folder


PLACES = {
    "$DATA/gpt2_vocab/encoder.json": "vocab.json",
    "$DATA/gpt2_vocab/vocab.bpe": "merges.txt",
    "$DATA/pubmedqa/pqal_dev500.json": "ori_pqal.json",
    "$DATA": "DATA",
    "RUN": "runs/qa",
    "hf:DIR": "hf:export/qa",
    "DIR": "export/megatron",
    "MEDQUAD_FOLDER": "raw/medquad",
}
"""Names that a page uses for what a reader has."""

DISEASES = ("gout", "lupus", "flu", "asthma", "croup", "mumps", "rabies", "scurvy")


FILES = {"--load", "--save", "--data-path", "--train-data-path", "--valid-data-path"} | {
    "--vocab-file",
    "--merge-file",
}
"""What a dry run of a large model goes without here."""


def small(command: Command) -> list[str]:
    """The words of a command as it is run here."""
    words, ranks, nodes = launched(command)
    words = [filled(word) for word in words]
    if nodes > 1:
        kept = [w for i, w in enumerate(words) if not {w, words[i - 1]} & FILES]
        dry = ("--dry-run", "--dry-run-ranks", str(ranks), "--gpu-memory-gib", "40")
        return [*kept, "--keep-best", "0", *dry]  # --save is left out
    if {"--help", "--print-config", "--dry-run", "--predictions"} & set(words):
        return words
    return [*words, *RUN[words[0]].split()]


def filled(word: str) -> str:
    """A word of a command, with what stands here for a name of the page's."""
    if word in PLACES:
        return PLACES[word]
    return word.replace("$DATA", PLACES["$DATA"])


def run_all(path: Path, folder: Path) -> None:
    """Run every command of a page that is run, in their order; each must end with status 0."""
    for command in commands(path):
        if not command.partial and script_of(command) in RUN:
            words = small(command)
            if words[0] == "tools/convert_checkpoint.py":  # it overwrites nothing
                shutil.rmtree(folder / words[words.index("--save") + 1], ignore_errors=True)
            ended = forked(words, folder)
            assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}{ended.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme_run_one_after_another(after_readme):
    for product in ("runs/pubmed", "runs/qa/report.html", "export/qa/model.safetensors"):
        assert (after_readme / product).exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", PAGES[2:], ids=lambda path: path.name)
def test_the_commands_of_a_page_run_after_those_of_the_readme(path, bare, after_readme, tmp_path):
    whole_chain = path.name == "results.md"
    folder = tmp_path / "reader"
    shutil.copytree(bare if whole_chain else after_readme, folder, symlinks=True)
    furnish(folder, after_readme)
    run_all(path, folder)


def furnish(folder: Path, after_readme: Path) -> None:
    """What the pages take for granted beside that: updates, files of questions, scores."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(after_readme / name, folder)
    for name in ("baseline", "updatefiles"):
        (folder / name).mkdir()
        shutil.copy(SAMPLE_DATA / "pubmed_sample.xml", folder / name)
    asked = (*("--load", "runs/qa"), "--json")
    for file, *words in [
        ("scores.json", "tools/evaluate_qa.py", *asked, "--data", "data/medquad_test.jsonl"),
        ("facts.json", "tools/judge_facts.py", *asked, "--question", "Is gout rare?"),
    ]:
        ended = forked([*words, *RUN[words[0]].split()], after_readme)
        (folder / file).write_text(ended.stdout)
    record = {"title": "Gout", "abstract": "Uric acid causes gout."}
    with gzip.open(folder / "abstracts.jsonl.gz", "wt") as file:
        file.write(json.dumps(record) + "\n")
    questions = [f"Is {each} {said}?" for each in DISEASES for said in ("rare", "painful", "old")]
    lines = [json.dumps({"question": question}) + "\n" for question in questions]
    (folder / "questions.jsonl").write_text("".join(lines))
    verdicts = {
        str(i): {"QUESTION": question, "CONTEXTS": ["It was seen."], "final_decision": verdict}
        for i, (question, verdict) in enumerate(zip(questions, ["yes", "no"] * 12, strict=True))
    }
    for name in ("ori_pqal.json", "pqal_dev500.json"):
        (folder / name).write_text(json.dumps(verdicts))
