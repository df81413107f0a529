"""tools/check_data.py: what is damaged is named, what is whole is described."""

import hashlib
import json

import numpy as np
import pytest

from megatron_yuyuan.data import data_card
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megatron_yuyuan.data.tokenizer import train_bpe

REPORT = {
    "kept": 1234,
    "dropped": {"too short": 3},
    "bad_files": [{"file": f"{n}.xml", "error": "cut"} for n in range(7)],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of 270 tokens and the flags that name it."""
    directory = tmp_path_factory.mktemp("tokenizer")
    made = train_bpe(iter(["the joints ache in the morning"] * 9), 270)
    made.save(directory)
    return made, ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", directory)


@pytest.fixture
def shard(tmp_path, tokenizer):
    """write(documents) makes a shard of sequences, each of which gets an end of text."""
    made, _ = tokenizer

    def write(documents, **changes):
        description = {
            "kind": "text",
            "append_eod": True,
            "tokenizer_fingerprint": made.fingerprint,
            "vocab_size": made.vocab_size,
            "sources": [{"file": "x.xml", "bytes": 12345, "sha256": "0"}],
            "report": REPORT,
        }
        with IndexedDatasetWriter(tmp_path / "shard", np.uint16) as writer:
            for ids in documents:
                writer.add_document([[*ids, made.eod]])
            writer.finish(description | changes)
        return tmp_path / "shard"

    return write


DOCUMENTS = [[1] * 9, [2] * 4, [3] * 30]


def test_a_whole_shard_is_described(shard, tokenizer, command, capsys):
    command("check_data", f"{shard(DOCUMENTS)}.idx", *tokenizer[1])
    shown = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["documents"] == "3" and shown["tokens"] == "46"
    lengths = {n: shown[f"tokens_per_document.{n}"] for n in ("mean", "median", "p99", "longest")}
    assert lengths == {"mean": "15.33", "median": "10", "p99": "10", "longest": "31"}
    assert shown["sources"] == "file x.xml bytes 12,345 sha256 0"
    assert shown["tokenizer_fingerprint"] == tokenizer[0].fingerprint
    assert shown["report.kept"] == "1,234" and shown["report.dropped.too short"] == "3"
    assert shown["report.bad_files"].startswith("file 0.xml error cut, file 1.xml")
    assert shown["report.bad_files"].endswith(", and 2 more")
    assert shown["verified"] == "structure, checksums, ids, ends of text, tokenizer"


def test_a_terminal_gets_a_table(shard, command, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    command("check_data", shard(DOCUMENTS))
    shown = capsys.readouterr().out
    assert "│ report.dropped.too short" in shown and "tokens: 46" not in shown


def test_json_has_everything(shard, command, capsys):
    prefix = shard(DOCUMENTS)
    command("check_data", prefix, prefix, "--json")
    cards = json.loads(capsys.readouterr().out)
    assert len(cards) == 2 and cards[0]["report"] == REPORT
    assert cards[0]["tokens_per_document"]["mean"] == 15.33


def test_a_shard_without_meta_json_says_what_was_not_verified(shard, tokenizer, command, capsys):
    prefix = shard(DOCUMENTS)
    prefix.with_suffix(".meta.json").unlink()
    command("check_data", prefix)
    left = "not_verified: checksums, ids, ends of text, tokenizer"
    assert capsys.readouterr().out.endswith(f"verified: structure\n{left}\n")
    command("check_data", prefix, *tokenizer[1])
    assert "verified: structure, ids\n" in capsys.readouterr().out


def test_an_empty_shard_and_one_of_questions(shard, tmp_path, command, capsys):
    command("check_data", shard([]), "--json")
    [card] = json.loads(capsys.readouterr().out)
    assert card["tokens_per_document"] == {} and card["documents"] == 0
    with IndexedDatasetWriter(tmp_path / "qa", np.uint16) as writer:
        writer.add_document([[1, 2], [3, 9]])
        writer.finish({"kind": "qa", "append_eod": True})
    command("check_data", tmp_path / "qa")
    assert "verified: structure, checksums, ends of text" in capsys.readouterr().out


def rewrite(prefix, place, token, claim=False):
    """Change one token of the .bin; with `claim`, let the .meta.json agree."""
    path = prefix.with_suffix(".bin")
    ids = np.frombuffer(path.read_bytes(), np.uint16).copy()
    ids[place] = token
    path.write_bytes(ids)
    if claim:
        meta = json.loads(prefix.with_suffix(".meta.json").read_text())
        meta["bin"]["sha256"] = hashlib.sha256(ids).hexdigest()
        path, largest = prefix.with_suffix(".meta.json"), int(ids.max())
        path.write_bytes(claimed(path.read_bytes(), bin=meta["bin"], largest_token_id=largest))


def claimed(data: bytes, **changes) -> bytes:
    """A .meta.json that says something else, as one without a checksum could."""
    meta = json.loads(data) | changes
    del meta["checksum"]
    return json.dumps(meta).encode()


def test_a_changed_token_is_refused(shard, refused):
    prefix = shard(DOCUMENTS)
    rewrite(prefix, 12, 4)
    assert "sha256 of the .bin: expected" in refused("check_data", prefix)
    rewrite(shard(DOCUMENTS), 12, 65535, claim=True)
    assert "token id 65535 in document 1; valid ids are 0 to 269" in refused("check_data", prefix)


def test_an_end_of_text_in_the_wrong_place_is_refused(shard, tokenizer, refused):
    eod, prefix = tokenizer[0].eod, shard(DOCUMENTS)
    rewrite(prefix, 12, eod, claim=True)
    assert "an end of text inside document 1" in refused("check_data", prefix)
    rewrite(shard(DOCUMENTS), 9, 7, claim=True)
    assert "ends of text: expected 3, found 2" in refused("check_data", prefix, *tokenizer[1])


@pytest.mark.parametrize(
    ("suffix", "mutate", "what"),
    [
        (".bin", lambda data: data[:-2], "bytes of the .bin"),
        (".bin", lambda data: data + b"00", "bytes of the .bin"),
        (".idx", lambda data: b"X" + data[1:], "magic of the .idx"),
        (".meta.json", lambda data: data.replace(b"append", b"prepend"), "checksum of the .meta"),
        (".meta.json", lambda data: claimed(data, tokens=47), "tokens, by"),
        (
            ".meta.json",
            lambda data: claimed(data, largest_token_id=268),
            "largest id: expected 268, found 269",
        ),
    ],
)
def test_damage_is_refused(shard, refused, suffix, mutate, what):
    prefix = shard(DOCUMENTS)
    path = prefix.with_suffix(suffix)
    path.write_bytes(mutate(path.read_bytes()))
    assert what in refused("check_data", prefix)


def test_lengths_and_pointers_that_were_changed_alike_are_seen_by_the_checksum(shard, refused):
    whole, prefix = shard(DOCUMENTS), shard(DOCUMENTS)
    ids = np.fromfile(whole.with_suffix(".bin"), np.uint16)
    index = prefix.with_suffix(".idx").read_bytes()
    with IndexedDatasetWriter(prefix.parent / "other", np.uint16) as writer:
        writer.add_documents(ids, np.array([9, 6, 31]))
        writer.finish()
    prefix.with_suffix(".idx").write_bytes((prefix.parent / "other.idx").read_bytes())
    assert prefix.with_suffix(".idx").read_bytes() != index
    IndexedDataset(prefix)  # opens: it is a shard
    path = prefix.with_suffix(".meta.json")
    path.write_bytes(claimed(path.read_bytes(), append_eod=False))
    assert "sha256 of the .idx: expected" in refused("check_data", prefix)


def test_another_tokenizer_is_refused(shard, refused, tmp_path):
    train_bpe(iter(["quite another text about other things"] * 9), 270).save(tmp_path / "other")
    flags = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tmp_path / "other")
    assert "its ids mean other texts" in refused("check_data", shard(DOCUMENTS), *flags)


@pytest.mark.parametrize("bins", [1 << 20, 8])
def test_quantiles_are_numpys_and_bounded_in_memory(tmp_path, monkeypatch, bins):
    monkeypatch.setattr(data_card, "BLOCK", 100)
    monkeypatch.setattr(data_card, "BINS", bins)
    lengths = np.random.default_rng(0).integers(1, 200, 999)
    with IndexedDatasetWriter(tmp_path / "shard", np.uint16) as writer:
        writer.add_documents(np.zeros(lengths.sum(), np.uint16), lengths)
        writer.finish()
    found = data_card.document_lengths(IndexedDataset(tmp_path / "shard"))
    exact = [int(np.quantile(lengths, q, method="lower")) for q in (0.5, 0.99)]
    width = lengths.max() // bins + 1
    assert [found["median"], found["p99"]] == [n // width * width for n in exact]
    assert (found["longest"], found["mean"]) == (lengths.max(), round(lengths.mean(), 2))


def test_brackets_of_the_data_are_no_markup(shard, command, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    command("check_data", shard(DOCUMENTS, report={"first": "[/INST] [gout] a"}))
    assert "[/INST] [gout] a" in capsys.readouterr().out
