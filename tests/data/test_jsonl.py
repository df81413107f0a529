"""JSON lines: the same texts, repairs and refusals with and without msgspec, whole or in ranges."""

import builtins
import gzip
import json
import random
from itertools import pairwise

import pytest

from megatron_yuyuan.data import jsonl
from megatron_yuyuan.data.jsonl import line_number, read_json_lines, read_jsonl_texts
from megatron_yuyuan.errors import DataError


@pytest.fixture(params=["msgspec", "json"])
def library(request, monkeypatch):
    """The reader with and without the fast library."""
    if request.param == "msgspec":
        return pytest.importorskip("msgspec")
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "msgspec":
            raise ImportError
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    return None


def read(tmp_path, content, key="text"):
    """(texts, {what was repaired: places})."""
    (tmp_path / "in.jsonl").write_bytes(content)
    repaired: dict[str, list[int]] = {}
    texts = read_jsonl_texts(
        tmp_path / "in.jsonl", key, notice=lambda what, at: repaired.setdefault(what, []).append(at)
    )
    return list(texts), repaired


def test_texts_are_read_as_they_stand(tmp_path, library):
    texts = [
        "plain",
        'q"\\\n\t/',
        "Größe ≤ 5 µm",
        "😀 <|endoftext|>",
        "",
        "\u2028 line",
        "a" * 100_000,
    ]
    for ascii_only in (True, False):
        lines = [json.dumps({"id": 1, "text": t}, ensure_ascii=ascii_only) for t in texts]
        content = "\n".join(lines).encode()
        assert read(tmp_path, content) == (texts, {})
        assert read(tmp_path, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\n") + b"\n\n") == (
            texts,
            {},
        )


def test_what_is_no_text_is_repaired_and_told(tmp_path, library):
    lines = [
        b'{"text": "good"}',
        b'{"text": "bad \xff\xfe byte"}',
        b'{"text": "half \\ud800 pair, whole \\ud83d\\ude00"}',
        b'{"text": "nul \\u0000, bell \\u0007, back \\b, feed \\f, tab \\t."}',
        b'{"text": "math \\\\beta"}',
    ]
    starts = [sum(len(line) + 1 for line in lines[:n]) for n in range(5)]
    texts, repaired = read(tmp_path, b"\n".join(lines))
    assert texts == [
        "good",
        "bad \ufffd\ufffd byte",
        "half \ufffd pair, whole 😀",
        "nul , bell , back , feed , tab \t.",
        "math \\beta",
    ]
    assert repaired == {
        "bytes that are not UTF-8 or halves of surrogate pairs replaced": starts[1:3],
        "control characters removed": [starts[3]],
    }


BAD = {
    "__import__('os').system('touch created')": "Expecting value",
    '{"text": NaN}': "NaN is no JSON",
    '{"text": "a", "x": Infinity}': "Infinity is no JSON",
    '{"text": "a"': "Expecting",
    '{"text": "a"} {"text": "b"}': "Extra data",
    "[1]": "a list, not an object",
    '{"txt": "a"}': "no key 'text'; it has 'txt'",
    '{"text": 3}': "'text' is no string but int",
    '{"x": ' + "[" * 100_000: "nested deeper",
    '{"text": "a\x01"}': "control character",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:12])
