"""Bash's text divided into words and operators, nothing expanded yet."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_yuyuan.errors import ConfigError

OPERATOR = re.compile(r"<<|(?:\d+|&)?(?:>>|>&|>\||<&|>|<)|\|\||&&|;;|[|&;()\n]")
BLANK = " \t"
BORDER = BLANK + "\n|&;()<>"
"""What ends a word that stands without quotes."""
NAME = re.compile(r"[A-Za-z_]\w*|[\d@*#?$!-]")
"""What a $ without braces stands before: of $12 the 1 alone."""
ARRAY = re.compile(r"([A-Za-z_]\w*\+?)=")
ESCAPED_IN_QUOTES = '$`"\\'
EXPANSIONS = (("$((", "))", "arithmetic"), ("$[", "]", "arithmetic"), ("$(", ")", "command"))


@dataclass(frozen=True)
class Part:
    """A piece of a word."""

    kind: str
    """text; variable: what stands after $ or in ${}; arithmetic: in $(()); command: of $() or ``."""
    value: str
    quoted: bool


@dataclass(frozen=True)
class Word:
    """What stands between blanks."""

    line: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Array:
    """NAME=(words), or NAME+=(words), with the + in the name."""

    line: int
    name: str
    words: list[Word]


@dataclass(frozen=True)
class Operator:
    """The end of a command, a parenthesis, or a redirection."""

    line: int
    text: str


Token = Word | Array | Operator
ARITHMETIC = Part("text", "((", False)
"""The first piece of the word that stands for the command ((...)); the second is what it computes."""


def tokens(text: str, name: str) -> Iterator[Token]:
    """The words and operators of a script. Raises ConfigError for a quote that is not closed, and for
    a here-document."""
    yield from _Reader(text, name, 1).tokens()


def parts_of(text: str, name: str, line: int) -> tuple[Part, ...]:
    """The pieces of a text as if it stood in double quotes."""
    return tuple(_Reader(text, name, line).pieces(""))


def default_parts(text: str, name: str, line: int, quoted: bool) -> tuple[Part, ...]:
    """The pieces of the word of ${NAME:-word}. Where the expansion stands in double quotes, further ones are
    dropped and single ones are text; elsewhere the word has quotes of its own."""
    reader = _Reader(text, name, line)
    return tuple(reader.pieces("", drops='"')) if quoted else at_home(tuple(reader.all_pieces()))


def at_home(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The pieces of a word or of a value, with $HOME for a ~ at their beginning."""
    head = parts[0] if parts else Part("text", "", True)
    path, slash, rest = head.value.partition("/")
    if head.kind != "text" or head.quoted or path != "~" or (len(parts) > 1 and not slash):
        return parts
    return (Part("variable", "HOME", True), Part("text", slash + rest, True), *parts[1:])


