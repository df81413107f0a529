"""A Dockerfile and a .dockerignore, read as a container engine reads them, as far as ours go."""

import fnmatch
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """What follows a FROM."""

    image: str
    """With the arguments above the first FROM put in."""
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    """(COPY, RUN, ... in capitals, what follows it)."""

    def of(self, instruction: str) -> list[str]:
        return [text for found, text in self.instructions if found == instruction]


@dataclass(frozen=True)
class Copy:
    """A COPY: from the context, or from another stage."""

    stage: str
    sources: list[str]
    target: str


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of each, comments left out and continued lines joined."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(kept))
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest) for name, rest in pairs]


def read_stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    arguments, stages = dict[str, str](), list[Stage]()
    for instruction, rest in instructions(text):
        if instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            image = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], image)
            stages.append(Stage(image.strip(), name.strip()))
        elif not stages:
            assert instruction == "ARG", instruction
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            stages[-1].instructions.append((instruction, rest))
    return stages


def read_copy(text: str) -> Copy:
    """The arguments of a COPY."""
    words = shlex.split(text)
    stage = ""
    if words[0].startswith("--from="):
        stage = words.pop(0).removeprefix("--from=")
    *sources, target = words
    return Copy(stage, sources, target)


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether a .dockerignore leaves a path out of the context: the last pattern that matches it, or a
    folder above it, decides."""
    above = [str(p) for p in (Path(path), *Path(path).parents) if str(p) != "."]
    ignored = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        forms = (plain, plain.removeprefix("**/"))
        if any(_matches(folder, form) for folder in above for form in forms):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """* stands for anything but a slash, a leading ** for any folders."""
    parts, wanted = path.split("/"), pattern.split("/")
    if wanted[0] == "**":
        parts, wanted = parts[-len(wanted) + 1 :], wanted[1:]
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def read_ignored(text: str) -> list[str]:
    """The patterns of a .dockerignore."""
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
