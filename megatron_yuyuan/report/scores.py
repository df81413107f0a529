"""What tools measured of a finished model: BLEU and its kin, judged facts."""

from pathlib import Path

from megatron_yuyuan.checkpoint.identity import identity, named
from megatron_yuyuan.evaluate.scores import PROVENANCE, Scores, ScoreTable, score_tables
from megatron_yuyuan.report.markup import Html, element, joined, table
from megatron_yuyuan.report.record import Run, unreadable
from megatron_yuyuan.watch.saved import MANIFEST

WARNING = (
    "These scores count words shared with a reference answer, not truth: an answer may score well and "
    "be wrong."
)
VERDICTS_SHOWN = 12


def answer_scores(run: Run) -> Html | None:
    """The tables of `evaluate_qa.py --json`. Raises DataError where they are none."""
    if run.scores is None:
        return None
    try:
        systems = {name: Scores(**values) for name, values in run.scores["systems"].items()}
        tables = _tables(systems, run.scores["signatures"])
        return joined(element("p", _whose(run.scores.get("scored"), run.directory)), tables)
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError) as error:
        what = f"it is not what evaluate_qa.py --json prints ({type(error).__name__})"
        raise unreadable(Path("the scores"), what) from None


def _whose(scored: dict | None, directory: Path) -> str:
    """Which weights were scored, by name and digest, and whether the run still has them. An older file does not
    say."""
    if scored is None:
        return "Of which weights these scores are, their file does not say."
    path = directory / scored["name"]
    if (path / MANIFEST).exists() and identity(path)["sha256"] == scored["sha256"]:
        return f"Of the weights of {named(scored)}."
    return f"Of other weights than lie here: {named(scored)} is no checkpoint of this directory."


def _tables(systems: dict[str, Scores], protocol: dict) -> Html:
    """Unsmoothed BLEU by both protocols and the other scores; smoothed BLEU to unfold."""
    tables = score_tables(systems, protocol)
    shown, folded = (
        [_score_table(made) for made in tables if made.is_smoothed == smoothed]
        for smoothed in (False, True)
    )
    more = element("details", element("summary", "BLEU, smoothed"), *folded)
    said = element("p", f"{next(iter(systems.values())).pairs} questions. {WARNING}")
    return joined(said, *shown, more, element("p", PROVENANCE, class_="note"))


def _score_table(made: ScoreTable) -> Html:
    body = [(system, *(f"{value:.4f}" for value in values)) for system, values in made.rows.items()]
    protocol = element("p", made.signature, class_="note")
    head = ("system", *made.columns)
    return joined(element("h3", made.title), protocol, table(head, body, class_="numbers"))


def judged_facts(run: Run) -> Html | None:
    """The report and some verdicts of `judge_facts.py --json`, for each of its settings. Raises DataError
    where they are none."""
    if run.facts is None:
        return None
    try:
        return joined(*(_of_setting(name, found) for name, found in run.facts.items()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"it is not what judge_facts.py --json prints ({type(error).__name__})"
        raise unreadable(Path("the judged facts"), what) from None


def _of_setting(name: str, found: dict) -> Html:
    report, verdicts = found["report"], found["verdicts"]
    parts: list[Html | None] = [element("h3", name)]
    if report:
        parts.append(table(("measure", "value"), _measures(report)))
    rows = [
        (
            verdict["question"],
            verdict["verdict"],
            verdict.get("label") or "",
            "refused" if verdict["margin"] is None else f"{verdict['margin']:+.3f}",
        )
        for verdict in verdicts[:VERDICTS_SHOWN]
    ]
    head = ("question", "judged", "right", "margin (nats a token)")
    of = f"the first {len(rows)} of {len(verdicts)} verdicts"
    parts.append(element("details", element("summary", of), table(head, rows)))
    return joined(*parts)


def _measures(report: dict) -> list[tuple[str, str]]:
    """What evaluate/calibration.Report says, as a person reads it."""
    accuracy, majority = report["accuracy"], report["majority"]
    low, high = report["interval"]
    against = (
        "better than"
        if accuracy > majority
        else "equal to"
        if accuracy == majority
        else "WORSE than"
    )
    return [
        (
            "questions",
            f"{report['questions']:,}, of which {report['rewritten']:.1%} could be rewritten",
        ),
        ("accuracy", f"{accuracy:.1%} (95% of resamples {low:.1%} to {high:.1%})"),
        ("always the commonest answer", f"{majority:.1%}: the model is {against} that"),
        (
            "macro-F1",
            f"{report['macro_f1']:.3f} (commonest answer {report['majority_macro_f1']:.3f})",
        ),
        ("unsure", f"{report['unsure']:.1%}"),
        ("calibration error", f"{report['calibration_error']:.3f}"),
    ]
