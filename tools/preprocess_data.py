r"""Turn raw text or questions into token shards that pretrain_gpt.py and finetune_qa.py read.

    python tools/preprocess_data.py --input pubmed26n0001.xml.gz --output-prefix data/pubmed \
        --vocab-file vocab.json --merge-file merges.txt --append-eod --workers 8
    -> data/pubmed_text_document.bin .idx .meta.json

    python tools/preprocess_data.py --input MedQuAD/ --output-prefix data/medquad ...
    -> data/medquad_{train,valid,test}.jsonl and data/medquad_{train,valid,test}_qa_document.bin ...

The output is the same for any number of workers. An error leaves nothing behind.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.files import AtomicFiles, describe_source
from megatron_yuyuan.data.indexed_dataset import IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.medquad import SPLITS, assign_splits, write_jsonl
from megatron_yuyuan.data.sources import (
    FORMATS,
    Source,
    find_sources,
    hold_questions,
    read_questions,
    read_texts,
)
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer, open_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError

BATCH = 1000
"""Documents that the tokenizer's threads share at a time."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, write the shards, print a report. Raises YuyuanError."""
    options, started, dropped = _parse(args), time.monotonic(), Counter()
    if options.workers:
        # the tokenizer reads this when it first starts its threads
        os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    tokenizer = open_tokenizer(
        DataConfig(
            tokenizer_type=options.tokenizer_type,
            vocab_file=options.vocab_file,
            merge_file=options.merge_file,
            tokenizer_model=options.tokenizer_model,
        )
    )
    sources = find_sources(options.input, options.input_format)
    is_qa = hold_questions(sources)
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
    _report(sources, shards, dropped, time.monotonic() - started)
    if not description["append_eod"]:
        print("note: no end of text between documents; --append-eod adds it")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, or folders to search"
    )
    parser.add_argument(
        "--input-format", choices=FORMATS, default="auto", help="auto looks into each file"
    )
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
        "--tokenizer-type",
        default="GPT2BPETokenizer",
        choices=("GPT2BPETokenizer", "HuggingFaceTokenizer"),
    )
    parser.add_argument(
        "--vocab-file", default="", metavar="FILE", help="GPT-2's vocab.json (encoder.json)"
    )
    parser.add_argument(
        "--merge-file", default="", metavar="FILE", help="GPT-2's merges.txt (vocab.bpe)"
    )
    parser.add_argument(
        "--tokenizer-model", default="", metavar="PATH", help="a tokenizer.json or its directory"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(args)
    if options.workers < 0:
        raise ConfigError(
            f"workers={options.workers} is negative", "threads are counted", "--workers 4"
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
        texts = read_texts(sources, key, dropped)
        while batch := list(islice(texts, BATCH)):
            for ids in tokenizer.encode_batch(batch):
                if ids:
                    shard.add_document([ids + end])
                else:
                    dropped["empty text"] += 1
        shard.finish(description)
        shards.append(shard)
    return shards


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
            print(f"note: {split or 'the input'} is empty: no shard")
            continue
        prefix = f"{options.output_prefix}_{split}" if split else options.output_prefix
        if split:
            write_jsonl(files.open(f"{prefix}.jsonl"), chosen)
        shard = IndexedDatasetWriter(
            f"{prefix}_qa_document", dtype_for(tokenizer.vocab_size), files
        )
        for pair in chosen:
            shard.add_document(
                [
                    TEMPLATE.encode_prompt(tokenizer, pair.question),
                    TEMPLATE.encode_answer(tokenizer, pair.answer),
                ]
            )
        shard.finish(description)
        shards.append(shard)
    return shards


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
