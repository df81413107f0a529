"""Errors that a person can act on: what is wrong, why it matters, what to try."""

import copyreg
import errno

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the quota, or the largest size of a file."""


class YuyuanError(Exception):
    """Something a person must change before the command can work.

    `str(error)` is the text a person sees, less the word `error`:

        num_attention_heads=32 cannot be divided over tensor_model_parallel_size=6
          why: a tensor rank computes whole heads
          try: 1, 2, 4, 8, 16 or 32
    """

    status = 2
    """Of the process that ends with it."""
    kind = "usage"
    """`class` in SAVE/exit.json."""
    said = False
    """Whether another process has printed it."""
    is_own = False
    """Whether it is this rank's alone, so that no other will print it."""

    def __init__(self, what: str, why: str, remedy: str):
        what, why, remedy = (_one_line(text) for text in (what, why, remedy))
        super().__init__(what, why, remedy)
        self.what, self.why, self.remedy = what, why, remedy

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  try: {self.remedy}"

    def __reduce__(self):
        """Subclasses take other arguments than they keep; ranks send errors to each other."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


def _one_line(text: str) -> str:
    """A text for one line of a terminal, also where it quotes what a file or a name holds."""
    shown = text.replace("\n", " ").replace("\t", " ")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


class ConfigError(YuyuanError):
    """A flag, a configuration file, or a combination of values that cannot work."""


class ConfigErrors(ConfigError):
    """Several configuration errors found in one pass, so that a person mends them in one pass
    too."""

    def __init__(self, problems: list[ConfigError]):
        Exception.__init__(self, *problems)
        self.problems = problems
        self.what = "; ".join(problem.what for problem in problems)
        self.why = "; ".join(dict.fromkeys(problem.why for problem in problems))
        self.remedy = "; ".join(dict.fromkeys(problem.remedy for problem in problems))

    def __str__(self) -> str:
        return "\nerror: ".join(str(problem) for problem in self.problems)


class KernelsError(ConfigError):
    """Kernels that were asked for and cannot be had on this machine."""


class ShortOfMemoryError(ConfigError):
    """A rank had no memory left for what it was told to hold."""

    kind = "memory"
    is_own = True


class DataError(YuyuanError):
    """An input, a shard, a tokenizer or a checkpoint that is missing, damaged or does not fit."""

    kind = "data"


class SpaceError(DataError):
    """A disk or a quota without room for what is to be written."""

    kind = "space"


class DamagedError(DataError):
    """Files that are no longer what was written, by their sizes or checksums."""


class UnsafeError(YuyuanError):
    """A file that would run code or leave its folder if it were opened as asked."""

    kind = "unsafe"


class LostError(YuyuanError):
    """A process was lost. What it had finished is saved: the same command, started again, goes on."""

    status = 75
    kind = "rank_lost"


class BrokenError(YuyuanError):
    """A process that ended because of a bug of ours."""

    status = 1
    kind = "internal"

    def __init__(self, what: str):
        why, remedy = "its traceback stands above", "report it, with the traceback and config.toml"
        super().__init__(what, why, remedy)


class MachineError(YuyuanError):
    """A machine that computes or keeps wrong bits; it must be taken out of the job by a person."""

    kind = "machine"

    def __init__(self, what: str, why: str, remedy: str, culprit: dict):
        super().__init__(what, why, remedy)
        self.culprit = culprit
        """{"rank", "host"} in SAVE/exit.json."""


class BusyError(YuyuanError):
    """Another job writes where this one would."""

    kind = "busy"


class NoProgressError(YuyuanError):
    """A run that was started again and again, and came no further."""

    kind = "no_progress"


class StoppedError(YuyuanError):
    """The run was asked to stop and has saved its state: the same command, started again, goes on."""

    status = 75

    def __init__(self, what: str, why: str, remedy: str, stop):
        super().__init__(what, why, remedy)
        self.stop = stop
        """train.stopping.Stop: who had which reason."""


def refused_by_disk(error: OSError) -> type[DataError]:
    """The class of an error of writing: SpaceError where there is no room."""
    return SpaceError if error.errno in NO_SPACE else DataError


def refused_for_now(what: str, instead: str = "") -> ConfigError:
    """The error for something of Megatron-LM's that is not built here."""
    return ConfigError(
        f"{what} is not yet supported",
        "what would be ignored silently is refused instead",
        instead or "leave it out; README.md says what works today",
    )
