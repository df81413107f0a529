"""Lines of questions and answers: JSON, or a Python dictionary as YuyuanQA's finetuning page shows
them, {'question':'...','answer':'...'}."""

import ast
import re
import warnings
from pathlib import Path

from megatron_yuyuan.data.jsonl import SURROGATE, bad_line, line_number, parse_line

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_question_line(
    line: bytes, path: str | Path, position: int, errors: str = "surrogateescape"
) -> dict:
    """The object on a line of JSON, or the dictionary of strings and numbers on a line that begins with
    `{'` or `{ '`, which no JSON does.

    A dictionary is taken apart by `ast.literal_eval`, never run. Raises DataError with the line number:
    neither of the two, or half of a surrogate pair.
    """
    record = _literal(line.removeprefix(BYTE_ORDER_MARK).strip())
    if record is None:
        return parse_line(line, path, position, errors)
    if any(SURROGATE.search(value) for value in record.values() if isinstance(value, str)):
        raise bad_line(path, line_number(path, position), "half of a surrogate pair in a string")
    return record


def _literal(line: bytes) -> dict | None:
    """The dictionary that a line spells, or None."""
    if not re.match(rb"\{\s*'", line):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a text is no mistake of ours
            record = ast.literal_eval(line.decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
        return None
    values = (isinstance(value, str | int | float | None) for value in record.values())
    return record if all(values) else None
