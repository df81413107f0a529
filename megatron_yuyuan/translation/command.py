"""A command of Megatron-LM's divided into its parts: who starts it, which script, which flags."""

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_yuyuan.errors import ConfigError

SCRIPTS = {"pretrain_gpt.py": "pretrain_gpt.py", "preprocess_data.py": "tools/preprocess_data.py"}
"""Megatron-LM's scripts that have a counterpart, and which."""
PYTHON = re.compile(r"python[\d.]*")
LAUNCHERS = {"torch.distributed.run", "torch.distributed.launch"}


@dataclass(frozen=True)
class Flag:
    """A flag and its values as they stand on a command line."""

    name: str
    """With --, and - for _."""
    values: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.name, *self.values))


@dataclass(frozen=True)
class Parts:
    """What a command is made of."""

    launcher: list[str]
    """Up to the script: torchrun and its flags, python, srun before them."""
    script: str
    """Ours."""
    flags: list[Flag]

    @property
    def ranks(self) -> int | None:
        """Processes that torchrun starts on all nodes; None where it does not say."""
        given = {flag.name: flag.values for flag in flags_of(self.launcher)[0]}
        if not any(Path(word).name == "torchrun" for word in self.launcher):
            return None
        sizes = [given.get(name, ("1",)) for name in ("--nproc-per-node", "--nnodes")]
        if not all(len(size) == 1 and size[0].isdigit() for size in sizes):
            return None
        return int(sizes[0][0]) * int(sizes[1][0])


def is_training(words: list[str]) -> bool:
    """Whether a command runs one of `SCRIPTS`, and does not merely name it."""
    return any(Path(word).name in SCRIPTS for word in words) and _starts(words) is not None


def _starts(words: list[str]) -> int | None:
    """The place of the word that starts Python, or of a script that is started itself."""
    for place, word in enumerate(words):
        name = Path(word).name
        if name == "torchrun" or PYTHON.fullmatch(name) or (place == 0 and name in SCRIPTS):
            return place
    return None


def parts_of(words: list[str]) -> Parts:
    """Divide a command. Raises ConfigError where it starts none of `SCRIPTS`, and for a word that
    belongs to no flag."""
    place, start = next((i for i, w in enumerate(words) if w.endswith(".py")), None), _starts(words)
    if place is None or start is None or Path(words[place]).name not in SCRIPTS:
        shown = words[place] if place is not None else " ".join(words[:3])
        raise ConfigError(
            f"{shown or 'the command'} is not translated",
            f"only {' and '.join(SCRIPTS)} of Megatron-LM's have a counterpart here",
            "a command that torchrun or python starts, with one of them",
        )
    flags, strays = flags_of(words[place + 1 :])
    if strays:
        raise ConfigError(
            f"`{strays[0]}` after {words[place]} belongs to no flag",
            "Megatron-LM's scripts take flags alone",
            "the command as bash -x prints it, or leave the word out",
        )
    script = SCRIPTS[Path(words[place]).name]
    return Parts([*words[:start], *_launched_by(words[start:place])], script, flags)


def _launched_by(words: list[str]) -> list[str]:
    """`python -m torch.distributed.launch` as torchrun; python without -u, which changes nothing."""
    words = [word for word in words if word != "-u"]
    module, *rest = words[words.index("-m") + 1 :] if "-m" in words[:-1] else [""]
    if module in LAUNCHERS:
        return ["torchrun", *(w for w in rest if w not in ("--use_env", "--use-env"))]
    return words


def flags_of(words: list[str]) -> tuple[list[Flag], list[str]]:
    """Flags with the words up to the next as their values, and the words before the first."""
    flags: list[Flag] = []
    strays: list[str] = []
    for word in words:
        if re.match(r"--\w", word):
            name, equals, value = word.partition("=")
            flags.append(Flag(name.replace("_", "-"), (value,) if equals else ()))
        elif flags:
            flags[-1] = Flag(flags[-1].name, (*flags[-1].values, word))
        else:
            strays.append(word)
    return flags, strays
