"""tools/judge_facts.py: what it prints and writes, and what it refuses."""

import json
import subprocess
import sys

import pytest
from tiny_run import save_run

NAMES = ("gout", "lupus", "flu", "asthma", "croup", "mumps", "rabies", "scurvy")
QUESTIONS = [f"Is {name} {state}?" for name in NAMES for state in ("painful", "rare", "a disease")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny random model of 64 positions, as a run directory."""
    directory = tmp_path_factory.mktemp("run")
    save_run(directory, QUESTIONS * 3, vocab_size=300, init_method_std=0.3)
    return directory


@pytest.fixture(scope="module")
def pubmedqa(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pubmedqa.json"
    records = {
        str(i): {
            "QUESTION": question,
            "CONTEXTS": ["It was seen.", "It was painful. " * 30],
            "final_decision": ("yes", "no", "yes", "maybe")[i % 4],
        }
        for i, question in enumerate([*QUESTIONS, "Gout and flu?"])
    }
    path.write_text(json.dumps(records))
    return path


def test_one_question_is_judged_and_drawn(command, run, tmp_path, capsys):
    page = tmp_path / "new" / "gout.html"
    command("judge_facts", "--load", run, "--question", "What causes gout?", "--answer", "salt",
            "--alternative", "rest", "--context", "Gout.", "--html", page)  # fmt: skip
    shown = capsys.readouterr().out
    for text in (
        "What causes gout?",
        "Salt causes gout.",
        "Salt does not cause gout.",
        "Rest causes",
    ):
        assert text in shown
    assert shown.split()[0] in ("yes", "no") and str(page) in shown
    assert "the rewriter's own test: of 200 judged by hand 5 were wrong (2.5%)" in shown
    assert page.read_text().count("<p><span") == 3


def test_cutoffs_decide(command, run, capsys):
    said = []
    for cutoffs in ((-99, -99), (99, 99), (-99, 99)):
        command("judge_facts", "--load", run, "--question", QUESTIONS[0],
                "--no-below", cutoffs[0], "--yes-above", cutoffs[1])  # fmt: skip
        said.append(capsys.readouterr().out.split()[0])
    assert said == ["yes", "no", "unsure"]


def test_pubmedqa_is_reported_in_both_settings(command, run, pubmedqa, capsys):
    command("judge_facts", "--load", run, "--pubmedqa", pubmedqa)
    shown = capsys.readouterr().out
    for text in ("closed-book", "reasoning-required", "majority baseline", "macro-F1",
                 "24 of 25 questions rewritten", "24 contexts cut"):  # fmt: skip
        assert text in shown
    command("judge_facts", "--load", run, "--pubmedqa", pubmedqa, "--json")
    both = json.loads(capsys.readouterr().out)
    assert list(both) == ["closed-book", "reasoning-required"]
    margins = [[one["margin"] for one in part["verdicts"]] for part in both.values()]
    assert margins[0][-1] is None and margins[0][0] != margins[1][0]
    low, high = both["closed-book"]["report"]["interval"]
    assert low <= both["closed-book"]["report"]["accuracy"] <= high


def test_a_run_and_its_export_judge_alike(command, run, pubmedqa, tmp_path, capsys):
    command("convert_checkpoint", "--to", "hf", "--load", run, "--save", tmp_path / "hf")
    found = []
    for load in (run, tmp_path / "hf"):
        capsys.readouterr()
        command("judge_facts", "--load", load, "--pubmedqa", pubmedqa, "--limit", 6,
                "--setting", "closed-book", "--json")  # fmt: skip
        verdicts = json.loads(capsys.readouterr().out)["closed-book"]["verdicts"]
        found.append([one["margin"] for one in verdicts])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and len(set(found[0])) == 6


def test_a_file_without_labels_has_verdicts_and_no_report(command, run, tmp_path, capsys):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in QUESTIONS[:3]))
    command("judge_facts", "--load", run, "--questions", path)
    shown = capsys.readouterr().out
    assert "majority" not in shown and "3 of 3 questions rewritten" in shown
    assert all(text in shown for text in QUESTIONS[:3])


def test_what_cannot_be_judged_is_refused(refused, run, pubmedqa, tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n")
    (tmp_path / "few.jsonl").write_text(
        '{"question": "Is gout bad?", "label": "yes", "id": "a"}\n' * 2
    )
    for flags, message in (
        (("--question", "Gout and flu?"), "cannot turn 'Gout and flu?'"),
        (("--question", f"Is gout {'very ' * 90}bad?"), "the model scores 1 to 63 at once"),
        (("--questions", tmp_path / "missing.jsonl"), "cannot read"),
        (("--questions", tmp_path / "blank.jsonl"), "no question in"),
        (("--questions", tmp_path / "few.jsonl"), "cannot be divided"),
        (("--pubmedqa", tmp_path / "few.jsonl"), "is no PubMedQA file"),
    ):
        assert message in refused("judge_facts", "--load", run, *flags)
    assert "no checkpoint in" in refused(
        "judge_facts", "--load", tmp_path, "--question", QUESTIONS[0]
    )


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--no-below", -1), "--no-below"),
        (("--yes-above", 0), "--yes-above"),
        (("--no-below", 0, "--yes-above", 1), "--no-below and --yes-above"),
    ],
)
def test_cutoffs_are_refused_where_labels_give_them(
    command, refused, run, pubmedqa, tmp_path, capsys, flags, named
):
    labelled = [{"question": text, "label": "yes", "id": text} for text in QUESTIONS]
    for name, records in (("all", labelled), ("some", [*labelled, {"question": QUESTIONS[0]}])):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    for source, file, what in (
        ("--pubmedqa", pubmedqa, f"{named} with --pubmedqa"),
        ("--questions", tmp_path / "all.jsonl", f"{named} with labelled --questions"),
    ):
        assert what in refused("judge_facts", "--load", run, source, file, *flags)
    command("judge_facts", "--load", run, "--questions", tmp_path / "some.jsonl", *flags)
    assert "25 of 25 questions rewritten" in capsys.readouterr().out


def test_a_statement_too_long_is_refused_in_a_file_and_the_rest_is_judged(
    command, run, tmp_path, capsys
):
    questions = [QUESTIONS[0], f"Is gout {'very ' * 90}bad?", QUESTIONS[1]]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    command("judge_facts", "--load", run, "--questions", path)
    shown = capsys.readouterr().out
    assert "2 of 3 questions rewritten" in shown and shown.count("  refused  ") == 1
    assert "the model scores 1 to 63 at once" in shown
    command("judge_facts", "--load", run, "--questions", path, "--json")
    verdicts = json.loads(capsys.readouterr().out)["questions"]["verdicts"]
    assert [one["margin"] is None for one in verdicts] == [False, True, False]
    assert "the model scores 1 to 63 at once" in verdicts[1]["refused"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "required"),
        (("--question", "x", "--pubmedqa", "y"), "not allowed"),
        (("--questions", "x", "--answer", "y"), "belong to --question"),
        (("--question", "x", "--no-below", "1"), "--no-below is at most --yes-above"),
        (("--questions", "x", "--limit", "-1"), "--limit is a number"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(refused, flags, message):
    assert message in refused("judge_facts", "--load", "a", *flags)


def test_help_imports_no_torch(repository, tmp_path):
    tool = repository / "tools" / "judge_facts.py"
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    shown = subprocess.run(
        [sys.executable, tool, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": ""},
    )
    assert shown.returncode == 0 and "--pubmedqa" in shown.stdout, shown.stderr
