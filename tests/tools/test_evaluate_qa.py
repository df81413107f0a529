"""Answers scored by the command: asked of a model or read from a file, the figures are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import save_run

from megatron_yuyuan.checkpoint.identity import identity
from megatron_yuyuan.checkpoint.model import load_model
from megatron_yuyuan.evaluate import generate
from megatron_yuyuan.evaluate.answers import read_predictions
from megatron_yuyuan.evaluate.generate import answer
from megatron_yuyuan.evaluate.scores import report, score

NAMES = ("gout", "lupus", "flu")
PAIRS = [
    (f"What is {name}?", f"{name.capitalize()} is a disease — of the joints.") for name in NAMES
]
SAMPLE = ("--temperature", 0.9, "--top-p", 0.8, "--seed", 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    save_run(directory, [f"Question:{question} answer: {text}" for question, text in PAIRS * 3])
    return directory


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS))
    return path


@pytest.fixture(scope="module")
def evaluated(command, run, questions, tmp_path_factory) -> Path:
    """A folder with answers.jsonl and answers.html, greedy and sampled."""
    folder = tmp_path_factory.mktemp("evaluated")
    files = ("--output", folder / "answers.jsonl", "--html", folder / "answers.html")
    load = ("--load", run, "--data", questions, "--max-new-tokens", 8)
    command("evaluate_qa", *load, *SAMPLE, *files)
    return folder


def test_greedy_answers_and_a_sample_are_written(run, evaluated):
    found, loaded = read_predictions(evaluated / "answers.jsonl"), load_model(run)
    (greedy, greedy_answers), (sample, sampled_answers) = found.items()
    assert greedy == f"{run.name}, greedy, max_new_tokens 8"
    assert (
        sample.startswith(f"{run.name}, max_new_tokens 8, temperature 0.9") and "seed 5" in sample
    )
    sampling = {"temperature": 0.9, "top_p": 0.8, "seed": 5}
    for decoding, answers in (({}, greedy_answers), (sampling, sampled_answers)):
        assert [(each.question, each.reference) for each in answers] == PAIRS
        assert [each.answer for each in answers] == [
            answer(loaded, question, 8, **decoding) for question, _ in PAIRS
        ]
    assert greedy_answers != sampled_answers
    page = (evaluated / "answers.html").read_text(encoding="utf-8")
    assert greedy in page and sample in page and "What is lupus?" in page


def test_greedy_answers_and_one_sample_unless_it_is_told_otherwise(
    command, run, questions, tmp_path, capsys
):
    """The scores are of these weights, which --json says."""
    flags = ("--load", run, "--data", questions, "--max-new-tokens", 8, "--batch-size", 2)
    command("evaluate_qa", *flags, "--json", "--output", tmp_path / "both.jsonl")
    figures, both = json.loads(capsys.readouterr().out), read_predictions(tmp_path / "both.jsonl")
    greedy, sample = figures["systems"]
    assert list(both) == [greedy, sample] and greedy == f"{run.name}, greedy, max_new_tokens 8"
    assert sample.endswith("temperature 0.7, top_k 0, top_p 0.6, repetition_penalty 1, seed 0")
    assert figures["scored"] == identity(load_model(run).path)
    command("evaluate_qa", *flags, "--greedy-only", "--output", tmp_path / "one.jsonl")
    assert read_predictions(tmp_path / "one.jsonl") == {greedy: both[greedy]}
    assert both[greedy] != both[sample]


def test_the_batch_size_is_heard(command, run, questions, monkeypatch):
    asked, generate_batch = [], generate.generate_batch

    def watched(model, prompts, *args, **kwargs):
        asked.append(len(prompts))
        return generate_batch(model, prompts, *args, **kwargs)

    monkeypatch.setattr(generate, "generate_batch", watched)
    flags = ("--load", run, "--data", questions, "--max-new-tokens", 2, "--greedy-only")
    command("evaluate_qa", *flags, "--batch-size", 2)
    command("evaluate_qa", *flags)
    assert asked == [2, 1, 3]


def test_answers_are_scored_again_without_a_model(command, evaluated, tmp_path, capsys):
    answers = evaluated / "answers.jsonl"
    again = tmp_path / "again.jsonl"
    command("evaluate_qa", "--predictions", answers, "--output", again)
    shown = capsys.readouterr().out
    assert again.read_bytes() == answers.read_bytes()
    references = [reference for _, reference in PAIRS]
    scores = {
        system: score([each.answer for each in of], references)
        for system, of in read_predictions(answers).items()
    }
    assert shown.startswith(report(scores) + "\n")
    assert "\nquestion:  What is gout?\nreference: Gout is" in shown
    assert shown.count("\nanswer:    ") == 2 * 3 and "\n3 questions in " in shown
    assert shown.endswith(f"written {again}\n")


def test_json_has_every_figure_and_its_protocol(command, evaluated, capsys):
    command("evaluate_qa", "--predictions", evaluated / "answers.jsonl", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert len(figures["systems"]) == 2 and figures["scored"] is None  # nobody knows
    for scores in figures["systems"].values():
        assert {*figures["signatures"], "pairs"} == set(scores) and scores["pairs"] == 3
        assert len(scores["sentence_bleu"]["method7"]) == 4
        assert scores["sentence_bleu"]["method7"][0] < 4 / 3
    assert "smooth:exp" in figures["signatures"]["corpus_bleu"]["smoothed"]


def test_an_export_and_its_run_answer_alike(command, run, questions, tmp_path, capsys):
    command("convert_checkpoint", "--to", "hf", "--load", run, "--save", tmp_path / "hf")
    said = []
    for load in (run, f"hf:{tmp_path / 'hf'}", tmp_path / "hf"):
        output = tmp_path / "answers.jsonl"
        command("evaluate_qa", "--load", load, "--data", questions, "--limit", 2,
                "--greedy-only", "--max-new-tokens", 6, "--output", output)  # fmt: skip
        [(name, answers)] = read_predictions(output).items()
        said.append(answers)
        assert name.startswith(f"{Path(load).name}, greedy, max_new_tokens 6")
    assert said[0] == said[1] == said[2] and len(said[0]) == 2


def test_no_torch_is_imported_without_a_model(repository, evaluated):
    """Scoring what is there, and --help, of this command and of evaluate_perplexity."""
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None  # importing it fails\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    for tool, *flags in (
        ("evaluate_qa", "--predictions", evaluated / "answers.jsonl"),
        ("evaluate_qa", "--help"),
        ("evaluate_perplexity", "--help"),
    ):
        path = repository / "tools" / f"{tool}.py"
        ended = subprocess.run(
            [sys.executable, "-c", code, path, *flags],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(repository), "PATH": ""},
            timeout=60,
        )
        assert ended.returncode == 0 and len(ended.stdout) > 500, ended.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "one of the arguments --load --predictions is required"),
        (("--load", "a", "--predictions", "b"), "not allowed with argument"),
        (("--load", "a"), "--load needs --data"),
        (("--predictions", "b", "--data", "c"), "--data is for --load"),
        (("--predictions", "b", "--ckpt-step", 3), "--ckpt-step is for --load"),
        (("--predictions", "b", "--top-p", 0.5), "--top-p is for --load"),
        (("--predictions", "b", "--greedy-only"), "--greedy-only is for --load"),
        (("--load", "a", "--data", "b", "--limit", -1), "--limit is a number of pairs"),
        (
            ("--load", "a", "--data", "b", "--batch-size", 0),
            "--batch-size is a number of questions",
        ),
        (("--load", "a", "--data", "b", "--temperature", 0), "--greedy-only asks for the greedy"),
        (("--load", "a", "--data", "b", "--greedy-only", "--seed", 1), "--seed is of the sample"),
        (("--predictions", "missing.jsonl"), "cannot read missing.jsonl"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(refused, flags, message):
    assert message in refused("evaluate_qa", *flags)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_asked(
    refused, tmp_path, questions
):
    (tmp_path / "file").write_text("kept")
    flags = ("--load", tmp_path / "nothing", "--data", questions)
    for flag in ("--output", "--html"):
        assert "cannot write" in refused("evaluate_qa", *flags, flag, tmp_path / "file" / "answers")


def test_answers_that_cannot_be_read_leave_the_old_output(refused, tmp_path):
    (tmp_path / "wrong.jsonl").write_text('{"question": "q"}\n')
    output = tmp_path / "answers.jsonl"
    output.write_text("kept")
    message = refused("evaluate_qa", "--predictions", tmp_path / "wrong.jsonl", "--output", output)
    assert "line 1: question, reference, answer" in message and output.read_text() == "kept"
