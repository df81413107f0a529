"""Shards: Megatron's bytes, nothing damaged is opened, nothing half is left."""

import errno
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from megatron_yuyuan.data import shard_index
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.shard_index import HEADER
from megatron_yuyuan.errors import DataError

DOCUMENTS = [[[5, 6, 7]], [[1], [2, 3]], [[9, 65499]], [[4, 4, 4, 4], [8]]]
"""Six sequences in four documents."""
TOKENS = [token for document in DOCUMENTS for sequence in document for token in sequence]
SEQUENCES = sum(len(document) for document in DOCUMENTS)


def write(prefix, documents=DOCUMENTS, dtype=np.uint16, description=None):
    with IndexedDatasetWriter(prefix, dtype) as shard:
        for document in documents:
            shard.add_document(document)
        shard.finish(description)
    return prefix


@pytest.fixture(params=[(shard_index.BLOCK, 2), (2, 3)], ids=["one block", "blocks of two"])
def blocks(request, monkeypatch):
    """Entries of an .idx that are written or checked at a time, and threads that check them."""
    monkeypatch.setattr(shard_index, "BLOCK", request.param[0])
    monkeypatch.setattr(shard_index, "THREADS", request.param[1])


def megatron():
    return pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="needs megatron-core, the reference"
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_bytes_are_those_that_megatron_core_writes(tmp_path, blocks, dtype):
    import torch

    theirs = megatron().IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in DOCUMENTS:
        flat = [token for sequence in document for token in sequence]
        theirs.add_document(torch.tensor(flat), [len(sequence) for sequence in document])
    theirs.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours", dtype=dtype)
    for suffix in ("bin", "idx"):
        ours = (tmp_path / f"ours.{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs.{suffix}").read_bytes()
        assert len(ours) > 20  # not vacuous

    shard = IndexedDataset(tmp_path / "theirs")  # ours reads theirs, which has no .meta.json
    assert [[list(s) for s in shard.document(i)] for i in range(4)] == DOCUMENTS
    reread = megatron().IndexedDataset(str(tmp_path / "ours"))
    assert [list(map(int, reread[i])) for i in range(SEQUENCES)] == [
        s for document in DOCUMENTS for s in document
    ]
    assert list(reread.document_indices) == [0, 1, 3, 4, 6]


@pytest.mark.parametrize("size", [1, 65499, 65500, 100000])
def test_dtype_rule_is_megatrons(size):
    assert dtype_for(size) == megatron().DType.optimal_dtype(size)


def test_reader_gives_back_what_was_written(tmp_path):
    shard = IndexedDataset(write(tmp_path / "shard", description={"kind": "text"}))
    assert (shard.num_documents, shard.num_sequences, shard.num_tokens) == (4, 6, len(TOKENS))
    assert list(shard.tokens(2, 6)) == TOKENS[2:6]
    assert [shard.document_start(i) for i in range(5)] == [0, 3, 6, 8, 13]
    assert [list(s) for s in shard.document(-1)] == DOCUMENTS[-1]
    assert shard.meta["kind"] == "text" and shard.meta["largest_token_id"] == 65499
    with pytest.raises(IndexError):
        shard.tokens(0, 14)
    with pytest.raises(IndexError):
        shard.document(4)
    copy = pickle.loads(pickle.dumps(shard))
    assert list(copy.tokens(0, 13)) == TOKENS
    assert shard.documents_at(np.arange(13)).tolist() == [0] * 3 + [1] * 3 + [2] * 2 + [3] * 5


def test_empty_sequences_and_an_empty_shard_are_read(tmp_path):
    shard = IndexedDataset(write(tmp_path / "holes", [[[], [1]], [[]]]))
    assert [[list(s) for s in shard.document(i)] for i in (0, 1)] == [[[], [1]], [[]]]
    assert [shard.document_start(i) for i in range(3)] == [0, 1, 1]
    assert shard.documents_at(np.array([0])).tolist() == [0]
    empty = IndexedDataset(write(tmp_path / "empty", []))
    assert (empty.num_documents, empty.num_tokens, empty.document_start(0)) == (0, 0, 0)


LENGTHS, POINTERS = HEADER.size, HEADER.size + 4 * SEQUENCES
INDICES = POINTERS + 8 * SEQUENCES


def put(layout, offset, value):
    def mutate(data):
        struct.pack_into(layout, data, offset, value)

    return mutate


