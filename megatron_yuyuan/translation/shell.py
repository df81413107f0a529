"""A bash script read without running any of it: the words that its commands would have.

Followed are NAME=word, NAME+=word and NAME=(array), also under export, declare, local and readonly;
quotes, comments, continued lines; and of the expansions $NAME, ${NAME}, ${NAME[@]}, ${NAME:-word} (and
:= and :?), $1, $@ and $((...)) of whole numbers. An unquoted value is divided at its blanks; unquoted
patterns of files (*) and braces ({0..3}) are an error in a command that matters. A variable that is set
inside if, for, while, case or a function, after && or ||, by the output of a command, by ((...)), let or
NAME[0]=word, is unknown from there on: an error where it is used, not before. What may change any
variable (source, eval, shift, set --), and a here-document, is an error at its line. NAME=word before a
command is no variable of the script, and left out.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.translation.command import is_training
from megatron_yuyuan.translation.shell_variables import (
    FORGETS,
    LOOPS,
    after_equals,
    assignment,
    changed_by,
    head,
    plain,
    set_by,
)
from megatron_yuyuan.translation.shell_words import (
    Array,
    Operator,
    Part,
    Token,
    Word,
    default_parts,
    parts_of,
    tokens,
)
from megatron_yuyuan.translation.whole_numbers import NotANumber, whole_number

OPENS = {"if", "for", "while", "until", "case", "select", "{"}
CLOSES = {"fi", "done", "esac", "}"}
WITHIN = {"then", "else", "elif", "do", "!", "time"}
"""Words before a command that is looked at all the same."""
DECLARES = {"export", "declare", "typeset", "local", "readonly"}
REFUSED = {"source", ".", "eval", "shift"}
ENDS = {"\n", ";", "&", "&&", "||", "|", ";;"}
PATTERN = re.compile(r"[*?]|\[[^\]]+\]")
"""What an unquoted word or value is matched with the names of files by."""
BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")
"""What an unquoted word is multiplied by."""
NAMED = re.compile(r"(\w+|[@*])(\[[@*]\])?(?:(:?[-=?])(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A simple command, expanded."""

    line: int
    words: list[str]