class _Reader:
    """A place in a text, and what is read from there."""

    def __init__(self, text: str, name: str, line: int):
        self._text, self._name, self._at, self._first_line = text, name, 0, line

    @property
    def _line(self) -> int:
        return self._first_line + self._text.count("\n", 0, self._at)

    def tokens(self) -> Iterator[Token]:
        while (token := self._token()) is not None:
            yield token

    def _token(self) -> Token | None:
        """The next one; None at the end."""
        self._skip_blanks()
        if self._text.startswith("((", self._at):
            line, self._at = self._line, self._at + 2
            return Word(line, (ARITHMETIC, Part("text", self._until("))"), True)))
        operator = OPERATOR.match(self._text, self._at)
        if operator:
            line, self._at = self._line, operator.end()
            if operator[0] == "<<":
                raise self._error("a here-document", "what it holds is not read")
            return Operator(line, operator[0])
        return self._word() if self._at < len(self._text) else None

    def _skip_blanks(self) -> None:
        """Past blanks, continued lines and a comment."""
        while self._at < len(self._text):
            if self._text[self._at] in BLANK:
                self._at += 1
            elif self._text.startswith("\\\n", self._at):
                self._at += 2
            elif self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                return

    def _word(self) -> Word | Array:
        line, start, parts = self._line, self._at, []
        while self._at < len(self._text) and self._text[self._at] not in BORDER:
            parts += self._piece()
        array = ARRAY.fullmatch(self._text, start, self._at)
        if array and self._text.startswith("(", self._at):
            self._at += 1
            return Array(line, array[1], self._elements())
        return Word(line, at_home(tuple(parts)))

    def _elements(self) -> list[Word]:
        """The words of an array, up to its closing parenthesis."""
        words: list[Word] = []
        while (token := self._token()) is not None:
            if isinstance(token, Operator):
                if token.text == ")":
                    return words
                if token.text != "\n":
                    raise self._error(f"`{token.text}` in an array", "a word is expected there")
            elif isinstance(token, Word):
                words.append(token)
        raise self._error("an array that is not closed", "its ) is missing")

    def all_pieces(self) -> Iterator[Part]:
        """The pieces of a word that goes to the end of the text, blanks and operators too."""
        while self._at < len(self._text):
            start = self._at
            while self._text[self._at : self._at + 1] in BORDER and self._at < len(self._text):
                self._at += 1
            if self._at > start:
                yield Part("text", self._text[start : self._at], False)
            else:
                yield from self._piece()

    def _piece(self) -> list[Part]:
        """What stands at this place of a word, one kind of quote or none."""
        if self._text.startswith('$"', self._at):
            self._at += 1  # translated to the language of the user: left as it is
        elif self._text.startswith("$'", self._at):
            self._at += 1
            if "\\" in self._text[self._at + 1 :].partition("'")[0]:
                raise self._error("a backslash in $''", "its escapes are not read")
        quote = self._text[self._at]
        if quote == "'":
            self._at += 1
            return [Part("text", self._until("'"), True)]
        if quote == '"':
            self._at += 1
            inside = list(self.pieces('"'))
            self._at += 1
            return inside or [Part("text", "", True)]
        if quote == "\\":
            self._at += 2
            escaped = self._text[self._at - 1 : self._at]
            return [] if escaped == "\n" else [Part("text", escaped, True)]
        if quote in "$`":
            return [self._expansion(quoted=False)]
        end = self._at
        while end < len(self._text) and self._text[end] not in BORDER + "'\"\\$`":
            end += 1
        start, self._at = self._at, end
        return [Part("text", self._text[start:end], False)]

    def pieces(self, close: str, drops: str = "") -> Iterator[Part]:
        """The pieces up to a closing quote, or without one to the end of the text, but for the characters
        that are dropped."""
        text = ""
        while self._at < len(self._text):
            character, following = self._text[self._at], self._text[self._at + 1 : self._at + 2]
            if character == close:
                break
            if character == drops:
                self._at += 1
            elif character in "$`":
                if text:
                    yield Part("text", text, True)
                text = ""
                yield self._expansion(quoted=True)
            elif character == "\\" and following and following in ESCAPED_IN_QUOTES + "\n":
                text += following if following != "\n" else ""
                self._at += 2
            else:
                text += character
                self._at += 1
        else:
            if close:
                raise self._error("a quote that is not closed", "it holds the rest of the script")
        if text:
            yield Part("text", text, True)

    def _expansion(self, quoted: bool) -> Part:
        """What begins with $ or with a backquote."""
        if self._text[self._at] == "`":
            self._at += 1
            return Part("command", f"`{self._until('`')}`", quoted)
        for begin, close, kind in EXPANSIONS:
            if self._text.startswith(begin, self._at):
                self._at += len(begin)
                inside = self._until(close)
                return Part(kind, f"$({inside})" if kind == "command" else inside, quoted)
        if self._text.startswith("${", self._at):
            self._at += 2
            return Part("variable", self._until("}"), quoted)
        name = NAME.match(self._text, self._at + 1)
        self._at = name.end() if name else self._at + 1
        return Part("variable", name[0], quoted) if name else Part("text", "$", quoted)

    def _until(self, close: str) -> str:
        """What stands before the closing text that belongs to this place, which is passed."""
        opening = {")": "(", "}": "{", "))": "("}.get(close, "")
        start, depth = self._at, 0
        while self._at < len(self._text):
            if depth == 0 and self._text.startswith(close, self._at):
                inside, self._at = self._text[start : self._at], self._at + len(close)
                return inside
            if opening and self._text[self._at] == opening:
                depth += 1
            elif opening and self._text[self._at] == close[0]:
                depth -= 1
            self._at += 1
        raise self._error(
            f"a {close} that is missing", "what it closes holds the rest of the script"
        )

    def _error(self, what: str, why: str) -> ConfigError:
        return ConfigError(
            f"{self._name}, line {self._line}: {what} cannot be followed",
            why,
            "-- COMMAND, the command that bash -x prints",
        )
