"""Verify token shards to the last byte, and say what is in them.

    python tools/check_data.py data/pubmed_text_document
    python tools/check_data.py data/*_document.idx --vocab-file vocab.json --merge-file merges.txt

Checked are the structure, every token id, the ends of text and both checksums. With a tokenizer also
that it is the one that made the shard. Ends with status 2 at the first shard that is damaged.
"""

import json
import sys
from collections.abc import Iterator, Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.data_card import data_card, last_token, verify
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.tokenizer import (
    TOKENIZER_FIELDS,
    Tokenizer,
    add_tokenizer_arguments,
    named_tokenizer,
)

SHOWN = 5
"""Entries of a list that are printed; --json has all."""


def main(args: Sequence[str] | None = None) -> None:
    """Check each shard, then print its card. Raises YuyuanError."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "prefix", nargs="+", metavar="PREFIX", help="a shard, with or without .bin or .idx"
    )
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects")
    add_tokenizer_arguments(parser)
    options = parser.parse_args(args)
    tokenizer = None
    if any(getattr(options, name) != getattr(DataConfig(), name) for name in TOKENIZER_FIELDS):
        tokenizer = named_tokenizer(options)
    cards = []
    for prefix in options.prefix:
        cards.append(check(prefix, tokenizer))
        if not options.json:
            show(cards[-1])
    if options.json:
        print(json.dumps(cards, indent=2))


def check(prefix: str, tokenizer: Tokenizer | None) -> dict:
    """The card of a shard that is whole. Raises DataError."""
    shard = IndexedDataset(prefix)
    vocab_size, eod = shard.meta.get("vocab_size"), None
    if tokenizer is not None:
        shard.check_vocabulary(tokenizer.fingerprint, tokenizer.vocab_size)
        vocab_size = tokenizer.vocab_size
    if shard.meta.get("append_eod"):
        eod = tokenizer.eod if tokenizer is not None else last_token(shard)
    verify(shard, vocab_size, eod)
    return data_card(shard) | checked(shard, vocab_size, eod, tokenizer)


def checked(
    shard: IndexedDataset, vocab_size: int | None, eod: int | None, tokenizer: Tokenizer | None
) -> dict[str, list[str]]:
    """What was compared with something, and what was not: a shard of Megatron-LM's says little about
    itself."""
    checks = {
        "structure": True,
        "checksums": bool(shard.meta),
        "ids": vocab_size is not None,
        "ends of text": eod is not None,
        "tokenizer": tokenizer is not None and bool(shard.meta),
    }
    verified = [name for name, done in checks.items() if done]
    return {"verified": verified, "not_verified": [name for name in checks if name not in verified]}


def show(card: dict) -> None:
    """Print a card: a table on a terminal, `name: value` lines elsewhere."""
    lines = list(rows(card))
    if not sys.stdout.isatty():
        print("\n".join(f"{name}: {value}" for name, value in lines))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(card["prefix"]), show_header=False)
    for name, value in lines:
        table.add_row(Text(name), Text(value))  # no markup: texts of the data stand in it
    Console().print(table)


def rows(card: dict, above: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of every value; those of a table within under `name.inner`."""
    for key, value in card.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            yield from rows(value, f"{name}.")
        else:
            yield name, text(value)


def text(value) -> str:
    """One value for a person to read."""
    if isinstance(value, list):
        more = f", and {len(value) - SHOWN:,} more" if len(value) > SHOWN else ""
        return ", ".join(text(item) for item in value[:SHOWN]) + more
    if isinstance(value, dict):
        return " ".join(f"{name} {text(item)}" for name, item in value.items())
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    run_command(main)
