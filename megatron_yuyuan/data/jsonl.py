"""JSON lines: one object a line, plain or compressed, read whole or by a range of bytes.

With msgspec (extra `fast`) a block of lines is decoded in one call; a block it does not take whole is
read again line by line by `json`, which says what is wrong: texts, repairs and messages are the same
with and without it.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_yuyuan.data.files import open_input
from megatron_yuyuan.errors import DataError

BLOCK = 4 << 20
"""Bytes read at a time."""
LONGEST_LINE = 64 << 20
JSON_DEPTH = "a line nested deeper than the JSON reader goes"
CONTROLS = "".join(chr(code) for code in [*range(32), 127] if chr(code) not in "\t\n\r")
"""Control characters that no text needs."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair: a whole one is read as its character."""
REMOVE_CONTROLS = dict.fromkeys(map(ord, CONTROLS))

Notice = Callable[[str, int], None]
"""Called with (what was repaired, byte at which its line begins)."""
Parse = Callable[..., dict]
"""Called as `parse_line` is."""


def read_json_lines(path: str | Path, parse: Parse | None = None) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for every line that is not blank, as `parse` reads it (without
    one `parse_line`).

    Raises DataError with the line number: not UTF-8, not JSON (NaN is none), not an object, half of a
    surrogate pair in a string, longer than `LONGEST_LINE`.
    """
    lines = (line for offset, block in _line_blocks(path) for line in _lines(block, offset))
    for number, (position, line) in enumerate(lines, start=1):
        if line.strip():
            record = (parse or parse_line)(line, path, position, errors="strict")
            if rb"\u" in line and SURROGATE.search(json.dumps(record, ensure_ascii=False)):
                raise bad_line(path, number, "half of a surrogate pair in a string")
            yield number, record


def first_keys(path: str | Path, parse: Parse | None = None) -> set[str]:
    """The keys of the first line that is not blank. Raises DataError as `read_jsonl_texts`."""
    for offset, block in _line_blocks(path):
        for position, line in _lines(block, offset):
            if line.strip():
                return set((parse or parse_line)(line, path, position))
    return set()


def read_jsonl_texts(
    path: str | Path,
    key: str = "text",
    span: tuple[int, int] | None = None,
    notice: Notice = lambda *_: None,
) -> Iterator[str]:
    """Yield the string under `key` of every line, or of those that begin in the bytes `span` of a plain
    file.

    Bytes that are not UTF-8 and halves of surrogate pairs become U+FFFD, control characters go; `notice`
    hears of it. Raises DataError with the line number: not JSON, not an object, longer than
    `LONGEST_LINE`, key missing (naming those seen), not a string.
    """
    decode = _block_decoder(key)
    for offset, block in _line_blocks(path, span):
        texts = decode(block)
        if texts is None:
            for position, line in _lines(block, offset):
                if line.strip():
                    yield _text_of_line(line, key, path, position, notice)
        else:
            yield from texts


def _block_decoder(key: str) -> Callable[[bytes], list[str] | None]:
    """Block of lines -> their texts, or None where only the careful way will do."""
    if '"' in key or "\\" in key or not key.isprintable():  # msgspec names no such key
        return lambda block: None
    try:
        import msgspec
    except ImportError:
        return lambda block: None
    line: Any = msgspec.defstruct("Line", [("text", str)], rename={"text": key}, gc=False)
    decoder = msgspec.json.Decoder(line)

    def decode(block: bytes) -> list[str] | None:
        try:
            texts = [record.text for record in decoder.decode_lines(block)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        lines = block.rstrip(b"\n")
        if not lines.startswith(b"{") or not (
            len(texts) - 1 == lines.count(b"\n") == lines.count(b"}\n{")
        ):
            return None  # not one object on every line
        controls = _controls_to_look_for(block)
        return None if any(c in text for c in controls for text in texts) else texts

    return decode


def _controls_to_look_for(block: bytes) -> str:
    r"""Control characters that a block of JSON may hold: but for U+007F they can stand in it only as \b,
    \f and \u0000 to \u001f. (Or it holds `\\b`, a backslash and a letter.)"""
    letters = np.frombuffer(block, np.uint8)
    escaped = set(np.unique(letters[1:][letters[:-1] == ord("\\")]).tolist())
    unicode = ord("u") in escaped and any(b"\\u00" + d in block for d in (b"0", b"1", b"7"))
    if unicode or b"\x7f" in block:
        return CONTROLS
    return "\b\f" if escaped & set(b"bf") else ""


def _line_blocks(
    path: str | Path, span: tuple[int, int] | None = None
) -> Iterator[tuple[int, bytes]]:
    """(byte at which it begins, whole lines) one after another."""
    with open_input(path) as stream:
        begin, stop = span or (0, None)
        if begin:
            stream.seek(begin - 1)
            begin += len(_rest_of_line(stream, path, begin)) - 1
        while stop is None or begin < stop:
            block = stream.read(BLOCK if stop is None else min(BLOCK, stop - begin))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += _rest_of_line(stream, path, begin + len(block))
            yield begin, block
            begin += len(block)


def _rest_of_line(stream, path: str | Path, position: int) -> bytes:
    rest = stream.readline(LONGEST_LINE)
    if len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
        raise _bad_line(path, position, f"a line longer than {LONGEST_LINE >> 20} MB")
    return rest


def _lines(block: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """(byte at which it begins, line) for every line; a line ends with a line feed alone."""
    for line in block.removesuffix(b"\n").split(b"\n"):
        yield offset, line
        offset += len(line) + 1


def _text_of_line(line: bytes, key: str, path: str | Path, position: int, notice: Notice) -> str:
    record = parse_line(line, path, position)
    if key not in record or not isinstance(record[key], str):
        asks = "question" in record and "answer" not in record
        remedy = (
            "an 'answer' beside the question"
            if asks
            else "--json-keys KEY, one that every line has"
        )
        string_of(record, (key,), path, line_number(path, position), remedy)
    text = record[key]
    if SURROGATE.search(text):
        notice("bytes that are not UTF-8 or halves of surrogate pairs replaced", position)
        text = SURROGATE.sub("\ufffd", text)
    if any(control in text for control in CONTROLS):
        notice("control characters removed", position)
        text = text.translate(REMOVE_CONTROLS)
    return text


def parse_line(
    line: bytes, path: str | Path, position: int, errors: str = "surrogateescape"
) -> dict:
    """The object on a line; with `surrogateescape`, bytes that are not UTF-8 are surrogates in it."""
    try:
        text = line.decode("utf-8" if position else "utf-8-sig", errors)
        record = json.loads(text, parse_constant=_refuse, parse_int=_integer)
    except RecursionError:
        raise _bad_line(path, position, JSON_DEPTH) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise _bad_line(path, position, str(error)) from None
    if not isinstance(record, dict):
        raise _bad_line(path, position, f"a {type(record).__name__}, not an object")
    return record


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # int refuses thousands of digits


def string_of(
    record: dict, keys: tuple[str, ...], path: str | Path, number: int, remedy: str = ""
) -> str:
    """The string under the first of `keys` that `record`, line `number`, has. Raises DataError, whose remedy
    is a file with such a key unless another is given."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        raise DataError(
            f"{path}, line {number}: no key {keys[0]!r}; it has {', '.join(map(repr, record)) or 'none'}",
            f"every line needs {' or '.join(map(repr, keys))}",
            remedy or "a file whose lines have it",
        )
    if not isinstance(record[key], str):
        raise bad_line(path, number, f"{key!r} is no string but {type(record[key]).__name__}")
    return record[key]


def line_number(path: str | Path, position: int) -> int:
    """The number, from 1, of the line that holds byte `position`, counted by reading up to it."""
    with open_input(path) as stream:
        number, left = 1, position
        while left and (block := stream.read(min(BLOCK, left))):
            number, left = number + block.count(b"\n"), left - len(block)
    return number


def _bad_line(path: str | Path, position: int, what: str) -> DataError:
    return bad_line(path, line_number(path, position), what)


def bad_line(path: str | Path, number: int, what: str) -> DataError:
    """The error for one line of a text file."""
    return DataError(
        f"{path}, line {number}: {what}",
        "every line must be one readable record",
        "mend or remove that line; a file of JSON that is not one object a line is no JSONL",
    )
