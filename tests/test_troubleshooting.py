"""docs/troubleshooting.md quotes messages that the code has."""

import ast
import re
import signal
from collections.abc import Iterator

import pytest
from commands import ROOT

from megatron_yuyuan.errors import LostError
from megatron_yuyuan.watch.heartbeat import Beat, Rank
from megatron_yuyuan.watch.verdict import died

PAGE = ROOT / "docs" / "troubleshooting.md"
LEAST = 6
"""Letters in the words that a text of the code has of its own, at least: `{what}` would fit everything."""
MISSING = " (torch's words)"
"""Stands behind a message that is not ours."""


def quoted(text: str) -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = re.findall(r"^\| `([^`]+)`(.*?) \|", text, re.MULTILINE)
    return [message for message, behind in rows if behind != MISSING]


def templates(code: str) -> Iterator[re.Pattern]:
    """Every text of a program as a pattern, with anything in place of what is filled in."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else None for v in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [node.value]
        else:
            continue
        words = re.findall(r"(?<!\w)[A-Za-z]+(?![\w=])", " {} ".join(p or "" for p in parts))
        if len("".join(words)) >= LEAST:
            yield re.compile("".join(".*" if p is None else re.escape(p) for p in parts))


@pytest.fixture(scope="module")
def known(repository) -> list[re.Pattern]:
    programs = [
        *(repository / "megatron_yuyuan").rglob("*.py"),
        *(repository / "tools").glob("*.py"),
    ]
    return [pattern for path in programs for pattern in templates(path.read_text(encoding="utf-8"))]


def test_every_message_of_the_page_stands_in_the_code(known):
    messages = quoted(PAGE.read_text())
    assert len(messages) > 40
    absent = [m for m in messages if not any(pattern.fullmatch(m) for pattern in known)]
    assert absent == [killed().what]  # which is put together from two texts


def killed() -> LostError:
    """What is said of a rank that a signal ended."""
    rank, beat = Rank(1, 2, "", "node7", 812), Beat("step", 50, 0.0)
    return died(rank, -signal.SIGKILL, beat, "", None)


def test_another_message_would_be_noticed(known):
    page = "| `num_attention_heads=12 cannot be split over tensor_model_parallel_size=8` | no |"
    [message] = quoted(page)
    assert not any(pattern.fullmatch(message) for pattern in known)


def test_the_example_is_what_the_code_says():
    """The three lines at the top of the page, from the code itself."""
    from megatron_yuyuan.config import Config
    from megatron_yuyuan.validation.layout import layout_problems

    config = Config().replace(
        num_layers=8,
        hidden_size=768,
        num_attention_heads=12,
        vocab_size=50257,
        tensor_model_parallel_size=8,
    )
    shown = next(f"error: {problem}" for problem in layout_problems(config, 8))
    assert shown in PAGE.read_text()