@dataclass
class ShellScript:
    """The state of a script while `commands` reads it."""

    name: str
    """How messages call it."""
    arguments: list[str]
    """$1 and so on."""
    given: dict[str, str]
    """Variables whose value the caller knows better than the script."""
    sought: tuple[str, ...] = ()
    """Names of files: a command that has one of them must be known."""
    exported: dict[str, str] = field(default_factory=dict)
    """What the script exports, as far as it is known."""
    variables: dict[str, list[str] | ConfigError] = field(default_factory=dict)
    """Values so far, a plain variable's as a list of one; or why the value is unknown."""
    _blocks: list[str] = field(default_factory=list)
    _condition: str = ""
    """Why the statement that is read may not be run."""

    def commands(self, text: str) -> Iterator[Command]:
        """Each simple command whose words are known. Raises ConfigError at what cannot be followed."""
        for before, statement in _statements(tokens(text, self.name)):
            self._condition = f"set after `{before}`" if before in ("&&", "||") else ""
            command = self._run(statement)
            if command is not None:
                yield command

    def _run(self, statement: list[Word | Array]) -> Command | None:
        """Note what a statement does to the variables; return its command, if it has one."""
        words = self._past_keywords(statement)
        assigned = []
        while words and (found := assignment(words[0])):
            assigned.append((words.pop(0), found))
        if not words:
            for word, name_and_sign in assigned:
                self._assign(word, *name_and_sign)
            return None
        line, first = words[0].line, plain(words[0])
        if first in REFUSED or (first == "set" and any(plain(w) == "--" for w in words)):
            raise self._cannot_follow(line, f"`{first}`", "it may set any variable")
        if first in DECLARES:
            self._declare(words[1:], exports=first == "export")
        for name in changed_by(words):
            self._forget(name, line, f"`{head(words[0])}`")
        if first in DECLARES | FORGETS:
            return None
        return self._command(line, words)

    def _past_keywords(self, words: list[Word | Array]) -> list[Word | Array]:
        """Follow the borders of blocks; what is left is a simple command, or the head of a loop."""
        while words:
            first = plain(words[0])
            if first in OPENS:
                self._blocks.append(first)
                if first in LOOPS:
                    return words
            elif first in CLOSES and self._blocks:
                self._blocks.pop()
            elif first == "(":
                self._blocks.append(first)
            elif first == ")":
                if self._blocks and self._blocks[-1] == "(":  # else it ends a pattern of `case`
                    self._blocks.pop()
            elif first == "function":
                words = words[1:]  # its name follows; its body opens a block itself
            elif first not in WITHIN:
                break
            words = words[1:]
        return words

    def _command(self, line: int, words: list[Word | Array]) -> Command | None:
        """The command, if its words are known; where they are not, it must not be one that matters."""
        try:
            expanded = [value for word in words for value in self._expand(word)]
        except ConfigError:
            plain = [word for word in words if isinstance(word, Word)]
            if any(part.value.endswith(self.sought) for word in plain for part in word.parts):
                raise
            return None
        if self._blocks and is_training(expanded):
            what = f"a command inside `{self._blocks[-1]}`"
            raise self._cannot_follow(line, what, "whether and how often it runs is not known")
        return Command(line, expanded)

    def _declare(self, words: list[Word | Array], exports: bool) -> None:
        """What follows export and its like."""
        for word in words:
            assigned = assignment(word)
            name = assigned[0] if assigned else plain(word) or ""
            if assigned:
                self._assign(word, *assigned)
            value = self.variables.get(name)
            if exports and isinstance(value, list):
                self.exported[name] = " ".join(value)

    def _assign(self, word: Word | Array, name: str, adds: bool) -> None:
        """NAME=..., or NAME+=..."""
        if not self._may_set(name, word.line):
            return
        before = self.variables.get(name, [])
        try:
            if isinstance(before, ConfigError):
                if adds:
                    raise before
                before = []
            if isinstance(word, Array):
                values = [v for w in word.words for v in self._expand(w)]
                self.variables[name] = before + values if adds else values
            else:  # of an array its first element
                value = self._joined(after_equals(word), word.line)
                head = "".join(before[:1]) if adds else ""
                self.variables[name] = [head + value, *before[1:]]
        except ConfigError as error:
            self.variables[name] = error

    def _may_set(self, name: str, line: int) -> bool:
        """Whether an assignment at this place surely counts; where it only may, its variable is forgotten."""
        if name in self.given or "(" in self._blocks:  # a subshell keeps its variables
            return False
        how = f"set inside `{self._blocks[-1]}`" if self._blocks else self._condition
        if how:
            self._forget(name, line, how)
        return not how

    def _forget(self, name: str, line: int, how: str) -> None:
        """From here on a variable is unknown."""
        if name not in self.given and "(" not in self._blocks:
            what = f"${name} ({how} at line {line})"
            self.variables[name] = self._cannot_follow(line, what, "its value is not known")

    def _joined(self, parts: tuple[Part, ...], line: int) -> str:
        """The value of an assignment, which is not divided."""
        resolved = self._with_defaults(parts, line)
        return "".join(" ".join(self._values(part, line)) for part in resolved)

    def _expand(self, word: Word | Array) -> list[str]:
        """The words that one word becomes: none, one or several."""
        if isinstance(word, Array):
            raise self._cannot_follow(word.line, "an array among words", "bash has none there")
        fields: list[str] = []
        is_open = False  # whether the next piece goes on with the last field
        for part in self._with_defaults(word.parts, word.line):
            values = self._values(part, word.line)
            if part.quoted:
                pieces, glued, closes = values, True, False
            else:
                value = " ".join(values)
                self._require_plain(part, value, word.line)
                pieces, glued, closes = value.split(), not value[:1].isspace(), value[-1:].isspace()
            stays_open = not closes and (is_open or bool(pieces))
            if is_open and glued and pieces:
                fields[-1] += pieces[0]
                pieces = pieces[1:]
            fields += pieces
            is_open = stays_open
        return fields

    def _require_plain(self, part: Part, value: str, line: int) -> None:
        """Raises ConfigError for an unquoted value that bash would take for names of files or multiply."""
        found = PATTERN.search(value)
        if found is None and part.kind == "text":
            found = BRACES.search(value)
        if found:
            raise ConfigError(
                f"{self.name}, line {line}: `{found[0]}` in {value} cannot be followed",
                "which words it becomes is not known without the files, or quotes are missing",
                "the words themselves in its place, or quotes around it",
            )

    def _with_defaults(self, parts: Iterable[Part], line: int) -> Iterator[Part]:
        """The pieces of a word; in place of a ${NAME:-word} whose word counts, the pieces of that."""
        for part in parts:
            if part.kind != "variable" or not self._takes_default(part, line):
                yield part
                continue
            name, _, operator, word = self._named(part, line)
            of_default = default_parts(word, self.name, line, part.quoted)
            if operator in ("=", ":="):
                value = self._joined(of_default, line)
                if self._may_set(name, line):
                    self.variables[name] = [value]
                yield Part("text", value, part.quoted)
            else:
                yield from self._with_defaults(of_default, line)
                if part.quoted and not of_default:
                    yield Part("text", "", True)

    def _takes_default(self, part: Part, line: int) -> bool:
        """Whether NAME of ${NAME:-word} has no value, or with the colon an empty one."""
        name, _, operator, _ = self._named(part, line)
        if operator is None or operator.endswith("?"):
            return False
        if not self._has_value(name):
            return True
        return operator.startswith(":") and not any(self._value(name, line))

    def _values(self, part: Part, line: int) -> list[str]:
        """What a piece of a word stands for: one value, or those of an array."""
        if part.kind == "text":
            return [part.value]
        if part.kind == "command":
            raise self._cannot_follow(line, f"the output of {part.value}", "nothing is run here")
        if part.kind == "arithmetic":
            for name in set_by(part.value):
                self._forget(name, line, "`$((`")
            joined = self._joined(parts_of(part.value, self.name, line), line)
            try:
                return [
                    str(whole_number(joined, lambda name: " ".join(self._value(name, line)[:1])))
                ]
            except NotANumber as error:
                what = f"$(({part.value.strip()})): {error}"
                raise self._cannot_follow(line, what, "only whole numbers are computed") from None
        return self._variable(part, line)

    def _variable(self, part: Part, line: int) -> list[str]:
        """The values of a variable, whose default does not count."""
        name, all_of_it, _, _ = self._named(part, line)
        values = self._value(name, line)
        if part.quoted and (name == "*" or all_of_it == "[*]"):
            values = [" ".join(values)]
        return values if all_of_it or name in ("@", "*") else values[:1]

    def _named(self, part: Part, line: int) -> tuple[str, str | None, str | None, str]:
        """(name, [@] or [*], the operator, the word behind it) of an expansion. Raises ConfigError."""
        named = NAMED.fullmatch(part.value)
        if named is None:
            raise self._cannot_follow(line, f"${{{part.value}}}", "this expansion is not followed")
        name, all_of_it, operator, word = named.groups()
        return name, all_of_it, operator, word or ""

    def _has_value(self, name: str) -> bool:
        return name in self.given or name in self.variables or self._argument(name) is not None

    def _value(self, name: str, line: int) -> list[str]:
        """A variable's value. Raises ConfigError where it has none that is known."""
        if name in self.given:
            return [self.given[name]]
        argument = self._argument(name)
        if argument is not None:
            return argument
        if name not in self.variables:
            remedy = "its value after SCRIPT" if name.isdigit() else f"--set {name}=VALUE"
            raise ConfigError(
                f"{self.name}, line {line}: ${name} has no value",
                "the script takes it from outside",
                remedy,
            )
        value = self.variables[name]
        if isinstance(value, ConfigError):
            raise value
        return value

    def _argument(self, name: str) -> list[str] | None:
        """What $0, $1, $@ and so on stand for; None where it is nothing."""
        if name in ("@", "*"):
            return self.arguments
        if name == "0":
            return [self.name]
        if name.isdigit() and 0 < int(name) <= len(self.arguments):
            return [self.arguments[int(name) - 1]]
        return None

    def _cannot_follow(self, line: int, what: str, why: str) -> ConfigError:
        return ConfigError(
            f"{self.name}, line {line}: {what} cannot be followed",
            why,
            "--set NAME=VALUE for a variable, or -- COMMAND, the command that bash -x prints",
        )


def _statements(stream: Iterator[Token]) -> Iterator[tuple[str, list[Word | Array]]]:
    """(the operator before, the words) of each simple command, without its redirections; a parenthesis is a
    statement of its own."""
    before, statement, redirected = "", list[Word | Array](), False
    for token in stream:
        if isinstance(token, Operator) and token.text in ENDS | {"(", ")"}:
            yield before, statement
            if token.text in ("(", ")"):
                yield "", [Word(token.line, (Part("text", token.text, False),))]
            if statement or token.text != "\n":  # a line may end after an operator
                before = token.text
            statement, redirected = [], False
        elif isinstance(token, Operator):
            redirected = True  # its target is the next word
        elif redirected:
            redirected = False
        else:
            statement.append(token)
    yield before, statement