def test_a_bad_line_is_named(tmp_path, library, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    content = b'{"text": "a"}\n\n' * 3 + line.encode() + b'\n{"text": "b"}\n'
    with pytest.raises(DataError, match=r"in\.jsonl, line 7: ") as error:
        read(tmp_path, content)
    assert BAD[line] in error.value.what
    assert ("--json-keys" in error.value.remedy) == BAD[line].startswith("no key")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


PIECES = [
    *(
        b"{",
        b"}",
        b'"',
        b"[",
        b"]",
        b":",
        b",",
        b"\\",
        b"\n",
        b"\r\n",
        b" ",
        b"\n\n",
        b"0",
        b"null",
    ),
    *(
        b'{"text": "a"}',
        b'{"text":\n"b"}',
        b'"x": ',
        b'"text": ',
        b"\\ud800",
        b"\\ud83d\\ude00",
        b"\xff",
    ),
    *(
        b"\\u0000",
        b"\x7f",
        b"\x00",
        b"\\b",
        b"\\\\b",
        b"\xc3\xa9",
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b"\xef\xbb\xbf",
    ),
    *(b"[" * 400, b"[" * 5000, b"\\u00e9", b"\\x", b"-", b"true"),
]


def outcome(tmp_path, content):
    """(texts, repairs), or the message."""
    try:
        return read(tmp_path, content)
    except DataError as error:
        return error.what


def test_both_libraries_read_the_same(tmp_path, monkeypatch):
    """Lines put together and damaged at random: texts, repairs and messages are equal."""
    pytest.importorskip("msgspec")
    draw, contents = random.Random(5), []
    for _ in range(3000):
        lines = [b'{"id": 1, "text": "Gout ' + draw.choice(PIECES) + b'"}' for _ in range(3)]
        if draw.random() < 0.6:
            lines.insert(draw.randrange(4), b"".join(draw.choices(PIECES, k=draw.randrange(1, 6))))
        content = b"\n".join(lines) + b"\n" * draw.randrange(3)
        place = draw.randrange(len(content))
        contents.append(content[:place] + draw.choice([b"", *PIECES]) + content[place:])
    fast = [outcome(tmp_path, content) for content in contents]
    monkeypatch.setattr(jsonl, "_block_decoder", lambda key: lambda block: None)
    careful = [outcome(tmp_path, content) for content in contents]
    for content, one, other in zip(contents, fast, careful, strict=True):
        assert one == other, content
    assert sum(isinstance(each, str) for each in fast) > 500  # refused
    assert sum(not isinstance(each, str) and bool(each[1]) for each in fast) > 100  # repaired


def test_numbers_of_lines_go_on_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "BLOCK", 64)
    (tmp_path / "in.jsonl").write_bytes(b'{"a": 1}\n' * 100)
    assert [number for number, _ in read_json_lines(tmp_path / "in.jsonl")] == list(range(1, 101))


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path, library, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1 << 16)
    monkeypatch.setattr(jsonl, "BLOCK", 1 << 10)
    with pytest.raises(DataError, match="line 2: a line longer"):
        read(tmp_path, b'{"text": "a"}\n{"text": "' + b"x" * (1 << 18))
    assert len(read(tmp_path, b'{"text": "' + b"x" * (1 << 15) + b'"}\n')[0][0]) == 1 << 15


def test_ranges_of_bytes_give_every_line_once(tmp_path, library, monkeypatch):
    monkeypatch.setattr(jsonl, "BLOCK", 64)
    draw = random.Random(1)
    texts = [f"{n} " + "é" * draw.randrange(60) for n in range(300)]
    file = tmp_path / "in.jsonl"
    file.write_bytes(
        b"".join(json.dumps({"text": t}, ensure_ascii=False).encode() + b"\n" for t in texts)
    )
    size = file.stat().st_size
    for pieces in (1, 2, 7, 100, 1000):
        ends = [size * piece // pieces for piece in range(pieces + 1)]
        spans = pairwise(ends)
        assert [t for span in spans for t in read_jsonl_texts(file, span=span)] == texts
    assert list(read_jsonl_texts(file, span=(size // 2, size))) != texts


def test_objects_have_their_line_numbers(tmp_path):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n\n{"b": 2}\n'))
    assert list(read_json_lines(tmp_path / "in.jsonl.gz")) == [(1, {"a": 1}), (3, {"b": 2})]
    assert [line_number(tmp_path / "in.jsonl.gz", at) for at in (0, 8, 9, 10, 99)] == [
        1,
        1,
        2,
        3,
        4,
    ]
    for line, what in ((b'{"a": "\xff"}', "utf-8"), (b'{"a": "\\ud800"}', "surrogate")):
        (tmp_path / "bad.jsonl").write_bytes(b"\n" + line)
        with pytest.raises(DataError, match=f"line 2: .*{what}"):
            list(read_json_lines(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize("key", ['a"b', "a\\b"])
def test_a_key_may_have_any_name(tmp_path, library, key):
    assert read(tmp_path, json.dumps({key: "t"}).encode(), key) == (["t"], {})
