r"""Judge facts: is the affirmative or the negative statement of a question likelier to a model?

python tools/judge_facts.py --load RUN --question "Does aspirin prevent stroke?"
python tools/judge_facts.py --load RUN --question "What causes gout?" --answer "uric acid" \
    --alternative cholesterol --html gout.html
python tools/judge_facts.py --load RUN --pubmedqa ori_pqal.json

--questions FILE.jsonl holds {"question": ..., "answer": ..., "alternatives": [...], "context": ...,
"label": "yes" | "no" | "maybe", "id": ...} a line, the question alone is enough. With labels on all
of them, and for --pubmedqa, the cutoffs are fitted on one half and the verdicts reported on the
other. Not medical advice.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.evaluate.arguments import add_model_arguments

SETTINGS = ("closed-book", "reasoning-required")
SHOWN = 20
"""Verdicts that are printed of a file."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, judge, report. Raises ConfigError, DataError, UnsafeError."""
    options = _parse(args)
    from megatron_yuyuan.checkpoint.model import load_model  # torch: after --help
    from megatron_yuyuan.evaluate.likelihood import LikelihoodScorer

    with AtomicFiles() as files:  # opened first: nobody waits for a page that cannot be written
        html = files.open(options.html) if options.html else None
        settings = _settings(options)
        cutoffs = _cutoffs(options, settings)
        loaded = load_model(options.load, options.ckpt_step or None, options.device)
        results = {
            name: _judged(LikelihoodScorer(loaded), questions, cutoffs)
            for name, questions in settings.items()
        }
        if html:
            html.write(_page(options, results).encode())
    if options.json:
        print(json.dumps(_as_json(results), indent=2, ensure_ascii=False))
    else:
        for name, result in results.items():
            _print(name if len(results) > 1 else "", *result)
        if options.html:
            print(f"written {Path(options.html).absolute()}")


def _settings(options: argparse.Namespace) -> dict[str, list]:
    """Setting -> questions: with and without their contexts for PubMedQA, else as they stand."""
    from megatron_yuyuan.evaluate.facts import Question, read_pubmedqa, read_questions

    if options.question is not None:
        others = tuple(options.alternative)
        question = Question(options.question, options.answer, others, options.context)
        return {"": [question]}
    path = options.questions or options.pubmedqa
    questions = list((read_questions if options.questions else read_pubmedqa)(path))
    questions = questions[: options.limit or None]
    if not questions:
        raise DataError(
            f"no question in {path}", "there is nothing to judge", "a file of questions"
        )
    if options.questions:
        return {"": questions}
    closed = [dataclasses.replace(question, context="") for question in questions]
    both = dict(zip(SETTINGS, (closed, questions), strict=True))
    return both if options.setting == "both" else {options.setting: both[options.setting]}


def _cutoffs(options: argparse.Namespace, settings: dict[str, list]):
    """Those of the flags, else 0. Raises ConfigError: a flag was given where labels give them."""
    from megatron_yuyuan.evaluate.facts import Cutoffs

    named = {"--no-below": options.no_below, "--yes-above": options.yes_above}
    given = " and ".join(flag for flag, cutoff in named.items() if cutoff is not None)
    if given and any(map(_fitted, settings.values())):
        raise ConfigError(
            f"{given} with {'--pubmedqa' if options.pubmedqa else 'labelled --questions'}",
            "where every question has its label the cutoffs are fitted on one half of them",
            f"the command without {given}, or questions without labels",
        )
    return Cutoffs(*(cutoff or 0.0 for cutoff in named.values()))


def _judged(scorer, questions: list, cutoffs) -> tuple:
    """(judgements, cutoffs they are decided by, report or None, seconds)."""
    from megatron_yuyuan.evaluate.calibration import calibrated_report
    from megatron_yuyuan.evaluate.facts import judge, statements_of

    begun = time.perf_counter()
    judgements, report = judge(scorer, questions), None
    if len(judgements) == 1 and judgements[0].refused:
        statements_of(questions[0], scorer)  # raises the refusal whole, with its remedy
    if _fitted(questions):
        report = calibrated_report(judgements)
        cutoffs = report.cutoffs
    return judgements, cutoffs, report, time.perf_counter() - begun


