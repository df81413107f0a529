"""Whatever is given in place of what a command expects ends it with status 2 and three lines.

The flags and values of the training commands are generated from config.py: a new field is tried without
a line here. The rows of the fault catalogue that are about input have their tests where their code has:
these are the flags.
"""

import re
import runpy
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import tokenizer_flags, train_flags
from tiny_run import save_run

from megatron_yuyuan import run as run_module
from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.config import config_fields
from megatron_yuyuan.run import finetune, pretrain

THREE_LINES = re.compile(r"error: .+\n  why: .+\n  try: .+\n")


class Accepted(Exception):
    """The run would begin now."""


@pytest.fixture
def ended(capsys):
    """ended(action) is the status of a command and what it says on stderr."""

    def run(action: Callable[[], None]) -> tuple[int, str]:
        capsys.readouterr()
        try:
            run_command(action)
        except SystemExit as end:
            return end.code or 0, capsys.readouterr().err
        except Accepted:
            return 0, "accepted"
        return 0, capsys.readouterr().err

    return run


def assert_refused(outcome: tuple[int, str]) -> None:
    """Status 2, and nothing on stderr but errors of three lines."""
    status, said = outcome
    assert status == 2, (status, said)
    assert THREE_LINES.sub("", said) == "" and "error: " in said, said


@pytest.fixture
def begins(monkeypatch):
    """Training as it is up to the process group, and no further."""

    @contextmanager
    def accepted(*_):
        raise Accepted
        yield

    monkeypatch.setattr(run_module, "mesh_of_job", accepted)
    monkeypatch.setattr(run_module, "Stopping", lambda *_: None)


@pytest.fixture
def trains(begins, prepared, tmp_path):
    """trains(*flags) is the beginning of a run that is right but for these flags."""

    def action(*flags: object, command=pretrain) -> Callable[[], None]:
        words = [str(w) for w in train_flags(prepared, tmp_path / "run", *flags)[1:]]
        return lambda: command(parse_config("", words))

    return action


def test_a_run_without_nonsense_would_begin(ended, trains):
    assert ended(trains()) == (0, "accepted")


NUMBERS = ("many", "", "-1", "nan", "inf", "1e999", "9" * 30, "1,5", "0x", "١٢.٣.٤", "\udcff")
"""Of which none is a number that anything here can be."""
WHOLE = ("1.5", "1e3", "½")
"""The same where a whole number is needed."""
CHOICES = ("", "nonsense", "AUTO ", "é", "\udcff")
TEXTS = ("\udcff", "a\x00b", "a\x1b[2J")
"""In a path or a name: no UTF-8, and control characters."""


def nonsense() -> list[tuple[str, str]]:
    """(flag, value) of every field."""
    found = []
    for name, (_, declared) in config_fields().items():
        flag, kind = "--" + name.replace("_", "-"), declared.type
        if kind is bool:
            found += [(f"{flag}=yes", ""), (f"{flag}=", "")]
        elif kind in (int, tuple[int, ...]):
            found += [(flag, value) for value in NUMBERS + WHOLE]
        elif kind is float:
            found += [(flag, value) for value in NUMBERS]
        elif declared.metadata.get("choices"):
            found += [(flag, value) for value in CHOICES]
        else:
            found += [(flag, value) for value in TEXTS]
    return found


def of_flag(flag: str) -> list[str]:
    """The values for one flag that takes so many words."""
    metavar = config_fields()[flag[2:].replace("-", "_")][1].metadata.get("metavar")
    return ["2"] * (len(metavar) - 1) if isinstance(metavar, tuple) and len(metavar) > 1 else []


FLAGS = sorted({flag.split("=")[0] for flag, _ in nonsense()})


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_refuses_nonsense(ended, trains, flag):
    values = [(word, value) for word, value in nonsense() if word.split("=")[0] == flag]
    for word, value in values:
        words = [word] if "=" in word else [f"{word}={value}"]
        if not of_flag(flag) and words == [f"{flag}=-1"]:
            words = [flag, "-1"]
        assert_refused(ended(trains(*words, *of_flag(flag))))


def test_there_are_enough_of_them():
    assert len(nonsense()) > 1000 and len(FLAGS) == len(config_fields()) > 110
    assert sum(len(WRONG_TYPES[declared.type]) for _, declared in config_fields().values()) > 850


WRONG_TYPES = {
    int: ['"12"', "1.5", "true", "[1]", "{}", "-1", "1e3", "nan", "9" * 30, "0x" + "f" * 4000],
    float: ['"0.1"', "true", "[0.1]", "{}", "-1.0", "nan", "inf", "1979-05-27", "9" * 400],
    bool: ['"yes"', "1", "0.0", "[]", "[true]"],
    str: ["1", "true", "[]", '"a\\u0000b"', '"a\\u001bb"'],
    tuple[str, ...]: ['"a"', "1", "[1]", '[["a"]]', '["a\\u0000"]'],
    tuple[int, ...]: ['"1"', "1", '["1"]', "[1.5]", "[true]"],
}


