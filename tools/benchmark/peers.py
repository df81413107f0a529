r"""The recipes that people put together today, with their own packages, for tools/benchmark/data.py.

    standard     JSONL -> shard as Megatron-LM's tools/preprocess_data.py goes about it: json, a pool of
                 processes with `tokenizers`, one `IndexedDatasetBuilder.add_item` a document
    fast         JSONL -> shard as its tools/preprocess_data_fast.py does: the whole file by gigatoken
    pubmed-text  PubMed XML -> JSONL by pubmed_parser

Written for this comparison; needs megatron-core, tokenizers, gigatoken and pubmed_parser.
"""

import argparse
import json
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
_encoder: Any = None


def main(args: Sequence[str] | None = None) -> None:
    """Run one recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=("standard", "fast", "pubmed-text"))
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--output", required=True, help="prefix of a shard, or a JSONL file")
    parser.add_argument("--vocab-file")
    parser.add_argument("--merge-file")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(args)
    {"standard": standard, "fast": fast, "pubmed-text": pubmed_text}[options.recipe](options)


def gpt2(options):
    """GPT-2's tokenizer, by the library `tokenizers`."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(options.vocab_file, options.merge_file)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer


def standard(options) -> None:
    """One document after another through a pool."""
    import torch

    with Pool(options.workers, _open_encoder, (options,)) as pool, open(options.input[0]) as lines:
        builder = _builder(options.output)
        for ids in pool.imap(_encode_line, lines, 32):
            builder.add_item(torch.IntTensor(ids))
            builder.end_document()
        builder.finalize(f"{options.output}.idx")


def _open_encoder(options) -> None:
    global _encoder
    _encoder = gpt2(options)


def _encode_line(line: str) -> list[int]:
    ids = _encoder.encode(json.loads(line)["text"]).ids
    return [*ids, _encoder.token_to_id(END_OF_TEXT)]


def _builder(prefix: str):
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    return IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)


def fast(options) -> None:
    """The whole file at once, on every core."""
    import awkward
    import gigatoken
    import numpy as np

    reference = gpt2(options)
    tokenizer = gigatoken.Tokenizer.from_json(reference.to_str())
    documents = tokenizer.encode_files(gigatoken.JsonlFileSource(options.input, field="text"))
    lengths = awkward.num(documents).to_numpy()
    ids = awkward.flatten(documents).to_numpy()
    ids = np.insert(ids, np.cumsum(lengths), reference.token_to_id(END_OF_TEXT))
    builder = _builder(options.output)
    for document in np.split(ids, np.cumsum(lengths + 1)[:-1]):
        builder.add_document(document, [len(document)])
    builder.finalize(f"{options.output}.idx")


def pubmed_text(options) -> None:
    """Title and abstract of every record that has one and is not deleted."""
    import pubmed_parser

    with open(options.output, "w", encoding="utf-8") as output:
        for file in options.input:
            for record in pubmed_parser.parse_medline_xml(str(Path(file))):
                if record["abstract"] and not record["delete"]:
                    text = f"{record['title']}\n{record['abstract']}"
                    output.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
