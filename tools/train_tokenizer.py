r"""Learn a tokenizer on the texts that will be trained on.

    python tools/train_tokenizer.py --input pubmed26n0001.xml.gz --vocab-size 32000 \
        --output-dir data/tokenizer
    -> data/tokenizer/tokenizer.json vocab.json merges.txt

    python tools/train_tokenizer.py --model-type sentencepiece-unigram ...
    -> data/tokenizer/tokenizer.model

The same inputs in the same order give the same files. tools/compare_tokenizers.py says which suits
a text.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.sentencepiece_model import train_sentencepiece
from megatron_yuyuan.data.sources import add_input_arguments, find_sources, read_texts
from megatron_yuyuan.data.tokenizer import Tokenizer, holds_tokenizer, read_tokenizer, train_bpe
from megatron_yuyuan.errors import ConfigError, DataError

LEARNERS: dict[str, Callable[[Iterator[str], int], Tokenizer]] = {
    "bytelevel-bpe": train_bpe,
    "sentencepiece-unigram": partial(train_sentencepiece, learner="unigram"),
    "sentencepiece-bpe": partial(train_sentencepiece, learner="bpe"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, learn, write, print a report. Raises YuyuanError."""
    parser = ArgumentParser(description=__doc__)
    add_input_arguments(parser)
    parser.add_argument(
        "--json-keys", default="text", metavar="KEY", help="key of a JSONL line that holds the text"
    )
    parser.add_argument(
        "--model-type",
        choices=tuple(LEARNERS),
        default="bytelevel-bpe",
        help="bytelevel-bpe (default) is GPT-2's kind, for which there is the fast encoder",
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="tokens, 257 or more"
    )
    parser.add_argument(
        "--output-dir", required=True, metavar="DIR", help="where the tokenizer's files go"
    )
    options = parser.parse_args(args)
    sources = find_sources(options.input, options.input_format)
    documents: Counter[str] = Counter()

    def texts() -> Iterator[str]:
        for text in read_texts(sources, options.json_keys, Counter()):
            documents["read"] += 1
            yield text

    tokenizer = LEARNERS[options.model_type](texts(), options.vocab_size)
    if not documents["read"]:
        raise DataError(
            f"no document in {', '.join(options.input)}",
            "nothing to learn from",
            "an input with text in it",
        )
    directory = Path(options.output_dir)
    if holds_tokenizer(directory) and not _is_there(directory, tokenizer):
        raise ConfigError(
            f"{options.output_dir} holds another tokenizer",
            "shards and checkpoints may have been made with it",
            "another --output-dir, or remove that one",
        )
    tokenizer.save(directory)
    print(
        f"learned {tokenizer.vocab_size} tokens from {documents['read']} documents "
        f"({len(sources)} files)"
    )
    print(f"written {directory.absolute()}: {', '.join(tokenizer.files())}")
    if tokenizer.vocab_size < options.vocab_size:
        print(
            f"note: the texts hold no more than {tokenizer.vocab_size} tokens; "
            f"{options.vocab_size} were asked for"
        )


def _is_there(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether a directory holds this very tokenizer: not another one, nor half of one."""
    try:
        return read_tokenizer(directory).fingerprint == tokenizer.fingerprint
    except DataError:
        return False


if __name__ == "__main__":
    run_command(main)
