r"""Turn raw text or questions into token shards that pretrain_gpt.py and finetune_qa.py read.

    python tools/preprocess_data.py --input pubmed26n0001.xml.gz --output-prefix data/pubmed \
        --vocab-file vocab.json --merge-file merges.txt --append-eod --workers 8
    -> data/pubmed_text_document.bin .idx .meta.json

    python tools/preprocess_data.py --input MedQuAD/ --output-prefix data/medquad ...
    -> data/medquad_{train,valid,test}.jsonl and data/medquad_{train,valid,test}_qa_document.bin ...

The output is the same for any number of workers. An error leaves nothing behind. Texts are divided
into training, validation and test by pretrain_gpt.py --split, questions here.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, add_config_argument, run_command
from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.files import AtomicFiles, describe_source
from megatron_yuyuan.data.indexed_dataset import IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.medquad import SPLITS, assign_splits, write_jsonl
from megatron_yuyuan.data.sources import (
    Source,
    add_input_arguments,
    find_sources,
    hold_questions,
    read_questions,
    read_texts,
)
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer, open_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError

TOKENIZER = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")
"""The fields of DataConfig that name a tokenizer."""
BATCH = 1000
"""Documents that the tokenizer's threads share at a time."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, write the shards, print a report. Raises YuyuanError."""
    options, started, dropped = _parse(args), time.monotonic(), Counter()
    if options.workers:
        # the tokenizer reads this when it first starts its threads
        os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    tokenizer = open_tokenizer(DataConfig(**{name: getattr(options, name) for name in TOKENIZER}))
    sources = find_sources(options.input, options.input_format)
    is_qa = hold_questions(sources)
    if options.split and not is_qa:
        raise ConfigError(
            f"--split is given, and {sources[0].path} holds texts",
            "texts are divided at training time, so one shard serves every division",
            "leave it out here, and give it to pretrain_gpt.py --split 949,50,1",
        )
    description = {
        "kind": "qa" if is_qa else "text",
        "append_eod": is_qa or options.append_eod,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "sources": [describe_source(source.path) for source in sources],
    }
    with AtomicFiles() as files:
        write = _write_questions if is_qa else _write_texts
        shards = write(sources, options, tokenizer, description, files, dropped)
        if not any(shard.num_documents for shard in shards):
            raise DataError(
                f"no document in {', '.join(options.input)}",
                f"dropped: {_counts(dropped)}",
                "an input with text in it, or another --input-format",
            )
    if is_qa:
        _clear_empty_parts(options.output_prefix, shards, sources)
    _report(sources, shards, dropped, time.monotonic() - started)
    if not description["append_eod"]:
        print("note: no end of text between documents; --append-eod adds it")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_input_arguments(parser)
    parser.add_argument(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys of a JSONL line that hold text; each makes a shard",
    )
    parser.add_argument(
        "--output-prefix",
        required=True,
        metavar="PREFIX",
        help="what the outputs' names begin with",
    )
    parser.add_argument(
        "--append-eod", action="store_true", help="end every document with the end-of-text token"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="threads; 0 means one a core"
    )
    parser.add_argument(
        "--split",
        type=_shares,
        metavar="TRAIN,VALID,TEST",
        help="shares of the questions (medquad-xml: 90,5,5; qa-jsonl: not divided)",
    )
    parser.add_argument(
        "--log-interval",
        type=int,
        default=0,
        metavar="N",
        help="documents between lines of progress on stderr; 0 (default): none",
    )
    for name in TOKENIZER:
        add_config_argument(parser, name)
    options = parser.parse_args(args)
    if options.workers < 0:
        raise ConfigError(
            f"workers={options.workers} is negative", "threads are counted", "--workers 4"
        )
    if options.log_interval < 0:
        raise ConfigError(
            f"log_interval={options.log_interval} is negative",
            "documents are counted",
            "--log-interval 10000, or 0 for silence",
        )
    return options


