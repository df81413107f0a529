"""Preprocessing as a whole: one shard, whatever the workers, tasks, kills and libraries."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_yuyuan.data import scan
from megatron_yuyuan.data.decontamination import Decontaminator
from megatron_yuyuan.data.encoder import open_encoder
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.preprocess import Preparation
from megatron_yuyuan.data.progress import Progress
from megatron_yuyuan.data.scan import Recipe
from megatron_yuyuan.data.sources import find_sources
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import DataError, UnsafeError

WORDS = "gout water fever plague insulin artery kidney iron zinc bone skin lung heart nerve".split()


def text(number: int, words: int = 40) -> str:
    """A text of its own for every number."""
    draw = random.Random(number)
    return f"Case {number}. " + " ".join(draw.choices(WORDS, k=words))


def citation(pmid: int, abstract: str, version: int = 1, more: str = "") -> str:
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article>'
        f"<ArticleTitle>Title {pmid}.</ArticleTitle><Abstract><AbstractText>{abstract}</AbstractText>"
        f"</Abstract>{more}</Article></MedlineCitation></PubmedArticle>\n"
    )


def article_set(*records: str) -> bytes:
    return f"<PubmedArticleSet>\n{''.join(records)}</PubmedArticleSet>".encode()


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(map(text, range(50)), 400)


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """So that a few kilobytes are many units."""
    monkeypatch.setattr(scan, "UNIT_BYTES", 4000)


DEFAULT = Recipe(append_eod=True)


def make(inputs, prefix, tokenizer, recipe=DEFAULT, workers=2, skip_bad_files=False):
    """Preprocess as the command does. Returns (shard, report)."""
    sources = find_sources(list(map(str, inputs)), skip_bad_files=skip_bad_files)
    preparation = Preparation(sources, recipe, tokenizer, str(prefix), skip_bad_files)
    units = preparation.plan()
    with Progress(0) as progress:
        preparation.scan(units, open_encoder(tokenizer, "auto", np.dtype("<u2")), workers, progress)
    with AtomicFiles() as files:
        written = preparation.write(units, files)
    return IndexedDataset(written.writer.prefix), written.report


def texts_of(shard: IndexedDataset, tokenizer) -> list[str]:
    documents = [shard.document(index) for index in range(shard.num_documents)]
    assert all(len(document) == 1 and document[0][-1] == tokenizer.eod for document in documents)
    return [tokenizer.decode(document[0][:-1]) for document in documents]


def bytes_of(shard: IndexedDataset) -> list[bytes]:
    return [Path(f"{shard.prefix}.{end}").read_bytes() for end in ("bin", "idx", "meta.json")]


@pytest.fixture
def inputs(tmp_path) -> list[Path]:
    """PubMed files out of order, with a deletion and a repeat; JSONL in several forms."""
    folder = tmp_path / "in"
    (folder / "updatefiles").mkdir(parents=True)
    baseline = [citation(n, text(n)) for n in range(1, 40)]
    update = [
        citation(3, text(103), 2),
        citation(40, text(7)),
        "<DeleteCitation><PMID Version='1'>5</PMID></DeleteCitation>",
    ]
    (folder / "updatefiles" / "pubmed26n0002.xml.gz").write_bytes(
        gzip.compress(article_set(*update), mtime=0)
    )
    (folder / "zbaseline").mkdir()
    (folder / "zbaseline" / "pubmed26n0001.xml").write_bytes(article_set(*baseline))
    lines = b"".join(json.dumps({"text": text(n)}).encode() + b"\n" for n in range(200, 280))
    (folder / "a.jsonl").write_bytes(lines + b'{"text": "half \\ud800"}\n{"text": ""}\n')
    return [folder]


def test_what_is_kept_stands_in_the_order_of_the_input(tmp_path, inputs, tokenizer):
    shard, report = make(inputs, tmp_path / "out", tokenizer)
    pubmed = [f"Title {n}.\n{text(n)}" for n in range(1, 40) if n not in (3, 5)]
    update = [f"Title 3.\n{text(103)}", f"Title 40.\n{text(7)}"]
    assert texts_of(shard, tokenizer) == [
        *map(text, range(200, 280)),
        "half \ufffd",
        *pubmed,
        *update,
    ]
    assert report["kept"] == shard.num_documents == 120 and report["documents"] == 124
    assert report["dropped"] == {
        "a notice of deletion": 1,
        "deleted": 1,
        "an older version": 1,
        "no text": 1,
    }
    assert [seen["texts"] for seen in report["notes"].values()] == [1]
    assert shard.meta["report"] == report and shard.meta["options"]["languages"] == ["eng"]
    names = [source["file"] for source in shard.meta["sources"]]
    assert names == ["a.jsonl", "pubmed26n0001.xml", "pubmed26n0002.xml.gz"]


def test_the_same_shard_for_any_workers_units_and_tasks(tmp_path, inputs, tokenizer, monkeypatch):
    expected = bytes_of(make(inputs, tmp_path / "a", tokenizer, workers=1)[0])
    assert bytes_of(make(inputs, tmp_path / "b", tokenizer, workers=3)[0]) == expected
    monkeypatch.setattr(scan, "UNIT_BYTES", 1 << 30)
    assert bytes_of(make(inputs, tmp_path / "c", tokenizer)[0]) == expected
    monkeypatch.setattr(scan, "UNIT_BYTES", 1000)
    tasks = Preparation(
        find_sources([str(inputs[0])]), Recipe(append_eod=True), tokenizer, str(tmp_path / "d")
    )
    units, encoder = tasks.plan(), open_encoder(tokenizer, "reference", np.dtype("<u2"))
    assert len(units) > 10
    for index in (2, 0, 1):
        with (
            AtomicFiles() as files,
            pytest.raises(DataError, match="units of the input are not done"),
        ):
            tasks.write(units, files)
        with Progress(0) as progress:
            tasks.scan(units[index::3], encoder, 1, progress)
    with AtomicFiles() as files:
        written = tasks.write(units, files)
    assert bytes_of(IndexedDataset(written.writer.prefix)) == expected


def test_repeats_go_unless_they_are_asked_for(tmp_path, tokenizer):
    lines = [text(1), text(2), text(1), text(1) + " more", text(2)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    shard, report = make([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer)
    assert texts_of(shard, tokenizer) == [lines[0], lines[1], lines[3]]
    assert report["dropped"] == {"a repeated text": 2}
    recipe = Recipe(append_eod=True, keep_duplicates=True)
    assert (
        texts_of(make([tmp_path / "a.jsonl"], tmp_path / "b", tokenizer, recipe)[0], tokenizer)
        == lines
    )


def test_near_repeats_go_when_asked_for(tmp_path, tokenizer):
    pytest.importorskip("rensa")
    lines = [text(n, 120) for n in range(60)]
    near = [line.replace(" gout ", " gout, ", 1) + " Copyright." for line in lines[:10]]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": line}) for line in lines + near)
    )
    recipe = Recipe(append_eod=True, near_duplicates=True)
    shard, report = make([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer, recipe)
    assert report["dropped"] == {"nearly a repeated text": 10}
    assert texts_of(shard, tokenizer) == lines


def test_texts_of_an_evaluation_are_found_counted_and_named(tmp_path, tokenizer):
    """Row D18: 3 of 100 are planted."""
    planted = [text(n) for n in (1000, 1001, 1002)]
    (tmp_path / "test.json").write_text(
        json.dumps({"x": [{"context": [line]} for line in planted]})
    )
    lines = [text(n) for n in range(97)]
    for place, line in zip((5, 50, 95), planted, strict=True):
        lines.insert(place, f"Before. {line[10:]} After.")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    recipe = Recipe(append_eod=True, decontaminator=Decontaminator([tmp_path / "test.json"]))
    shard, report = make([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer, recipe)
    assert report["dropped"] == {"in an evaluation file": 3} and shard.num_documents == 97
    names = [f"a.jsonl, {f'Before. {line[10:]}'[:60]!r}" for line in planted]
    assert report["overlaps"] == [{"document": name, "in": "test.json"} for name in names]
    assert shard.meta["options"]["decontaminate"]["files"] == ["test.json"]


def test_a_bad_file_ends_it_or_is_left_out_whole(tmp_path, inputs, tokenizer):
    """The good units stay done; the bad file's good lines, in other units, are not used."""
    good = bytes_of(make(inputs, tmp_path / "good", tokenizer)[0])
    bad = inputs[0] / "b.jsonl"
    lines = [json.dumps({"text": text(n)}) for n in range(500, 560)]
    bad.write_text("\n".join([*lines, '{"text": ']))
    with pytest.raises(DataError, match=r"b\.jsonl, line 61: "):
        make(inputs, tmp_path / "out", tokenizer, workers=1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == [
        "out.partial"
    ]
    shard, report = make(inputs, tmp_path / "out", tokenizer, skip_bad_files=True)
    assert (
        report["bad_files"][0]["file"] == str(bad) and "line 61" in report["bad_files"][0]["error"]
    )
    assert report["kept"] == 120 and report["documents"] == 124
    assert bytes_of(shard)[:2] == good[:2]
    assert "b.jsonl" not in [source["file"] for source in shard.meta["sources"]]
    with pytest.raises(DataError, match="line 61"):  # what was skipped then is not accepted now
        make(inputs, tmp_path / "out", tokenizer)
    bad.write_text("\n".join(lines))
    assert make(inputs, tmp_path / "out", tokenizer)[0].num_documents == shard.num_documents + 60


def test_files_that_are_bad_from_their_first_byte_are_left_out_too(tmp_path, inputs, tokenizer):
    good = bytes_of(make(inputs, tmp_path / "good", tokenizer)[0])
    whole = (inputs[0] / "zbaseline" / "pubmed26n0001.xml").read_bytes()
    contents = {
        "empty.xml.gz": b"",
        "cut.xml.gz": gzip.compress(whole, mtime=0)[:40],
        "html.xml.gz": b"<html><p>Service unavailable</p></html>",
        "line.jsonl": b'{"text": \n',
        "unsafe.xml": b'<!DOCTYPE a [<!ENTITY b "c">]><a>' + whole[17:],
        "other.xml": whole,
    }
    for name, content in contents.items():
        (inputs[0] / name).write_bytes(content)
    (inputs[0] / "other.xml.md5").write_text("0" * 32)
    shard, report = make(inputs, tmp_path / "out", tokenizer, skip_bad_files=True)
    assert {Path(entry["file"]).name for entry in report["bad_files"]} == contents.keys()
    assert bytes_of(shard)[:2] == good[:2]
    for name in contents:
        with pytest.raises((DataError, UnsafeError)):
            make([inputs[0] / name], tmp_path / "alone", tokenizer)
    with pytest.raises(DataError, match="cannot read"):  # a path that is wrong is no bad file
        make([inputs[0] / "absent.xml"], tmp_path / "alone", tokenizer, skip_bad_files=True)


def test_a_file_that_joins_does_not_take_anothers_place(tmp_path, tokenizer):
    """The units of the files after it are done, under other numbers."""
    for name, first in (("a1", 0), ("b", 100), ("c", 200)):
        lines = [json.dumps({"text": text(n)}) for n in range(first, first + 12)]
        end = '\n{"text": ' if name == "b" else ""
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + end)
    files = [tmp_path / f"{name}.jsonl" for name in ("a1", "b", "c")]
    make(files, tmp_path / "out", tokenizer, skip_bad_files=True)
    (tmp_path / "a0.jsonl").write_text(json.dumps({"text": text(900)}))
    files = [tmp_path / "a0.jsonl", *files]
    shard, report = make(files, tmp_path / "out", tokenizer, skip_bad_files=True)
    assert [Path(entry["file"]).name for entry in report["bad_files"]] == ["b.jsonl"]
    assert shard.num_documents == 25


