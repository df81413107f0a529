"""Cutoffs for verdicts, fitted on one half of labelled questions and reported on the other.

The halves are by the SHA-256 of a question's id, so that they are the same for every model. The
report stands beside what always answering the commonest label scores; a judge that is worse says so.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.facts import NO, UNSURE, YES, Cutoffs, Judgement

VERDICTS = (YES, NO, UNSURE)
BOOTSTRAPS = 2000
BINS = 10


@dataclass(frozen=True)
class Report:
    """What the verdicts on labelled questions are worth. Shares lie in 0 to 1."""

    questions: int
    rewritten: float
    """Share of the questions of which statements were made; the rest is answered unsure."""
    accuracy: float
    interval: tuple[float, float]
    """95% of `BOOTSTRAPS` resamples have their accuracy in it."""
    macro_f1: float
    """Mean F1 over the labels that occur."""
    majority: float
    """Accuracy of always answering the label that is commonest in the half that was fitted."""
    majority_macro_f1: float
    unsure: float
    """Share of questions answered unsure."""
    calibration_error: float
    """Expected calibration error of P(yes) over yes/no questions: 0 is perfect. Source: Naeini et
    al. 2015."""
    cutoffs: Cutoffs

    def lines(self) -> str:
        """The report as a person reads it."""
        low, high = self.interval
        difference = self.accuracy - self.majority
        against = (
            "better than" if difference > 0 else "equal to" if not difference else "WORSE than"
        )
        return "\n".join(
            [
                f"questions          {self.questions}, {self.rewritten:.1%} rewritten",
                f"accuracy           {self.accuracy:.4f} (95% bootstrap {low:.4f} to {high:.4f})",
                f"majority baseline  {self.majority:.4f}: the judge is {against} it",
                f"macro-F1           {self.macro_f1:.4f} (majority {self.majority_macro_f1:.4f})",
                f"unsure             {self.unsure:.1%}",
                f"calibration error  {self.calibration_error:.4f}",
                f"cutoffs            no up to {self.cutoffs.no:+.4f}, yes above "
                f"{self.cutoffs.yes:+.4f} nats a token",
            ]
        )

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self)


def halves(judgements: Sequence[Judgement]) -> tuple[list[Judgement], list[Judgement]]:
    """(to fit on, to report on), by the first byte of the SHA-256 of each question's id."""
    parts: tuple[list, list] = ([], [])
    for one in judgements:
        parts[hashlib.sha256(one.question.identifier.encode()).digest()[0] % 2].append(one)
    return parts


def calibrated_report(judgements: Sequence[Judgement], seed: int = 0) -> Report:
    """Fit on one half, report on the other. Raises DataError: a question without label, or a half
    without a question that was rewritten."""
    fitting, reporting = halves(judgements)
    usable = [any(one.margin is not None for one in half) for half in (fitting, reporting)]
    if not all(usable) or not all(one.question.label for one in judgements):
        raise DataError(
            f"{len(judgements)} questions cannot be divided into two labelled halves",
            "cutoffs are fitted on one half and reported on the other",
            "a file of more questions, each with its label",
        )
    cutoffs = fit_cutoffs(fitting)
    labels = [one.question.label for one in reporting]
    verdicts = [one.verdict(cutoffs) for one in reporting]
    commonest = _commonest([one.question.label for one in fitting])
    right = np.array([a == b for a, b in zip(labels, verdicts, strict=True)])
    draws = np.random.default_rng(seed).integers(0, len(right), (BOOTSTRAPS, len(right)))
    low, high = np.quantile(right[draws].mean(1), (0.025, 0.975))
    return Report(
        len(reporting),
        sum(not one.refused for one in reporting) / len(reporting),
        float(right.mean()),
        (float(low), float(high)),
        macro_f1(labels, verdicts),
        labels.count(commonest) / len(labels),
        macro_f1(labels, [commonest] * len(labels)),
        verdicts.count(UNSURE) / len(verdicts),
        _expected_calibration_error(fitting, reporting),
        cutoffs,
    )


