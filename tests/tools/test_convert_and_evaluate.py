"""The commands on a trained model: what they print and write, and what they say when something is
wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import save_run

from megatron_yuyuan.checkpoint import megatron_convert
from megatron_yuyuan.checkpoint.model import load_model
from megatron_yuyuan.watch.saved import find_checkpoint

NAMES = ("gout", "lupus", "flu")
PAIRS = [
    (f"What is {name}?", f"{name.capitalize()} is a disease — of the joints.") for name in NAMES
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    texts = [f"Question:{question} answer: {text}" for question, text in PAIRS * 3]
    save_run(directory, texts, iterations=(3, 5))
    return directory


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS))
    return path


def test_out_to_hugging_face_and_in_again(command, run, tmp_path, capsys):
    command(
        "convert_checkpoint",
        "--to",
        "hf",
        "--load",
        run,
        "--save",
        tmp_path / "hf",
        "--ckpt-step",
        3,
    )
    shown = capsys.readouterr().out
    assert (
        "iter_0000003 as float32" in shown
        and "384 rows trimmed to" in shown
        and "config.json" in shown
    )
    command(
        "convert_checkpoint",
        "--from",
        "hf",
        "--load",
        tmp_path / "hf",
        "--save",
        tmp_path / "again",
    )
    assert "iter_0000000" in capsys.readouterr().out
    path = find_checkpoint(tmp_path / "again")
    assert path and path.name == "iter_0000000"
    require_same_weights(load_model(run, 3), load_model(tmp_path / "again"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "hf"]


def test_a_run_and_its_export_answer_alike(command, run, tmp_path, capsys):
    command("convert_checkpoint", "--to", "hf", "--load", run, "--save", tmp_path / "hf")
    said = []
    for load in (run, tmp_path / "hf"):
        for flags in (
            ("--question", PAIRS[0][0]),
            ("--prompt", "Gout is", "--temperature", 1, "--seed", 3),
        ):
            capsys.readouterr()
            command("generate_text", "--load", load, "--max-new-tokens", 12, *flags)
            said.append(capsys.readouterr().out)
    assert said[:2] == said[2:] and said[0] != said[1]


def require_same_weights(expected, found) -> None:
    """To the bit, but for the rows of the embedding that no token has."""
    mine, theirs = expected.model.state_dict(), found.model.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        rows = expected.config.vocab_size if name == "wte.weight" else None
        assert tensor.any() or name.endswith("bias"), name
        assert (tensor[:rows] == theirs[name][:rows]).all(), name


def test_out_to_megatron_and_in_again(command, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(megatron_convert, "has_megatron", lambda: False)  # tests/checkpoint asks it
    there, again = tmp_path / "megatron", tmp_path / "again"
    command("convert_checkpoint", "--to", "megatron", "--load", run, "--save", there)
    assert "iter_0000005 as float32" in capsys.readouterr().out
    tokenizer = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", run / "tokenizer")
    flags = ("--from", "megatron", "--load", there, "--save", again, *tokenizer)
    command("convert_checkpoint", *flags)
    require_same_weights(load_model(run), load_model(again))


def test_several_prompts_are_answered_as_each_alone(command, run, capsys):
    questions = [question for question, _ in PAIRS]
    flags = ("--load", run, "--max-new-tokens", 6, "--repetition-penalty", 1.2)
    alone = []
    for question in questions:
        command("generate_text", *flags, "--question", question)
        alone.append(capsys.readouterr().out)
    command("generate_text", *flags, "--batch-size", 2, "--question", *questions)
    shown = capsys.readouterr().out
    assert shown == "".join(f"> {q}\n{a}\n" for q, a in zip(questions, alone, strict=True))
    assert len(set(alone)) == 3


@pytest.mark.parametrize(
    "tool, flags",
    [
        ("convert_checkpoint", ("--to", "hf", "--save", "new")),
        ("generate_text", ("--prompt", "x")),
        ("evaluate_qa", ("--data", "QUESTIONS")),
    ],
)
def test_a_load_without_a_checkpoint_is_refused(refused, questions, tmp_path, tool, flags):
    flags = [questions if flag == "QUESTIONS" else flag for flag in flags]
    assert f"no checkpoint in {tmp_path}" in refused(tool, "--load", tmp_path, *flags)
    assert not list(tmp_path.iterdir())


def test_an_import_without_a_model_is_refused(refused, tmp_path):
    assert "no config.json" in refused(
        "convert_checkpoint", "--from", "hf", "--load", tmp_path, "--save", "new"
    )


def test_an_existing_target_is_refused(refused, run, tmp_path):
    (tmp_path / "mine").write_text("kept")
    for direction in ("--to", "--from"):
        load = run if direction == "--to" else tmp_path
        if direction == "--from":
            (tmp_path / "config.json").write_text("{}")
        message = refused("convert_checkpoint", direction, "hf", "--load", load, "--save", tmp_path)
        assert "exists and is not empty" in message


def test_another_vocabulary_is_refused(command, refused, run, tmp_path):
    export = tmp_path / "hf"
    command("convert_checkpoint", "--to", "hf", "--load", run, "--save", export)
    (export / "checksums.json").unlink()  # a person changes config.json on purpose
    values = json.loads((export / "config.json").read_text())
    for size, message in ((values["vocab_size"] + 1, "wte.weight is"), (257, "the tokenizer has")):
        (export / "config.json").write_text(json.dumps(values | {"vocab_size": size}))
        assert message in refused(
            "convert_checkpoint", "--from", "hf", "--load", export, "--save", tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_missing_or_empty_questions_are_refused(refused, run, tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n")
    for name, message in (("missing.jsonl", "cannot read"), ("blank.jsonl", "no question in")):
        assert message in refused("evaluate_qa", "--load", run, "--data", tmp_path / name)


def test_a_prompt_that_is_too_long_is_refused_and_leaves_no_output(refused, run, tmp_path):
    data, output = tmp_path / "long.jsonl", tmp_path / "answers.jsonl"
    data.write_text(json.dumps({"question": "gout " * 90, "answer": "yes"}) + "\n")
    assert "the model 64 positions" in refused(
        "evaluate_qa", "--load", run, "--data", data, "--output", output
    )
    assert not output.exists() and [p.name for p in tmp_path.iterdir()] == ["long.jsonl"]


@pytest.mark.parametrize(
    "tool, flags",
    [
        ("convert_checkpoint", ("--load", "a", "--save", "b")),
        (
            "convert_checkpoint",
            ("--from", "hf", "--load", "a", "--save", "b", "--dtype", "float16"),
        ),
        ("convert_checkpoint", ("--to", "hf", "--load", "a", "--save", "b", "--trust")),
        (
            "convert_checkpoint",
            ("--to", "megatron", "--load", "a", "--save", "b", "--dtype", "float16"),
        ),
        ("convert_checkpoint", ("--from", "hf", "--load", "a", "--save", "b", "--ckpt-step", "3")),
        ("generate_text", ("--load", "a")),
        ("generate_text", ("--load", "a", "--prompt", "x", "--batch-size", "0")),
        ("generate_text", ("--load", "a", "--prompt", "x", "--top-k", "5")),
        ("generate_text", ("--load", "a", "--prompt", "x", "--seed", "7")),
        ("translate_args", ("--set", "A=1", "--", "python", "pretrain_gpt.py")),
        ("generate_text", ("--load", "a", "--prompt", "x", "--question", "y")),
        ("evaluate_qa", ("--load", "a", "--data", "b", "--limit", "-1")),
    ],
)
def test_flags_that_do_not_go_together_are_refused(refused, tool, flags):
    refused(tool, *flags)


def test_a_command_ends_with_its_status(run, repository, tmp_path):
    def start(*args):
        tool = repository / "tools" / "generate_text.py"
        return subprocess.run(
            [sys.executable, tool, *map(str, args)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(repository), "PATH": ""},
            timeout=120,
        )

    good = start("--load", run, "--prompt", "Gout is", "--max-new-tokens", 3)
    assert good.returncode == 0 and good.stdout.strip()
    assert not re.search(r"^(error:|Traceback)", good.stderr, re.MULTILINE), good.stderr
    bad = start("--load", tmp_path, "--prompt", "Gout is")
    assert (
        bad.returncode == 2 and bad.stderr.startswith("error: no checkpoint in") and not bad.stdout
    )
