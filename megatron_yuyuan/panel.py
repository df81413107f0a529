"""The console of a run on a terminal: a panel that stays at the bottom, lines scrolling above it."""

import sys
import time
from collections.abc import Callable

from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table

from megatron_yuyuan.log import Console, duration, readers_may_leave

SECONDS_BETWEEN_DRAWINGS = 0.2
"""Steps may be much faster than a person reads, or a slow terminal draws."""
DRAWN_AT_ONCE = ("evaluation", "save", "goodput")


def on_terminal() -> bool:
    """Whether stdout is a terminal that can redraw lines. TERM=dumb and TTY_INTERACTIVE=0 say that it
    is none; NO_COLOR leaves the panel without colours."""
    return sys.stdout.isatty() and Terminal().is_interactive


class Panel(Console):
    """Progress, loss, speed and memory of the last step, the last evaluation and the last checkpoint.

    Drawn by events alone: no thread of it disturbs a step. While it is there, whatever is printed to
    stdout and stderr scrolls above it.
    """

    def __init__(self, line: Callable[[str], None], last: int):
        super().__init__(line)
        self._last, self._drawn = last, 0.0
        self._step: dict | None = None
        self._validation = self._checkpoint = self._goodput = "none yet"
        self._live = Live(console=Terminal(), auto_refresh=False, get_renderable=self._render)

    def start(self) -> None:
        with readers_may_leave():
            self._live.start(refresh=True)

    def event(self, event: str, values: dict) -> None:
        super().event(event, values)
        if event in ("step", "skip"):
            self._step = values
        elif event == "evaluation":
            self._validation = f"{values['validation_loss']:.4f} at {values['iteration']}"
        elif event == "save":
            self._checkpoint = escape(values["path"])
        elif event == "goodput":
            self._goodput = f"{values['goodput']:.1%} of {duration(values['wall_seconds'])}"
        now = time.monotonic()
        if now - self._drawn >= SECONDS_BETWEEN_DRAWINGS or event in DRAWN_AT_ONCE:
            self._drawn = now
            with readers_may_leave():
                self._live.refresh()

    def close(self) -> None:
        """Leave the panel as it is now, and the cursor below it."""
        with readers_may_leave():
            self._live.stop()

    def _render(self) -> Frame:
        step = self._step or {}
        iteration, eta = step.get("iteration", 0), step.get("eta_seconds")
        progress = Table.grid(padding=(0, 1), expand=True)
        progress.add_column(no_wrap=True)
        progress.add_column(ratio=1)
        progress.add_row(
            f"iteration {iteration:,} of {self._last:,}",
            ProgressBar(total=max(1, self._last), completed=iteration),
            "" if eta is None else f"ETA {duration(eta)}",
        )
        figures = Table.grid(padding=(0, 2))
        for row in [*(_of_step(step) if step else []), *self._of_run()]:
            figures.add_row(*row)
        return Frame(Group(progress, figures), title="megatron_yuyuan")

    def _of_run(self) -> list[tuple[str, ...]]:
        return [
            ("validation loss", self._validation, "checkpoint", self._checkpoint),
            ("goodput", self._goodput),
        ]


def _of_step(step: dict) -> list[tuple[str, ...]]:
    mfu = f", MFU {step['mfu']:.1%}" if "mfu" in step else ""
    speed = f"{step['tflops_per_device']:.3g} TFLOP/s a device{mfu}"
    memory = f"{step['memory_bytes'] / 2**30:.2f} GiB"
    return [
        ("loss", f"{step['lm_loss']:.4f}", "gradient norm", f"{step['grad_norm']:.3f}"),
        ("tokens/s", f"{step['tokens_per_second']:,.0f}", "speed", speed),
        ("learning rate", f"{step['learning_rate']:.3e}", "memory", memory),
    ]