class Failing:
    """An encoder that finds the fast one to differ, or that gives no token for a blank."""

    def __init__(self, tokenizer, differs: bool):
        self.reference, self.differs = (
            open_encoder(tokenizer, "reference", np.dtype("<u2")),
            differs,
        )

    def encode(self, texts):
        if self.differs:
            raise DataError("the encoders differ", "why", "try")
        return self.reference.encode([each.strip(" ") for each in texts])


def test_an_encoder_that_differs_is_no_bad_file(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    preparation = Preparation(
        find_sources([str(tmp_path)]), DEFAULT, tokenizer, str(tmp_path / "p"), skip_bad_files=True
    )
    with Progress(0) as progress, pytest.raises(DataError, match="the encoders differ"):
        preparation.scan(preparation.plan(), Failing(tokenizer, True), 1, progress)


def test_a_text_without_a_token_is_dropped(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": " "}\n{"text": "b"}')
    preparation = Preparation(
        find_sources([str(tmp_path)]), DEFAULT, tokenizer, str(tmp_path / "p")
    )
    units = preparation.plan()
    with Progress(0) as progress:
        preparation.scan(units, Failing(tokenizer, False), 1, progress)
    with AtomicFiles() as files:
        report = preparation.write(units, files).report
    assert (report["kept"], report["dropped"]) == (2, {"no text": 1})
    assert texts_of(IndexedDataset(tmp_path / "p_text_document"), tokenizer) == ["a", "b"]


def test_the_name_of_the_end_of_text_is_counted_and_stays_text(tmp_path, tokenizer):
    """Row D11."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b <|endoftext|> c"}\n')
    shard, report = make([tmp_path / "a.jsonl"], tmp_path / "p", tokenizer)
    assert texts_of(shard, tokenizer) == ["a", "b <|endoftext|> c"]
    seen = {"texts": 1, "first": "a.jsonl, 'b <|endoftext|> c'"}
    assert report["notes"] == {"<|endoftext|> encoded as ordinary characters": seen}
    assert (shard.tokens(0, shard.num_tokens) == tokenizer.eod).sum() == 2


def test_what_a_killed_process_left_is_removed(tmp_path, inputs, tokenizer):
    (tmp_path / "out.partial" / "text").mkdir(parents=True)
    left = [
        tmp_path / "out.partial/text/.000001.tokens.h.7.tmp",
        tmp_path / ".out_text_document.bin.h.7.tmp",
    ]
    other = tmp_path / ".out_text_document2_text_document.bin.h.7.tmp"
    for path in (*left, other):
        path.write_bytes(b"1")
    make(inputs, tmp_path / "out", tokenizer)
    assert not any(path.exists() for path in left) and other.exists()


def test_an_input_or_an_option_that_changed_is_read_again(tmp_path, inputs, tokenizer):
    first = make(inputs, tmp_path / "out", tokenizer)[0].num_documents
    with open(inputs[0] / "a.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    assert make(inputs, tmp_path / "out", tokenizer)[0].num_documents == first + 1
    shard, _ = make(inputs, tmp_path / "out", tokenizer, Recipe())
    assert tokenizer.eod not in shard.tokens(0, shard.num_tokens)


def test_nothing_kept_and_no_room_are_refused_before_anything_is_written(
    tmp_path, tokenizer, monkeypatch
):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no document in") as error:
        make([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer)
    assert "1 no text" in error.value.why
    (tmp_path / "a.jsonl").write_text('{"text": "gout"}\n')
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 9}))
    with pytest.raises(DataError, match=r"needs \d+ bytes, 9 bytes are free"):
        make([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.partial"]


KILLS = """
import os, runpy, signal, sys
from multiprocessing import Value
from pathlib import Path
from megatron_yuyuan.data import scan

scan.UNIT_BYTES = 4000
main = runpy.run_path(sys.argv[1])["main"]
folder, args = Path(sys.argv[2]), sys.argv[3:]


def run(prefix, point):
    '''Preprocess in a process group that is killed at its point-th step on the disk. True: it was.'''
    steps = Value("i", 0)
    if (child := os.fork()) == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for name in ("replace", "fsync", "rmdir"):
            def step(*given, real=getattr(os, name), **options):
                with steps:
                    steps.value += 1
                    if steps.value == point:
                        os.killpg(0, signal.SIGKILL)
                return real(*given, **options)
            setattr(os, name, step)
        main([*args, "--output-prefix", str(folder / prefix)])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def content(prefix):
    names = (f"{prefix}_text_document.{end}" for end in ("bin", "idx", "meta.json"))
    return [(folder / name).read_bytes() for name in names]


assert not run("whole", 0)
for point in range(1, 1000, 3):
    if not run("out", point):
        break
    left = [path.name for path in folder.iterdir() if path.name.startswith("out_")]
    assert not any(name.endswith(".idx") for name in left) or content("out") == content("whole")
    assert not run("out", 0)
    assert content("out") == content("whole"), point
    assert not (folder / "out.partial").exists() and not list(folder.glob(".out*"))
    for path in folder.glob("out_*"):
        path.unlink()
    print(point)
"""


def test_killed_at_any_step_and_run_again_it_ends_in_the_same_bytes(
    tmp_path, inputs, tokenizer, repository
):
    """Row D08. The steps are the flushes, renames and removals on the disk, of all its processes."""
    tokenizer.save(tmp_path / "tokenizer")
    tool = repository / "tools" / "preprocess_data.py"
    flags = [
        "--tokenizer-type",
        "HuggingFaceTokenizer",
        "--tokenizer-model",
        tmp_path / "tokenizer",
    ]
    command = [tool, tmp_path, "--input", inputs[0], "--append-eod", "--workers", "2", *flags]
    done = subprocess.run(
        [sys.executable, "-c", KILLS, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed = done.stdout.split()
    assert len(killed) >= 20, killed


def test_a_bad_file_that_was_mended_is_read_again(tmp_path, tokenizer, capsys):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    (tmp_path / "in" / "b.jsonl.md5").write_text("0" * 32)
    first, _ = make([tmp_path / "in"], tmp_path / "out", tokenizer, skip_bad_files=True)
    assert first.num_documents == 1
    (tmp_path / "in" / "b.jsonl.md5").unlink()
    shard, report = make([tmp_path / "in"], tmp_path / "out", tokenizer, skip_bad_files=True)
    assert shard.num_documents == 2 and report["bad_files"] == []
    assert "made from other inputs" not in capsys.readouterr().err
