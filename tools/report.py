"""One page about a run: what it learned to write, its curves, where the time went, what it was made from.

    python tools/report.py runs/pubmed                          # runs/pubmed/report.html
    python tools/report.py runs/qa --output qa.html --scores scores.json --facts facts.json

The page is one file that any browser opens, offline, on a phone too; it loads nothing and runs no
script. It may be made while the run is under way. Scores are those of `tools/evaluate_qa.py --json` and
`tools/judge_facts.py --json`; scores.json and facts.json in the run's directory are taken without a flag.
tools/plot_metrics.py draws the losses as PNG.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.report.record import read_run


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, write the page. Raises ConfigError and DataError."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="the directory that was a run's --save")
    parser.add_argument("--output", metavar="FILE.html", help="default: RUN_DIR/report.html")
    parser.add_argument("--title", default="", help="default: the directory's name")
    parser.add_argument("--scores", metavar="FILE.json", help="what evaluate_qa.py --json printed")
    parser.add_argument("--facts", metavar="FILE.json", help="what judge_facts.py --json printed")
    options = parser.parse_args(args)
    from megatron_yuyuan.report.page import page  # imports torch

    output = Path(options.output or Path(options.run) / "report.html")
    text = page(read_run(options.run, options.scores, options.facts), options.title)
    with AtomicFiles() as files:
        files.open(output).write(text.encode())
    print(f"written {output.absolute()}")


if __name__ == "__main__":
    run_command(main)
