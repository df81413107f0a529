"""The commands on a trained model: what they print and write, and what they say when something is
wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_yuyuan.checkpoint.dcp import find_checkpoint, save_checkpoint
from megatron_yuyuan.checkpoint.model import load_model
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.evaluate.generate import answer
from megatron_yuyuan.model.gpt2 import GPT2, init_weights

NAMES = ("gout", "lupus", "flu")
PAIRS = [
    (f"What is {name}?", f"{name.capitalize()} is a disease — of the joints.") for name in NAMES
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    tokenizer = train_bpe(
        (f"Question:{question} answer: {text}" for question, text in PAIRS * 3), 320
    )
    config = Config().replace(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=64,
        seq_length=64,
        vocab_size=tokenizer.vocab_size,
        init_method_std=0.2,
    )
    model = GPT2(config.model)
    init_weights(model, seed=1)
    for iteration in (3, 5):
        document = {
            "consumed_samples": 20,
            "optimizer": False,
            "template": TEMPLATE.to_dict(),
            "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            "random": {},
            "data_order": 1,
            "config": config.to_dict(),
        }
        tensors = {
            f"model.{name}": tensor * iteration for name, tensor in model.state_dict().items()
        }
        save_checkpoint(directory, iteration, tensors, document)
    tokenizer.save(directory / "tokenizer")
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
    expected, found = load_model(run, 3).model, load_model(tmp_path / "again").model
    assert (found.wpe.weight == expected.wpe.weight).all() and expected.wpe.weight.any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "hf"]


def test_evaluate_reports_and_writes_every_answer(command, run, questions, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    command(
        "evaluate_qa",
        "--load",
        run,
        "--data",
        questions,
        "--limit",
        2,
        "--max-new-tokens",
        8,
        "--output",
        output,
    )
    shown = capsys.readouterr().out
    for text in (
        "unsmoothed (",
        "\nsmoothed (",
        "tok:13a",
        "2 pairs; greedy, max_new_tokens 8",
        "| 1-gram |",
        "exact match: 0.0000",
        "question:  What is gout?",
        "2 questions in ",
    ):
        assert text in shown
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    loaded = load_model(run)
    assert [(r["question"], r["reference"]) for r in records] == PAIRS[:2]
    assert [r["answer"] for r in records] == [answer(loaded, q, 8) for q, _ in PAIRS[:2]]


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
        ("generate_text", ("--load", "a")),
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