def _fitted(questions: list) -> bool:
    """Whether their labels give the cutoffs."""
    return len(questions) > 1 and all(question.label for question in questions)


def _print(setting: str, judgements: list, cutoffs, report, seconds: float) -> None:
    """Verdicts, at most `SHOWN`, and the report where the labels are known."""
    from megatron_yuyuan.evaluate.statements import HAND_JUDGED

    if setting:
        print(f"\n{setting}\n")
    for one in judgements[: SHOWN if not report else 0]:
        margin = "refused" if one.margin is None else f"{one.margin:+.4f}"
        print(f"{one.verdict(cutoffs):7}{margin:>9}  {one.question.text}")
        scored = zip(one.statements, one.surprises, strict=True)
        lines = [f"{surprise.mean:16.4f}  {text}" for text, surprise in scored]
        print("\n".join(lines) or f"{'':18}{one.refused}")
    if report:
        print(report.lines())
    rewritten = sum(not one.refused for one in judgements)
    cut = sum(any(s.context_cut for s in one.surprises) for one in judgements)
    wrong, of = HAND_JUDGED
    print(
        f"\n{rewritten} of {len(judgements)} questions rewritten; the rewriter's own test: of {of} judged "
        f"by hand {wrong} were wrong ({wrong / of:.1%})"
        + (f"; {cut} contexts cut to the model's positions" if cut else "")
        + f"; {seconds:.1f} s"
    )


def _as_json(results: dict) -> dict:
    """Setting -> verdicts and report."""
    return {
        setting or "questions": {
            "report": report.to_dict() if report else None,
            "verdicts": [
                {
                    "id": one.question.identifier,
                    "question": one.question.text,
                    "verdict": one.verdict(cutoffs),
                    "label": one.question.label,
                    "margin": one.margin,
                    "refused": one.refused,
                    "statements": [
                        {"text": text, "mean_log_likelihood": surprise.mean}
                        for text, surprise in zip(one.statements, one.surprises, strict=True)
                    ],
                }
                for one in judgements
            ],
        }
        for setting, (judgements, cutoffs, report, _) in results.items()
    }


def _page(options: argparse.Namespace, results: dict) -> str:
    from megatron_yuyuan.evaluate.heat_map import heat_map

    last = next(reversed(results.values()))  # with context, where both are there
    judgements, cutoffs, _, _ = last
    return heat_map(judgements, cutoffs, Path(options.load).absolute().name)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--question", metavar="TEXT", help="one question")
    what.add_argument("--questions", default="", metavar="FILE.jsonl", help="a file of questions")
    what.add_argument("--pubmedqa", default="", metavar="FILE.json", help="PubMedQA's own form")
    parser.add_argument("--answer", default="", metavar="TEXT", help="candidate, of a wh-question")
    parser.add_argument(
        "--alternative",
        action="append",
        default=[],
        metavar="TEXT",
        help="another answer, or statement; may be repeated",
    )
    parser.add_argument("--context", default="", metavar="TEXT", help="a passage to judge by")
    parser.add_argument(
        "--setting",
        default="both",
        choices=(*SETTINGS, "both"),
        help="PubMedQA without its abstracts, with them, or both (default)",
    )
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="questions of a file; 0 (default): all"
    )
    for flag, what_for in (("--no-below", "no up to"), ("--yes-above", "yes above")):
        parser.add_argument(
            flag, type=float, metavar="X", help=f"{what_for} this margin, 0 unless given"
        )
    parser.add_argument("--json", action="store_true", help="print figures and verdicts as JSON")
    parser.add_argument("--html", default="", metavar="FILE.html", help="token heat map")
    options = parser.parse_args(args)
    if options.limit < 0:
        parser.error("--limit is a number of questions, 0 for all")
    if not (options.no_below or 0) <= (options.yes_above or 0):  # NaN is neither
        parser.error("--no-below is at most --yes-above; between them the verdict is unsure")
    if options.question is not None and options.limit:
        parser.error("--limit is of a file of questions")
    if not options.pubmedqa and options.setting != "both":
        parser.error("--setting is of --pubmedqa")
    if options.question is None and (options.answer or options.alternative or options.context):
        parser.error("--answer, --alternative and --context belong to --question; a file has keys")
    return options


if __name__ == "__main__":
    run_command(main)
