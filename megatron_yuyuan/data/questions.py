"""From questions and answers to shards: one a split, a document being two sequences, prompt and answer."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megatron_yuyuan import __version__
from megatron_yuyuan.data.files import AtomicFiles, describe_source
from megatron_yuyuan.data.indexed_dataset import IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.medquad import SPLITS, QuestionAnswer, assign_splits, write_jsonl
from megatron_yuyuan.data.sources import Source, read_questions
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import ConfigError, DataError

DEFAULT_SHARES = {"medquad-xml": (90, 5, 5)}
"""Format -> shares of training, validation and test; other formats are not divided unless asked."""


def write_questions(
    sources: Sequence[Source],
    shares: Sequence[int] | None,
    tokenizer: Tokenizer,
    prefix: str,
    files: AtomicFiles,
    skip_bad_files: bool = False,
) -> tuple[list[IndexedDatasetWriter], dict]:
    """Write PREFIX_{train,valid,test}_qa_document and .jsonl, or PREFIX_qa_document; returns the shards
    and a report as `make_report` makes it. Raises DataError: a bad file, no pair at all."""
    dropped: Counter[str] = Counter()
    bad: dict[Source, str] = {}
    pairs = list(read_questions(sources, dropped, bad if skip_bad_files else None))
    if not pairs:
        raise DataError(
            f"no question with an answer in {sources[0].path} and the other inputs",
            f"{len(sources)} files were read; dropped: {dict(dropped) or 'nothing'}",
            "an input with questions and answers in it, or another --input-format",
        )
    report = {
        "documents": len(pairs) + dropped.total(),
        "kept": len(pairs),
        "dropped": dict(sorted(dropped.items())),
        "bad_files": [{"file": str(source.path), "error": bad[source]} for source in bad],
    }
    description = {
        "kind": "qa",
        "version": __version__,
        "append_eod": True,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "template": TEMPLATE.to_dict(),
        "options": {"split": shares},
        "sources": [describe_source(source.path) for source in sources if source not in bad],
        "report": report,
    }
    splits = assign_splits(pairs, shares) if shares else [""] * len(pairs)
    shards = []
    for split in SPLITS if shares else ("",):
        chosen = [pair for pair, own in zip(pairs, splits, strict=True) if own == split]
        if chosen:
            name = f"{prefix}_{split}" if split else prefix
            if split:
                _refuse_input(Path(f"{name}.jsonl"), sources)
                write_jsonl(files.open(f"{name}.jsonl"), chosen)
            shards.append(_write_shard(f"{name}_qa_document", chosen, tokenizer, files))
            shards[-1].finish(description)
    return shards, report


def _refuse_input(output: Path, sources: Sequence[Source]) -> None:
    """Raises ConfigError for a part that would take the place of an input."""
    if output.resolve() in {source.path.resolve() for source in sources}:
        raise ConfigError(
            f"{output} is an input, and would be replaced by a part of it",
            "what stands in the other parts would be gone from it",
            "another --output-prefix",
        )


def _write_shard(
    prefix: str, pairs: Sequence[QuestionAnswer], tokenizer: Tokenizer, files: AtomicFiles
) -> IndexedDatasetWriter:
    shard = IndexedDatasetWriter(prefix, dtype_for(tokenizer.vocab_size), files)
    for pair in pairs:
        prompt = TEMPLATE.encode_prompt(tokenizer, pair.question)
        shard.add_document([prompt, TEMPLATE.encode_answer(tokenizer, pair.answer)])
    return shard


def remove_empty_parts(
    prefix: str, shards: Sequence[IndexedDatasetWriter], sources: Sequence[Source]
) -> list[str]:
    """Which parts of divided questions are empty, in words; what an earlier call left under their names
    is removed: its pairs may stand in another part now. An input is never removed."""
    names = {part: f"{prefix}_{part}_qa_document" for part in SPLITS}
    written, inputs = {shard.prefix for shard in shards}, {s.path.resolve() for s in sources}
    if not written & set(names.values()):
        return []  # not divided
    notes = []
    for part, name in names.items():
        if name in written:
            continue
        own = (f"{name}.idx", f"{name}.bin", f"{name}.meta.json", f"{prefix}_{part}.jsonl")
        stale = [path for path in map(Path, own) if path.exists() and path.resolve() not in inputs]
        for path in stale:  # .idx first: without it there is no shard
            path.unlink()
        removed = f"; removed {', '.join(path.name for path in stale)}" if stale else ""
        notes.append(f"{part} is empty: no shard{removed}")
    return notes
