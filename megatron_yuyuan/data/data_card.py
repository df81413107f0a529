"""A shard verified to the last byte, and described: what `IndexedDataset` leaves out at opening."""

import hashlib

import numpy as np

from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.shard_index import expect
from megatron_yuyuan.errors import DataError

BLOCK = 1 << 20
"""Tokens or documents looked at in one go."""
BINS = 1 << 20
"""Of the histogram of document lengths: up to that many tokens, every length has its own."""


def verify(shard: IndexedDataset, vocab_size: int | None, eod: int | None) -> None:
    """Read every byte of an open shard once. Raises DataError.

    Each id is below `vocab_size`; `eod`, where it is given, ends each document and stands nowhere
    else; largest id and checksums are those of the .meta.json, if there is one.
    """
    digest, largest, ends = hashlib.sha256(), -1, 0
    for at in range(0, shard.num_tokens, BLOCK):
        ids = shard.tokens(at, min(at + BLOCK, shard.num_tokens))
        digest.update(ids.data)
        largest = max(largest, int(ids.max()))
        _check_ids(shard, at, ids, vocab_size)
        if eod is not None:
            ends += _check_ends(shard, at + np.flatnonzero(ids == eod))
    if eod is not None:
        expect(shard.prefix, "ends of text", shard.num_documents, ends)
    if shard.meta:
        with open(f"{shard.prefix}.idx", "rb") as stream:
            index = hashlib.file_digest(stream, "sha256").hexdigest()
        expect(shard.prefix, "sha256 of the .idx", shard.meta["idx"]["sha256"], index)
        expect(shard.prefix, "sha256 of the .bin", shard.meta["bin"]["sha256"], digest.hexdigest())
        expect(shard.prefix, "tokens, by the .meta.json", shard.meta["tokens"], shard.num_tokens)
        expect(shard.prefix, "largest id", shard.meta["largest_token_id"], largest)


def _check_ids(shard: IndexedDataset, at: int, ids: np.ndarray, vocab_size: int | None) -> None:
    limit = np.iinfo(np.int64).max if vocab_size is None else vocab_size
    if ids.min() < 0 or ids.max() >= limit:
        k = np.flatnonzero((ids < 0) | (ids >= limit))[0]
        [document] = shard.documents_at(np.array([at + k]))
        raise DataError(
            f"{shard.prefix}: token id {ids[k]} in document {document}; valid ids are 0 to {limit - 1}",
            "the embedding has no row for it",
            "the tokenizer the shard was made with, or preprocess again",
        )


def _check_ends(shard: IndexedDataset, places: np.ndarray) -> int:
    """That the tokens at `places` (n,) each end a document; return n."""
    documents = shard.documents_at(places)
    inside = np.flatnonzero(shard.document_starts(documents + 1) != places + 1)
    if inside.size:
        raise DataError(
            f"{shard.prefix}: an end of text inside document {documents[inside[0]]}",
            "a model would learn to stop in the middle of a text",
            "preprocess again; text that spells the end of text is encoded as ordinary characters",
        )
    return len(places)


def last_token(shard: IndexedDataset) -> int | None:
    """The id that ends the last document: the end of text of a shard that has one."""
    return (
        int(shard.tokens(shard.num_tokens - 1, shard.num_tokens)[0]) if shard.num_tokens else None
    )


def data_card(shard: IndexedDataset) -> dict:
    """What a shard is, as JSON values: its counts, its lengths, and all that its .meta.json says."""
    counts = {
        "prefix": shard.prefix,
        "documents": shard.num_documents,
        "sequences": shard.num_sequences,
        "tokens": shard.num_tokens,
        "tokens_per_document": document_lengths(shard),
        "dtype": shard.dtype.name,
    }
    return counts | {name: value for name, value in shard.meta.items() if name not in counts}


def document_lengths(shard: IndexedDataset) -> dict:
    """{"mean", "median", "p99", "longest"} tokens of a document; {} of no document.

    From a histogram of 8 MB: exact for documents below 1,048,576 tokens, and with a relative error
    of one part in that above.
    """
    if not shard.num_documents:
        return {}
    longest = max(int(lengths.max()) for lengths in _lengths(shard))
    width = longest // BINS + 1
    counts = np.zeros(longest // width + 1, dtype=np.int64)
    for lengths in _lengths(shard):
        counts += np.bincount(lengths // width, minlength=len(counts))
    ranks = [(shard.num_documents - 1) * share // 100 for share in (50, 99)]
    median, p99 = (np.searchsorted(counts.cumsum(), ranks, side="right") * width).tolist()
    mean = shard.num_tokens / shard.num_documents
    return {"mean": round(mean, 2), "median": median, "p99": p99, "longest": longest}


def _lengths(shard: IndexedDataset):
    """Tokens of each document, a block at a time."""
    for at in range(0, shard.num_documents, BLOCK):
        stop = min(at + BLOCK, shard.num_documents)
        yield np.diff(shard.document_starts(np.arange(at, stop + 1)))
