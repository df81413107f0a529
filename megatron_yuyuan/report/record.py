"""What a run left in its directory, read for a report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import load_toml
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.goodput import TimeSplit
from megatron_yuyuan.log import read_events, standing

SCORES, FACTS = "scores.json", "facts.json"
"""Where `evaluate_qa.py --json` and `judge_facts.py --json` are looked for in the run's directory."""

STEP = ("iteration", "lm_loss", "learning_rate", "consumed_samples", "tokens_per_second")
NEEDED = {
    "start": ("time", "begun", "iteration", "ranks", "layout"),
    "restart": ("iteration",),
    "step": STEP,
    "skip": (*STEP, "reason"),
    "evaluation": ("iteration", "validation_loss", "validation_perplexity"),
    "continuations": ("iteration", "texts"),
    "save": ("iteration",),
    "save_failed": ("iteration", "cause"),
    "stop": ("iteration", "cause"),
    "rollback": ("iteration", "left_out"),
    "straggler": ("rank", "host", "slower"),
}
"""Event -> the fields without which it cannot be shown."""
NUMBER, FINITE_OR_NULL = (int, float), (int, float, type(None))
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("iteration", "ranks", "rank", "consumed_samples"), int),
    **dict.fromkeys(("time", "begun", "seconds", "blocked_seconds", "slower"), NUMBER),
    **dict.fromkeys(("learning_rate", "tokens_per_second"), NUMBER),
    **dict.fromkeys(("lm_loss", "validation_loss", "validation_perplexity"), FINITE_OR_NULL),
    **dict.fromkeys(("layout", "reason", "cause", "host"), str),
    "mfu": FINITE_OR_NULL,
    **dict.fromkeys(("texts", "left_out"), list),
}
"""Field -> what it holds."""


@dataclass(frozen=True)
class Run:
    """A run as its directory tells it."""

    directory: Path
    events: list[dict]
    """metrics.jsonl, what a restart took back too."""
    config: Config
    """As it was resolved at the last start."""
    ending: dict | None
    """exit.json; None of a run that is under way, or was killed."""
    scores: dict | None
    facts: dict | None

    @property
    def name(self) -> str:
        return self.directory.absolute().name

    def standing(self, event: str) -> list[dict]:
        """The events of a name without those that a restart took back."""
        return standing(self.events, event)

    def all(self, event: str) -> list[dict]:
        """Every event of a name, in the order of the clock."""
        return [values for values in self.events if values["event"] == event]

    @property
    def time_split(self) -> TimeSplit:
        return TimeSplit(self.events)


def read_run(
    directory: str | Path, scores: str | Path | None = None, facts: str | Path | None = None
) -> Run:
    """Read a run directory. scores, facts: files in place of those in it.

    Raises DataError: no run there, no step in it, a file that is not what it should be; ConfigError: a
    config.toml of another version.
    """
    directory = Path(directory)
    metrics, config = directory / "metrics.jsonl", directory / "config.toml"
    for path in (metrics, config):
        if not path.exists():
            raise DataError(
                f"no {path}",
                "a report is made from what a run wrote beside its checkpoints",
                "the directory that was its --save",
            )
    events = _events(metrics)
    if not (standing(events, "step") or standing(events, "skip")):
        what = f"{metrics} holds no step that a restart did not take back"
        raise DataError(what, "there is nothing to show yet", "a run that has taken steps")
    return Run(
        directory,
        events,
        Config().replace(**load_toml(config)),
        _read(directory / "exit.json", ("class", "cause", "step"), must=False),
        _read(scores or directory / SCORES, ("systems",), must=bool(scores)),
        _read(facts or directory / FACTS, (), must=bool(facts)),
    )


def _events(metrics: Path) -> list[dict]:
    """The events of a run, each with what the page reads of it. Raises DataError."""
    try:
        events = list(read_events(metrics))
    except UnicodeDecodeError as error:
        raise unreadable(metrics, str(error)) from None
    for event in events:
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise unreadable(metrics, "a line is no event of a run")
        for name in NEEDED.get(event["event"], ()):
            if name not in event:
                raise unreadable(metrics, f"an event {event['event']} has no {name}")
        for name, value in event.items():
            if name in KINDS and not isinstance(value, KINDS[name]):
                raise unreadable(metrics, f"{name} of an event {event['event']} is {value!r}")
    return events


def _read(path: str | Path, keys: tuple[str, ...], must: bool) -> dict | None:
    """The JSON object of a file that has these keys; None without one, unless it must be there. Raises
    DataError."""
    path = Path(path)
    if not must and not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, str(error.strerror)) from None
    except ValueError as error:
        raise unreadable(path, str(error)) from None
    if not isinstance(values, Mapping) or any(key not in values for key in keys):
        raise unreadable(path, f"it is no JSON object with {', '.join(keys) or 'settings'}")
    return dict(values)


def unreadable(path: Path, reason: str) -> DataError:
    """The error for a file of a run that is not what it should be."""
    return DataError(
        f"cannot read {path}: {reason}",
        "the report would leave out what it says, silently",
        "make the file again, or remove it",
    )