@pytest.mark.parametrize("name", config_fields())
def test_every_value_of_a_file_is_checked(ended, trains, tmp_path, name):
    group, declared = config_fields()[name]
    file = tmp_path / "wrong.toml"
    for value in WRONG_TYPES[declared.type]:
        file.write_text(f"[{group}]\n{name} = {value}\n")
        outcome = ended(trains("--config", file))
        # a flag of the command comes after the file, and wins: then the file alone is read
        assert_refused(ended(lambda: read_alone(file)) if outcome[0] == 0 else outcome)


def read_alone(file: Path) -> None:
    """A configuration that a file alone makes, as far as its values go."""
    from megatron_yuyuan.validation import validate

    whole = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9}
    config = parse_config("", ["--config", str(file)])
    given = {n: v for n, v in whole.items() if not getattr(config.model, n)}
    validate(config.replace(**given, train_iters=config.training.train_iters or 1), 1)


FILES = {
    "empty table": "[]\n",
    "no table": "lr = 1\n",
    "unknown table": "[modle]\nnum_layers = 1\n",
    "unknown name": "[model]\nnum_layer = 1\n",
    "name of another table": "[model]\nlr = 1.0\n",
    "twice": "[model]\nnum_layers = 1\nnum_layers = 1\n",
    "a table for a value": "[model.num_layers]\na = 1\n",
    "many digits": f"[model]\nnum_layers = {'9' * 5000}\n",
    "deep": "[model]\nnum_layers = " + "[" * 5000 + "]" * 5000 + "\n",
    "cut": '[checkpoint]\nsave = "a',
    "json": '{"model": {"num_layers": 1}}',
    "yaml": "model:\n  num_layers: 1\n",
    "html": "<html><body>404</body></html>",
    "a pickle": b"\x80\x04\x95\x00",
    "utf-16": "[model]\n".encode("utf-16"),
    "nul": b"[model]\x00\n",
    "names of Megatron-LM's": "[model]\nswiglu = true\n",
}


@pytest.mark.parametrize("what", FILES)
def test_a_configuration_that_is_none_is_refused(ended, trains, tmp_path, what):
    content, file = FILES[what], tmp_path / "wrong.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(ended(trains("--config", file)))


def of_paths(folder: Path) -> dict[str, Path]:
    """What may stand where a file or a directory is expected."""
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "random").write_bytes(bytes(range(256)) * 9)
    (folder / "loop").symlink_to(folder / "loop")
    names = ("missing", "empty", "folder", "random", "loop", "x" * 300, "ünïcödé/ß", "a\nb")
    return {name: folder / name for name in names}


PATHS = ("--data-path", "--load", "--tokenizer-model", "--config")


@pytest.mark.parametrize("flag", PATHS)
def test_a_path_to_something_else_is_refused(ended, trains, tmp_path, flag):
    for name, path in of_paths(tmp_path).items():
        if (flag, name) != ("--config", "empty"):  # which says nothing, and may
            assert_refused(ended(trains(flag, path)))


def test_so_are_those_of_finetuning(ended, trains, tmp_path):
    for path in of_paths(tmp_path).values():
        assert_refused(ended(trains("--load", path, command=finetune)))
        assert_refused(ended(trains("--load", f"hf:{path}")))
        assert_refused(ended(trains("--load", f"megatron:{path}", "--num-attention-heads", 4)))


COMMAND_LINES = [
    ("--num-layer", "2"),
    ("--no-such-flag",),
    ("stray",),
    ("--seed",),
    ("--data-path",),
    ("--rampup-batch-size", "1", "2"),
    ("--no-seed",),
    ("--bf16", "true"),
    ("--swiglu",),
    ("--config",),
    ("-x",),
    ("--", "--seed", "1"),
    ("--split", "1;2;3"),
    ("--split", "-1,2,3"),
    ("--split", "nan,1,1"),
    ("--split", "0,0,0"),
    ("--split", ""),
    ("--split", "1,2,3,4"),
    ("--split", "1e999,1,1"),
    ("--pipeline-layout", "1", "0"),
    ("--data-path", "0.5"),
    ("--data-path", "nan", "a", "inf", "b"),
    ("--load", ""),
    ("--strict", "--save", ""),
]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_a_command_line_that_makes_no_sense_is_refused(ended, trains, words):
    if words == ("--load", ""):
        return assert_refused(ended(trains("--load", "", command=finetune)))
    assert_refused(ended(trains(*words)))


# The tools


