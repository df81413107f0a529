"""The command: one file, whole or absent, beside the run or where it is asked for."""

import subprocess
import sys

from report.runs import synthetic_run


def test_a_run_becomes_one_file(command, tmp_path, capsys):
    run = synthetic_run(tmp_path / "run")
    for _ in range(2):  # the second replaces the first
        command("report", run)
        assert str(run / "report.html") in capsys.readouterr().out
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    other = tmp_path / "new" / "other.html"
    scores = run / "scores.json"
    scores.rename(tmp_path / "moved.json")
    command(
        "report",
        run,
        "--output",
        other,
        "--title",
        "A <title>",
        "--scores",
        tmp_path / "moved.json",
    )
    assert "<h1>A &lt;title&gt;</h1>" in other.read_text()
    assert "corpus BLEU" in other.read_text()
    assert [path.name for path in other.parent.iterdir()] == ["other.html"]


def test_help_imports_no_torch(repository):
    program = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path(sys.orig_argv[-1], run_name='__main__')\n"
        "except SystemExit: print('imported:', sorted({'torch', 'sacrebleu'} & {*sys.modules}))"
    )
    path = str(repository / "tools" / "report.py")
    shown = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    ).stdout
    assert "--facts" in shown and "imported: []" in shown


def test_what_is_no_run_is_refused_and_leaves_nothing(refused, tmp_path):
    assert "no " in refused("report", tmp_path / "nowhere")
    run = synthetic_run(tmp_path / "run")
    (run / "facts.json").write_text("[1]")
    assert "facts.json" in refused("report", run)
    assert not (run / "report.html").exists()