def fit_cutoffs(judgements: Sequence[Judgement]) -> Cutoffs:
    """The two cutoffs of most right verdicts; of equal ones those that leave fewest unsure.

    A right verdict weighs more than all that are left unsure; what two cutoffs win is a sum of what each
    wins, so one pass over the margins finds both.
    """
    known = sorted((one.margin, one.question.label) for one in judgements if not one.refused)
    margins, labels = np.array([m for m, _ in known]), np.array([label for _, label in known])
    counts = {v: np.concatenate([[0], np.cumsum(labels == v)]) for v in VERDICTS}
    places, weight = np.arange(len(known) + 1), len(known) + 2
    below = weight * (counts[NO] - counts[UNSURE]) + places  # the first i are no
    above = weight * (counts[UNSURE] - counts[YES]) - places  # from j on they are yes, i <= j
    within = np.concatenate([[False], margins[1:] == margins[:-1], [False]])
    below[within] = above[within] = -weight * weight  # no cutoff parts equal margins
    best_above = np.maximum.accumulate(above[::-1])[::-1]
    low = int((below + best_above).argmax())
    high = low + int(above[low:].argmax())
    return Cutoffs(_between(margins, low), _between(margins, high))


def macro_f1(labels: Sequence[str], verdicts: Sequence[str]) -> float:
    """Mean over the labels that occur of 2 tp / (2 tp + fp + fn)."""
    scores = []
    for label in sorted(set(labels)):
        pairs = [(a == label, b == label) for a, b in zip(labels, verdicts, strict=True)]
        hit = sum(a and b for a, b in pairs)
        scores.append(2 * hit / (sum(a for a, _ in pairs) + sum(b for _, b in pairs)))
    return sum(scores) / len(scores)


def _between(margins: np.ndarray, place: int) -> float:
    """The border before margins[place]: half-way to its neighbour, just outside at the ends."""
    if place == 0:
        return float(margins[0]) - 1e-6
    if place == len(margins):
        return float(margins[-1]) + 1e-6
    return float(margins[place - 1 : place + 1].mean())


def _commonest(labels: list[str]) -> str:
    return max(VERDICTS, key=labels.count)


def _expected_calibration_error(
    fitting: Sequence[Judgement], reporting: Sequence[Judgement]
) -> float:
    """Mean |share of yes - mean P(yes)| over bins of P(yes) of equal width, by their questions."""
    slope, offset = _logistic(*_yes_or_no(fitting))
    margins, truth = _yes_or_no(reporting)
    if not len(margins):
        return 0.0
    probability = 1 / (1 + np.exp(-(slope * margins + offset)))
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    gaps = [abs((truth - probability)[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(margins))


def _yes_or_no(judgements: Sequence[Judgement]) -> tuple[np.ndarray, np.ndarray]:
    """(margins, 1 for yes and 0 for no) of the questions that have such a label."""
    known = [one for one in judgements if not one.refused and one.question.label != UNSURE]
    margins = np.array([one.margin for one in known], dtype=float)
    return margins, np.array([one.question.label == YES for one in known], dtype=float)


def _logistic(margins: np.ndarray, truth: np.ndarray, steps: int = 30) -> tuple[float, float]:
    """(slope, offset) of P(yes) = 1 / (1 + exp(-(slope margin + offset))), by Newton's method.

    Over margins in units of their root mean square, with a ridge of 0.1 on both weights: finite also
    where the margins separate the labels, or where there is one label alone. Source: Platt 1999.
    """
    if not len(margins):
        return 0.0, 0.0
    unit = float(np.sqrt(np.mean(margins**2))) or 1.0
    inputs, weights = np.stack([margins / unit, np.ones_like(margins)], 1), np.zeros(2)
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-(inputs @ weights)))
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
        gradient = inputs.T @ (truth - probability) - 0.1 * weights
        weights = weights + np.linalg.solve(curvature + 0.1 * np.eye(2), gradient)
    return float(weights[0]) / unit, float(weights[1])