@pytest.fixture(scope="module")
def world(prepared, tmp_path_factory) -> Path:
    """A folder with a run, a text and questions, for the tools that need one."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(prepared, folder / "data")
    save_run(folder / "run", ["Question:What is gout? answer: Gout is a disease."] * 4, 280)
    (folder / "text.jsonl").write_text('{"text": "Gout is a disease of joints."}\n' * 9)
    (folder / "qa.jsonl").write_text('{"question": "What is gout?", "answer": "A disease."}\n' * 3)
    return folder


def right(tool: str, world: Path, out: Path) -> list[object]:
    """Flags with which a tool does its work, in less than a second."""
    run, tokenizer = ("--load", world / "run"), tokenizer_flags(world / "data" / "tokenizer")
    few = ("--max-new-tokens", 1)
    return {
        "check_data": [world / "data" / "text_text_document"],
        "compare_tokenizers": ["--input", world / "text.jsonl", "--tokenizer",
                               f"a={world / 'data' / 'tokenizer'}"],
        "convert_checkpoint": ["--to", "hf", *run, "--save", out / "hf"],
        "download_data": ["medquad", "--output-dir", out / "medquad", "--base-url", "http://127.0.0.1:9"],
        "evaluate_perplexity": [*run, "--data-path", world / "data" / "text_text_document"],
        "evaluate_qa": [*run, "--data", world / "qa.jsonl", "--limit", 1, *few, "--greedy-only"],
        "generate_text": [*run, "--prompt", "Gout", *few],
        "judge_facts": [*run, "--question", "Is gout a disease?"],
        "plan_parallelism": ["--num-layers", 2, "--hidden-size", 64, "--num-attention-heads", 4,
                             "--vocab-size", 256, "--seq-length", 32, "--global-batch-size", 8,
                             "--gpu", "A100-40", "--gpus", 2],
        "plot_metrics": [world / "run"],
        "preprocess_data": ["--input", world / "text.jsonl", "--output-prefix", out / "p",
                            "--workers", 1, *tokenizer],
        "report": [world / "run"],
        "train_tokenizer": ["--input", world / "text.jsonl", "--vocab-size", 270,
                            "--output-dir", out / "tokenizer"],
        "translate_args": [world / "script.sh"],
    }.get(tool, [])  # fmt: skip


TOOLS = sorted(path.stem for path in (Path(__file__).parents[2] / "tools").glob("*.py"))


@pytest.fixture(scope="module")
def mains(repository) -> dict[str, Callable]:
    return {
        tool: runpy.run_path(str(repository / "tools" / f"{tool}.py"))["main"] for tool in TOOLS
    }


def flags_of(main: Callable, capsys) -> list[tuple[str, str]]:
    """(flag, what stands for its value, empty for a switch) of a tool, from its --help."""
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    flag = re.compile(r"^  (?:-\w, )?(--[\w-]+)(?:,? (?!  )(\[?[A-Z{][^ ]*))?", re.MULTILINE)
    return [(found[1], found[2] or "") for found in flag.finditer(shown)]


IS_NUMBER = ("N", "X", "I", "INT", "FLOAT", "GIB", "GB/S")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_flag_of_every_tool_refuses_nonsense(mains, world, tmp_path, capsys, ended, tool):
    flags, base = flags_of(mains[tool], capsys), right(tool, world, tmp_path)
    tried = [("--no-such-flag", "1")]
    for flag, value in flags:
        if value.startswith("{"):
            tried += [(flag, word) for word in ("nonsense", "é")]
        elif value in IS_NUMBER:
            tried += [(flag, word) for word in ("many", "", "1.5.2", "½")]
            tried += [(flag, word) for word in ("nan", "-1")[: 1 if flag in BELOW_0 else 2]]
    for flag, word in tried:
        words = [*map(str, base), f"{flag}={word}"]
        outcome = ended(lambda words=words: mains[tool](words))
        assert outcome[0] == 2, (flag, word, outcome)
        assert_refused(outcome)
    assert len(tried) > 1 or not any(value in IS_NUMBER for _, value in flags)


BELOW_0 = ("--seed", "--yes-above", "--no-below")
"""Flags of tools for which a number below 0 has a meaning."""
EXPECTS_A_FILE = {
    "check_data": [()],
    "compare_tokenizers": [("--input",), ("--terms",)],
    "convert_checkpoint": [("--load",)],
    "evaluate_perplexity": [("--load",), ("--data-path",)],
    "evaluate_qa": [("--load",), ("--data",)],
    "generate_text": [("--load",)],
    "judge_facts": [("--load",)],
    "plan_parallelism": [("--config",)],
    "plot_metrics": [()],
    "preprocess_data": [("--input",), ("--tokenizer-model",)],
    "report": [(), ("--scores",)],
    "train_tokenizer": [("--input",)],
}


@pytest.mark.parametrize("tool", EXPECTS_A_FILE)
def test_every_tool_refuses_what_is_not_its_file(mains, world, tmp_path, ended, tool):
    base = [str(word) for word in right(tool, world, tmp_path)]
    paths = of_paths(tmp_path)
    for flag in EXPECTS_A_FILE[tool]:
        for name, path in paths.items():
            if (flag, name) == (("--terms",), "empty"):  # no terms: nothing to count
                continue
            words = [str(path)] if not flag else [*base, *flag, str(path)]
            assert_refused(ended(lambda words=words: mains[tool](words)))