def cut(size):
    def mutate(data):
        del data[size:]

    return mutate


def grow(count):
    def mutate(data):
        data.extend(bytes(count))

    return mutate


MUTATIONS = {
    "idx missing": ("idx", None, "cannot read"),
    "bin missing": ("bin", None, "cannot read"),
    "idx empty": ("idx", cut(0), "bytes of the .idx"),
    "idx cut in the header": ("idx", cut(20), "bytes of the .idx"),
    "idx cut in half": ("idx", cut(INDICES), "bytes of the .idx"),
    "idx with stray bytes": ("idx", grow(100), "bytes of the .idx"),
    "magic": ("idx", put("<c", 0, b"X"), "magic"),
    "version": ("idx", put("<Q", 9, 2), "version"),
    "dtype unknown": ("idx", put("<B", 17, 99), "dtype code"),
    "dtype float": ("idx", put("<B", 17, 7), "dtype code"),
    "dtype signed": ("idx", put("<B", 17, 3), "dtype code"),
    "dtype wider": ("idx", put("<B", 17, 4), "pointer of sequence 1"),
    "sequence count": ("idx", put("<Q", 18, SEQUENCES + 1), "bytes of the .idx"),
    "sequence count huge": ("idx", put("<Q", 18, 2**63), "bytes of the .idx"),
    "document count": ("idx", put("<Q", 26, 4), "bytes of the .idx"),
    "a length longer by 2": ("idx", put("<i", LENGTHS + 4, 3), "pointer of sequence 2"),
    "the last length longer by 2": ("idx", put("<i", POINTERS - 4, 3), "bytes of the .bin"),
    "a length of -1": ("idx", put("<i", LENGTHS, -1), "length of sequence 0"),
    "a pointer": ("idx", put("<q", POINTERS + 16, 2), "pointer of sequence 2"),
    "a pointer below zero": ("idx", put("<q", POINTERS, -2), "pointer of sequence 0"),
    "first document": ("idx", put("<q", INDICES, 1), "first document index"),
    "last document": ("idx", put("<q", INDICES + 32, 7), "last document index"),
    "a document past the end": ("idx", put("<q", INDICES + 16, 99), "document index"),
    "documents not ascending": ("idx", put("<q", INDICES + 8, 4), "document index 2"),
    "bin cut in half": ("bin", cut(14), "bytes of the .bin"),
    "bin empty": ("bin", cut(0), "bytes of the .bin"),
    "bin with stray bytes": ("bin", grow(100), "bytes of the .bin"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_damaged_shard_is_refused_even_without_its_meta_json(tmp_path, blocks, name):
    prefix = write_damaged(tmp_path, name)
    with pytest.raises(DataError) as error:
        IndexedDataset(prefix)
    assert MUTATIONS[name][2] in error.value.what


def write_damaged(folder, name):
    """A shard without .meta.json, damaged after it has been seen to open."""
    suffix, mutate, _ = MUTATIONS[name]
    folder.mkdir(exist_ok=True)
    prefix = write(folder / "shard")
    (folder / "shard.meta.json").unlink()
    IndexedDataset(prefix)  # not vacuous: whole, it opens
    damaged = folder / f"shard.{suffix}"
    if mutate is None:
        damaged.unlink()
    else:
        data = bytearray(damaged.read_bytes())
        mutate(data)
        damaged.write_bytes(data)
    return prefix


OPEN_ALL = """
import sys
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.errors import DataError
for prefix in sys.argv[1:]:
    try:
        IndexedDataset(prefix)
    except DataError as error:
        print(error.what)
    else:
        print("opened")
"""


def test_damage_is_refused_also_without_asserts(tmp_path):
    write(tmp_path / "whole")
    prefixes = [write_damaged(tmp_path / f"{n}", name) for n, name in enumerate(MUTATIONS)]
    command = [sys.executable, "-O", "-c", OPEN_ALL, str(tmp_path / "whole"), *map(str, prefixes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    whole, *said = ended.stdout.splitlines()
    assert whole == "opened" and len(said) == len(MUTATIONS)
    for what, (_, _, field) in zip(said, MUTATIONS.values(), strict=True):
        assert field in what


@pytest.mark.parametrize("count", [1, 2])
def test_where_documents_are_alike_a_border_that_moved_is_seen(tmp_path, blocks, count):
    prefix = write(tmp_path / "shard", [[[1]] * count] * 5)
    index = tmp_path / "shard.idx"
    data, at = bytearray(index.read_bytes()), HEADER.size + 12 * 5 * count + 8 * 2
    struct.pack_into("<q", data, at, 2 * count - 1)
    index.write_bytes(data)
    with pytest.raises(DataError, match=f"index 2: expected {2 * count}, found {2 * count - 1}"):
        IndexedDataset(prefix)
    (tmp_path / "shard.meta.json").unlink()
    IndexedDataset(prefix)  # a shard that nothing describes may be so


@pytest.mark.parametrize(
    ("field", "value"),
    [("sequences", 5), ("documents", 5), ("format", "other"), ("bin", {"bytes": 1})],
)
def test_a_meta_json_of_another_shard_is_refused(tmp_path, field, value):
    prefix, path = write(tmp_path / "shard"), tmp_path / "shard.meta.json"
    meta = json.loads(path.read_text())
    changed = meta[field] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(meta | {field: changed}))
    with pytest.raises(DataError, match=f"{field}.* .meta.json: expected"):
        IndexedDataset(prefix)


def test_meta_json_catches_what_the_index_cannot_know(tmp_path):
    """Of documents that are not alike: only the checksum says where one ends."""
    prefix, index = write(tmp_path / "shard"), tmp_path / "shard.idx"
    data = bytearray(index.read_bytes())
    struct.pack_into("<q", data, INDICES + 8, 2)  # a border between documents, moved: consistent
    index.write_bytes(data)
    with pytest.raises(DataError, match=r"sha256 of the .idx: expected .*, found"):
        IndexedDataset(prefix)
    wrong = (meta_text(tmp_path, documents="4"), meta_text(tmp_path, sequences_per_document="1"))
    for text in ("{", "[]", "{}", *wrong):
        (tmp_path / "shard.meta.json").write_text(text)
        with pytest.raises(DataError, match="cannot be read"):
            IndexedDataset(prefix)


def test_a_shard_of_another_tokenizer_is_refused(tmp_path):
    shard = IndexedDataset(
        write(
            tmp_path / "shard", description={"tokenizer_fingerprint": "aaaa", "vocab_size": 65500}
        )
    )
    shard.check_vocabulary("aaaa", 65500)
    with pytest.raises(DataError, match=r"aaaa.*bbbb"):
        shard.check_vocabulary("bbbb", 65500)
    with pytest.raises(DataError, match="token id 65499"):
        shard.check_vocabulary("aaaa", 65499)
    (tmp_path / "shard.meta.json").unlink()
    foreign = IndexedDataset(tmp_path / "shard")
    foreign.check_vocabulary("bbbb", 65500)  # nothing says who made it: the ids are looked at
    with pytest.raises(DataError, match="token id 65499"):
        foreign.check_vocabulary("bbbb", 65499)


def meta_text(folder, **changes) -> str:
    return json.dumps(json.loads((folder / "shard.meta.json").read_text()) | changes)


def test_ranks_share_the_search_for_an_id_that_is_too_large(tmp_path):
    write(tmp_path / "shard", [[[7] * 10], [[7, 7, 7, 7, 300]]])
    (tmp_path / "shard.meta.json").unlink()
    shard = IndexedDataset(tmp_path / "shard")
    for rank in range(3):
        shard.check_vocabulary("aaaa", 300 if rank < 2 else 301, rank, 3)
    with pytest.raises(DataError, match="token id 300"):
        shard.check_vocabulary("aaaa", 300, 2, 3)


def test_many_documents_at_once_are_the_same_bytes(tmp_path, blocks):
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 9, 500)
    ids = generator.integers(0, 60000, lengths.sum()).astype(np.uint16)
    documents = [[part] for part in np.split(ids, lengths.cumsum()[:-1])]
    write(tmp_path / "singly", documents)
    with IndexedDatasetWriter(tmp_path / "at once", np.uint16) as shard:
        cut = lengths[:200].sum()
        shard.add_documents(ids[:cut], lengths[:200].astype(np.int32))
        shard.add_documents(ids[:0], lengths[:0])
        shard.add_documents(ids[cut:], lengths[200:])
        assert (shard.num_documents, shard.num_tokens) == (500, len(ids))
        shard.finish()
    for suffix in ("bin", "idx", "meta.json"):
        once = (tmp_path / f"at once.{suffix}").read_bytes()
        assert once == (tmp_path / f"singly.{suffix}").read_bytes()
    assert len(once) > 100  # not vacuous
    assert IndexedDataset(tmp_path / "at once").meta["sequences_per_document"] == 1


LONG = np.broadcast_to(np.uint16(0), 2**31)
"""As many zeros in two bytes."""


@pytest.mark.parametrize(
    ("ids", "lengths", "what"),
    [
        ([1, 2, 3], [1, 1], "2 lengths with the sum 2 for 3 ids"),
        ([1, 2, 3], [4, -1], "2 lengths with the sum 3 for 3 ids"),
        ([1, 2, 3], [], "0 lengths with the sum 0"),
        (LONG, [2**31], "1 lengths with the sum 2147483648"),
        ([1, -2], [2], "id -2 does not fit int32"),
        ([1, 2**40], [2], "id 1099511627776 does not fit int32"),
    ],
)
def test_documents_that_cannot_be_stored_are_refused(tmp_path, ids, lengths, what):
    with (
        pytest.raises(DataError, match=what),
        IndexedDatasetWriter(tmp_path / "shard", np.int32) as shard,
    ):
        shard.add_documents(np.asarray(ids), np.array(lengths, dtype=np.int64))
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_shard(tmp_path):
    ids = np.arange(30_000, dtype=np.uint16)
    tracemalloc.start()
    with IndexedDatasetWriter(tmp_path / "shard", np.uint16) as shard:
        for _ in range(50):
            shard.add_documents(ids, np.ones(len(ids), np.int32))
        shard.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shard.num_documents == 1_500_000 and peak < 6e6 < 12 * shard.num_documents


@pytest.mark.parametrize("token", [-1, 65536])
def test_an_id_the_dtype_cannot_hold_is_refused(tmp_path, token):
    with pytest.raises(DataError, match=f"id {token} does not fit uint16"):
        write(tmp_path / "shard", [[[1, token]]])
    assert not list(tmp_path.iterdir())


def test_an_unfinished_shard_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        IndexedDatasetWriter(tmp_path / "a/b", np.int32) as shard,
    ):
        shard.add_document([[1, 2]])
        assert [path.name[0] for path in (tmp_path / "a").iterdir()] == ["."]  # not vacuous
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with IndexedDatasetWriter(tmp_path / "b", np.int32) as shard:
        shard.add_document([[1, 2]])
    assert not list(tmp_path.iterdir())


def test_a_failed_rewrite_leaves_the_old_shard(tmp_path):
    write(tmp_path / "shard")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError):
        write(tmp_path / "shard", [[[1]], [[-1]]])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write(tmp_path / "shard", [[[1]]])
    assert IndexedDataset(tmp_path / "shard").num_tokens == 1


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(DataError, match=r"cannot write .*shard.bin: No space left"),
        AtomicFiles() as files,
    ):
        IndexedDatasetWriter(tmp_path / "shard", np.int32, files)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_more_than_two_to_the_31_tokens(tmp_path):
    count = 2**31 + 1000
    half = count // 2
    with open(tmp_path / "big.bin", "wb") as stream:  # sparse: a few KB on disk
        stream.seek(2 * (count - 3))
        stream.write(np.array([7, 8, 9], np.uint16).tobytes())
    (tmp_path / "big.idx").write_bytes(
        HEADER.pack(b"MMIDIDX\x00\x00", 1, 8, 2, 3)
        + np.array([half, half], "<i4").tobytes()
        + np.array([0, 2 * half, 0, 1, 2], "<i8").tobytes()
    )
    shard = IndexedDataset(tmp_path / "big")
    assert shard.num_tokens == count
    assert shard.tokens(count - 3, count).tolist() == [7, 8, 9]
    assert shard.document(1)[0][-3:].tolist() == [7, 8, 9]
    assert [shard.document_start(i) for i in range(3)] == [0, half, count]


def test_meta_json_says_what_the_shard_is(tmp_path):
    description = {"kind": "qa", "sources": [{"file": "x", "bytes": 1, "sha256": "0"}]}
    write(tmp_path / "shard", description=description)
    meta = json.loads((tmp_path / "shard.meta.json").read_text())
    assert meta["documents"] == 4 and meta["sequences"] == 6 and meta["tokens"] == 13
    assert meta["bin"]["bytes"] == 26 and len(meta["bin"]["sha256"]) == 64
    assert meta["kind"] == "qa" and meta["sources"] == description["sources"]