def _shares(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if (
        len(parts) != 3
        or not all(part.strip().isdecimal() for part in parts)
        or not sum(map(int, parts))
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole shares such as 90,5,5")
    return tuple(map(int, parts))


def _write_texts(
    sources: list[Source],
    options,
    tokenizer: Tokenizer,
    description: dict,
    files: AtomicFiles,
    dropped: Counter,
) -> list[IndexedDatasetWriter]:
    """One shard a key: a document is one sequence, ended by the end of text if asked for."""
    end, shards = [tokenizer.eod] if options.append_eod else [], []
    for key in options.json_keys:
        shard = IndexedDatasetWriter(
            f"{options.output_prefix}_{key}_document", dtype_for(tokenizer.vocab_size), files
        )
        encoded = _encode(read_texts(sources, key, dropped), tokenizer)
        for ids in _progress(encoded, options.log_interval, shard.prefix):
            if ids:
                shard.add_document([ids + end])
            else:
                dropped["empty text"] += 1
        shard.finish(description)
        shards.append(shard)
    return shards


def _encode(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of every text, in order, encoded by the threads a batch at a time."""
    while batch := list(islice(texts, BATCH)):
        yield from tokenizer.encode_batch(batch)


def _progress(documents: Iterable, interval: int, prefix: str) -> Iterator:
    """The documents as they come, and a line on stderr after every `interval` of them (0: none)."""
    started = time.monotonic()
    for number, document in enumerate(documents, start=1):
        yield document
        if interval and number % interval == 0:
            rate = number / max(1e-9, time.monotonic() - started)
            name = Path(prefix).name
            print(
                f"{name}: {number} documents, {rate:.0f} documents/s", file=sys.stderr, flush=True
            )


def _write_questions(
    sources: list[Source],
    options,
    tokenizer: Tokenizer,
    description: dict,
    files: AtomicFiles,
    dropped: Counter,
) -> list[IndexedDatasetWriter]:
    """One shard a split: a document is two sequences, prompt and answer with its end of text."""
    pairs = list(read_questions(sources, dropped))
    shares = options.split or ((90, 5, 5) if sources[0].format == "medquad-xml" else None)
    splits = assign_splits(pairs, shares) if shares else [""] * len(pairs)
    description, shards = description | {"template": TEMPLATE.to_dict()}, []
    for split in SPLITS if shares else ("",):
        chosen = [pair for pair, own in zip(pairs, splits, strict=True) if own == split]
        if not chosen:
            continue
        prefix = f"{options.output_prefix}_{split}" if split else options.output_prefix
        if split:
            write_jsonl(files.open(f"{prefix}.jsonl"), chosen)
        shard = IndexedDatasetWriter(
            f"{prefix}_qa_document", dtype_for(tokenizer.vocab_size), files
        )
        for pair in _progress(chosen, options.log_interval, shard.prefix):
            shard.add_document(
                [
                    TEMPLATE.encode_prompt(tokenizer, pair.question),
                    TEMPLATE.encode_answer(tokenizer, pair.answer),
                ]
            )
        shard.finish(description)
        shards.append(shard)
    return shards


def _clear_empty_parts(
    prefix: str, shards: list[IndexedDatasetWriter], sources: list[Source]
) -> None:
    """Say which parts of divided questions are empty, and remove what an earlier call left under
    their names: its pairs may stand in another part now. An input is never removed."""
    names = {part: f"{prefix}_{part}_qa_document" for part in SPLITS}
    written, inputs = {shard.prefix for shard in shards}, {s.path.resolve() for s in sources}
    if not written & set(names.values()):
        return  # not divided
    for part, name in names.items():
        if name in written:
            continue
        own = (f"{name}.idx", f"{name}.bin", f"{name}.meta.json", f"{prefix}_{part}.jsonl")
        stale = [path for path in map(Path, own) if path.exists() and path.resolve() not in inputs]
        for path in stale:  # .idx first: without it there is no shard
            path.unlink()
        removed = f"; removed {', '.join(path.name for path in stale)}" if stale else ""
        print(f"note: {part} is empty: no shard{removed}")


def _report(
    sources: list[Source], shards: list[IndexedDatasetWriter], dropped: Counter, seconds: float
) -> None:
    formats = ", ".join(sorted({source.format for source in sources}))
    print(f"read      {len(sources)} files ({formats}) in {seconds:.1f} s")
    print(f"dropped   {_counts(dropped)}")
    for shard in shards:
        print(
            f"written   {Path(shard.prefix).absolute()}.bin .idx .meta.json: "
            f"{shard.num_documents} documents, {shard.num_tokens} tokens, "
            f"{shard.num_tokens / max(1, shard.num_documents):.1f} a document"
        )


def _counts(dropped: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "nothing"


if __name__ == "__main__":
    run_command(main)
