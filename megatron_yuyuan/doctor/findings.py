"""What a check found: a line of the doctor's page."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from megatron_yuyuan.errors import ConfigErrors, YuyuanError

OK, WARNING, ERROR = "ok", "warning", "error"
LEVELS = (OK, WARNING, ERROR)
"""From good to bad. An error: the job would not start, or not as it was asked to."""


@dataclass(frozen=True)
class Finding:
    """One line, and under it what to do."""

    name: str
    """Of what was looked at."""
    level: str
    said: str
    """What was found."""
    why: str = ""
    """Why it matters; of a warning or an error."""
    remedy: str = ""
    """What to try; of a warning or an error."""

    def lines(self) -> list[str]:
        """As the page shows it."""
        shown = [f"{self.level:<9}{self.name:<16}{self.said}"]
        return shown + [f"{'':9}{'':16}{word}: {text}" for word, text in self._advice if text]

    @property
    def _advice(self) -> tuple[tuple[str, str], ...]:
        return ("why", self.why), ("try", self.remedy)


def of_error(name: str, error: YuyuanError) -> list[Finding]:
    """An error of the package's as findings, one for each problem that it holds."""
    problems = error.problems if isinstance(error, ConfigErrors) else [error]
    return [Finding(name, ERROR, p.what, p.why, p.remedy) for p in problems]


def attempt(name: str, check: Callable[[], Finding]) -> list[Finding]:
    """What a check finds, the YuyuanError with which it ends included."""
    try:
        return [check()]
    except YuyuanError as error:
        return of_error(name, error)


def merged(by_rank: list[list[Finding]]) -> list[Finding]:
    """Findings of all ranks as those of one: what not every rank has found names its ranks, and is a
    warning at least."""
    holders: dict[Finding, list[int]] = {}
    for rank, findings in enumerate(by_rank):
        for finding in findings:
            holders.setdefault(finding, []).append(rank)
    together = []
    for finding, ranks in holders.items():
        if len(ranks) < len(by_rank):
            finding = replace(finding, said=f"{finding.said} ({name_ranks(ranks)})")
            if finding.level == OK:
                why = "the ranks of a job compute the same with the same"
                remedy = "the same software and files on every host"
                finding = replace(finding, level=WARNING, why=why, remedy=remedy)
        together.append(finding)
    return together


def name_ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 0-3, 6`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(shown)}"
