r"""Compare tokenizers on the texts that will be trained on.

    python tools/compare_tokenizers.py --input pubmed26n0001.xml.gz \
        --tokenizer gpt2=gpt2_vocab/ --tokenizer medical=data/tokenizer/ --output report.json

A tokenizer is a tokenizer.json, a SentencePiece .model, or a directory with either or with GPT-2's
pair of files. Fewer tokens a word: more text in a context, and fewer steps for the same text. A term
that is one token is learned as a whole.
"""

import argparse
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.sources import add_input_arguments, find_sources, read_texts
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.data.tokenizer_comparison import (
    MEDICAL_TERMS,
    Measures,
    TokenizerComparison,
    read_terms,
)
from megatron_yuyuan.errors import ConfigError

FORMAT = "megatron_yuyuan tokenizer comparison 1"


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print a table, write the report. Raises YuyuanError."""
    options = _parse(args)
    own = read_terms(options.terms) if options.terms else []
    terms = list(dict.fromkeys([*MEDICAL_TERMS, *own]))
    comparison = TokenizerComparison(_open(options.tokenizer), terms)
    sources = find_sources(options.input, options.input_format)
    texts = read_texts(sources, options.json_keys, Counter())
    comparison.read(islice(texts, options.documents))
    measures = comparison.measures()
    _print(comparison, measures)
    if options.output:
        report = {
            "format": FORMAT,
            "sources": [source.path.name for source in sources],
            "documents": comparison.documents,
            "words": comparison.words,
            "characters": comparison.characters,
            "bytes": comparison.num_bytes,
            "tokenizers": {name: asdict(measured) for name, measured in measures.items()},
        }
        with AtomicFiles() as files:
            files.open(options.output).write(json.dumps(report, indent=2).encode() + b"\n")
        print(f"written {Path(options.output).absolute()}")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_input_arguments(parser)
    parser.add_argument(
        "--json-keys", default="text", metavar="KEY", help="key of a JSONL line that holds the text"
    )
    parser.add_argument(
        "--tokenizer", action="append", required=True, metavar="NAME=PATH", help="one to compare"
    )
    parser.add_argument(
        "--documents", type=int, default=10_000, metavar="N", help="read at most (default: 10000)"
    )
    parser.add_argument(
        "--terms", metavar="FILE", help="terms to look at beside the built-in ones, one a line"
    )
    parser.add_argument("--output", metavar="FILE.json", help="where the report goes, too")
    options = parser.parse_args(args)
    if options.documents < 1:
        raise ConfigError(
            f"documents={options.documents} leaves nothing to compare",
            "tokens are counted in the first documents of the input",
            "--documents 10000",
        )
    return options


def _open(named: Sequence[str]) -> dict[str, Tokenizer]:
    """NAME=PATH ... as name -> tokenizer."""
    tokenizers = {}
    for given in named:
        name, separator, path = given.partition("=")
        if not (name and separator and path) or name in tokenizers:
            raise ConfigError(
                f"--tokenizer {given} is not a new NAME=PATH",
                "the report names every tokenizer",
                "--tokenizer gpt2=gpt2_vocab/ --tokenizer medical=data/tokenizer/",
            )
        tokenizers[name] = read_tokenizer(path)
    return tokenizers


def _print(comparison: TokenizerComparison, measures: dict[str, Measures]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column(no_wrap=True)
    for name in measures:
        table.add_column(Text(name), justify="right")  # a name is no markup
    for label, text in _rows(measures.values()):
        table.add_row(label, *text)
    console = Console()
    console.print(table)
    console.print(
        f"{comparison.documents:,} documents, {comparison.words:,} words between white space, "
        f"{comparison.num_bytes / 1e6:,.1f} MB; whole words are counted over runs of letters",
        highlight=False,
    )


def _rows(measures: Collection[Measures]) -> Iterator[tuple[str, list[str]]]:
    """(label, the value of each tokenizer as a person reads it), in the order of the table."""
    terms = next(iter(measures)).terms
    yield "vocabulary", [f"{m.vocabulary:,}" for m in measures]
    yield "tokens per word", [f"{m.tokens_per_word:.3f}" for m in measures]
    yield "bytes per token", [f"{m.bytes_per_token:.2f}" for m in measures]
    yield "characters per token", [f"{m.characters_per_token:.2f}" for m in measures]
    yield "words that are one token", [f"{m.whole_word_share:.1%}" for m in measures]
    yield f"of {terms} medical terms, one token", [f"{m.terms_of_one_token}" for m in measures]
    yield "tokens per medical term", [f"{m.tokens_per_term:.2f}" for m in measures]
    yield "texts that come back changed", [f"{m.changed_texts:,}" for m in measures]


if __name__ == "__main__":
    run_command(main)
