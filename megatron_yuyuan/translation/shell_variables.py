"""Which variables a simple command of bash sets, by its words alone."""

import re

from megatron_yuyuan.translation.shell_words import ARITHMETIC, Array, Part, Word, at_home

LOOPS = {"for", "select"}
FORGETS = {"read", "unset", "mapfile", "readarray", "getopts"} | LOOPS
"""Words that give other values to the variables they name."""
NAME = re.compile(r"[A-Za-z_]\w*")
ELEMENT = re.compile(r"([A-Za-z_]\w*)\[")
"""Of NAME[0]=word."""
CHANGED = re.compile(
    r"([A-Za-z_]\w*)(?:\[[^]]*\])?\s*(?:\+\+|--|(?:[-+*/%&|^]|<<|>>)?=(?!=))"
    r"|(?:\+\+|--)([A-Za-z_]\w*)"
)
"""What ((...)) sets."""
ASSIGNED = re.compile(r"([A-Za-z_]\w*)(\+?)=")


def plain(word: Word | Array) -> str | None:
    """The text of a word without quotes and expansions; None of another."""
    if isinstance(word, Array) or any(part.kind != "text" or part.quoted for part in word.parts):
        return None
    return "".join(part.value for part in word.parts)


def head(word: Word | Array) -> str:
    """The text that a word begins with; nothing where a quote or an expansion is first."""
    parts = word.parts[:1] if isinstance(word, Word) else ()
    return "".join(part.value for part in parts if part.kind == "text" and not part.quoted)


def changed_by(words: list[Word | Array]) -> list[str]:
    """The variables that a command gives other values, beside assignments and declarations."""
    first = plain(words[0])
    named = words[1:2] if first in LOOPS else words[1:] if first in FORGETS else []
    names = [found[0] for word in named if (found := NAME.match(plain(word) or ""))]
    computed = words[1:] if first == "let" else words[:2]
    for word in computed:
        if isinstance(word, Word) and (first == "let" or word.parts[:1] == (ARITHMETIC,)):
            names += set_by("".join(part.value for part in word.parts))
    element = ELEMENT.match(head(words[0]))
    return [*names, element[1]] if element else names


def set_by(computed: str) -> list[str]:
    """The variables that the inside of ((...)) sets."""
    return [before or after for before, after in CHANGED.findall(computed)]


def assignment(word: Word | Array) -> tuple[str, bool] | None:
    """(name, whether it adds) if the word is an assignment."""
    if isinstance(word, Array):
        return word.name.removesuffix("+"), word.name.endswith("+")
    found = ASSIGNED.match(head(word))
    return (found[1], bool(found[2])) if found else None


def after_equals(word: Word) -> tuple[Part, ...]:
    """The value of NAME=value."""
    first, *rest = word.parts
    _, _, value = first.value.partition("=")
    return at_home((Part("text", value, False), *rest))
