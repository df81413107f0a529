"""What README and docs/ hold: their links, and the commands that they tell a reader to type."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "sample_data" / "README.md",
]
PROGRAMS = ("python", "torchrun", "make", "sbatch", "pip", "docker", "vllm", "curl", "lm_eval")
"""The first words of commands, beside the repository's own scripts of the shell."""
SHELL_SCRIPTS = ("tools/gpu_check.sh", "tools/install_apex.sh")
_ASSIGNMENT = re.compile(r"^(?:export )?([A-Za-z_]+)=(\S*|\"[^\"]*\")$")


@dataclass(frozen=True)
class Command:
    """One command of a page: its words, with the variables of its block filled in."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def partial(self) -> bool:
        """Whether the page leaves words out."""
        return "..." in self.words


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line of its first line, language, text) of every fenced block of a page."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start(2)].count("\n") + 1, found[1], found[2]


def commands(page: Path) -> Iterator[Command]:
    """Every command in the blocks and in the sentences of a page, in its order."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    for first, language, block in blocks(text):
        if language in ("", "bash"):
            yield from block_commands(block, name, first)
    prose = re.sub(r"^```.*?^```$", lambda m: re.sub(r".", " ", m[0]), text, flags=re.M | re.S)
    for found in re.finditer(r"`([^`]+)`", prose):
        words = found[1].split() and _split(found[1])
        if len(words) > 1 and _program(words):
            yield Command(name, prose[: found.start()].count("\n") + 1, tuple(words))


def block_commands(block: str, page: str, first: int) -> Iterator[Command]:
    """The commands of a block, whose lines `\\` joins; an assignment fills the lines below it in."""
    variables: dict[str, str] = {}
    for number, line in _joined(block, first):
        line = re.sub(r"^\w+=\$\((.*)\)$", r"\1", line)  # name=$(command)
        assigned = _ASSIGNMENT.match(line.split("  #")[0].strip())
        if assigned:
            variables[assigned[1]] = assigned[2].strip('"')
            continue
        filled = re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[0]), line)
        words = _split(filled)
        if _program(words):
            yield Command(page, number, tuple(words))


def _joined(block: str, first: int) -> Iterator[tuple[int, str]]:
    """(number, text) of every line, with those that continue it."""
    begun, text = first, ""
    for number, line in enumerate(block.split("\n"), first):
        text += line.strip()
        if text.endswith("\\"):
            text = text[:-1]
        else:
            yield begun, text
            begun, text = number + 1, ""


def _split(line: str) -> list[str]:
    """Words of a line up to a redirection, without assignments before the command."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a sentence with an apostrophe
        return []
    ends = [i for i, word in enumerate(words) if word in (">", "|", "->", "&&")]
    words = words[: ends[0]] if ends else words
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def _program(words: list[str]) -> bool:
    first = words[0].rpartition("/")[2] if words else ""
    return first in PROGRAMS or (bool(words) and words[0] in SHELL_SCRIPTS)


def links(page: Path) -> Iterator[str]:
    """Targets of the links and pictures of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for found in re.finditer(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        yield found[1]


def anchors(page: Path) -> set[str]:
    """What a link may name after #, as GitHub makes it from the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths(page: Path) -> Iterator[str]:
    """Words in backquotes that look like files of the repository: a folder of it, and an ending."""
    folders = "tools|docs|tests|examples|megatron_yuyuan"
    pattern = rf"`((?:{folders})/[\w./-]+\.(?:py|md|sh|toml|slurm|cu|csv|xml))`"
    for found in re.finditer(pattern, page.read_text(encoding="utf-8")):
        yield found[1]
