"""The tokenizer that a configuration, a file or a directory names, of whatever kind it is."""

import re
from argparse import Namespace, _ActionsContainer
from itertools import chain
from pathlib import Path

from megatron_yuyuan.cli import add_config_argument
from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.byte_level_bpe import ByteLevelBPE, train_bpe
from megatron_yuyuan.data.tokenizer_base import END_OF_TEXT, TOKENIZER_FILES, Tokenizer
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError

__all__ = [
    "END_OF_TEXT",
    "TOKENIZER_FIELDS",
    "Tokenizer",
    "add_tokenizer_arguments",
    "holds_tokenizer",
    "named_tokenizer",
    "open_tokenizer",
    "read_tokenizer",
    "train_bpe",
]

TOKENIZER_FIELDS = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")
"""The fields of DataConfig that name a tokenizer."""
GPT2_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
PICKLE = re.compile(
    rb"\x80[\x02-\x05]|\(?[ci][\w.]+\n[\w.]+\n|PK\x03\x04.{0,200}/data\.pkl", re.DOTALL
)
"""How pickles begin: those of protocol 2 and later, older ones that name a function first, torch's. No
tokenizer file does."""


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, a SentencePiece .model, or a directory with tokenizer.model,
    tokenizer.json, or vocab.json and merges.txt, the first of these that is there.

    Raises DataError (nothing there, not readable, no end of text, or one that a text can yield) and
    UnsafeError (a pickle).
    """
    path = Path(path)
    if not path.is_dir():
        return _read_model(path) if path.suffix == ".model" else _read_json(path)
    if (path / "tokenizer.model").exists():
        return _read_model(path / "tokenizer.model")
    if (path / "tokenizer.json").exists():
        return _read_json(path / "tokenizer.json")
    for vocab, merges in GPT2_PAIRS:
        if (path / vocab).exists() and (path / merges).exists():
            return _read_pair(path / vocab, path / merges)
    raise DataError(
        f"no tokenizer in {path}",
        "it holds neither tokenizer.json, nor tokenizer.model, nor vocab.json with merges.txt",
        "the directory that tools/train_tokenizer.py wrote, or a Hugging Face model's",
    )


def holds_tokenizer(directory: str | Path) -> bool:
    """Whether a directory has a file of a tokenizer, of whatever kind, if not all that it needs."""
    names = {*TOKENIZER_FILES, *chain.from_iterable(GPT2_PAIRS)}
    return any((Path(directory) / name).exists() for name in names)


def add_tokenizer_arguments(parser: _ActionsContainer) -> None:
    """The flags that name a tokenizer, as in training."""
    for name in TOKENIZER_FIELDS:
        add_config_argument(parser, name)


def named_tokenizer(options: Namespace) -> Tokenizer:
    """The tokenizer that the flags of `add_tokenizer_arguments` name. Raises as `open_tokenizer`."""
    return open_tokenizer(DataConfig(**{name: getattr(options, name) for name in TOKENIZER_FIELDS}))


def open_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that a configuration names.

    Raises ConfigError (its files are not named), DataError (they are not readable) and UnsafeError (one is a
    pickle).
    """
    if data.tokenizer_type != "GPT2BPETokenizer":
        if not data.tokenizer_model:
            raise ConfigError(
                "tokenizer_model is not given",
                f"{data.tokenizer_type} is read from it",
                "--tokenizer-model PATH of a tokenizer.json, a SentencePiece .model, or the "
                "directory of one",
            )
        path = Path(data.tokenizer_model)
        if data.tokenizer_type == "SentencePieceTokenizer" and not path.is_dir():
            return _read_model(path)
        return read_tokenizer(path)
    if data.tokenizer_model:
        raise ConfigError(
            f"tokenizer_model={data.tokenizer_model}, and tokenizer_type is GPT2BPETokenizer",
            "that one is read from vocab_file and merge_file",
            "--tokenizer-type HuggingFaceTokenizer (or SentencePieceTokenizer), or leave "
            "--tokenizer-model out",
        )
    named = {"vocab_file": data.vocab_file, "merge_file": data.merge_file}
    if missing := [name for name, path in named.items() if not path]:
        raise ConfigError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not given",
            "GPT2BPETokenizer, the default tokenizer_type, is read from both",
            "--vocab-file vocab.json --merge-file merges.txt, or "
            "--tokenizer-type HuggingFaceTokenizer "
            "--tokenizer-model DIRECTORY",
        )
    return _read_pair(Path(data.vocab_file), Path(data.merge_file))


def _read_json(path: Path) -> Tokenizer:
    _refuse_pickle(path)
    return ByteLevelBPE.from_json(path)


def _read_pair(vocab: Path, merges: Path) -> Tokenizer:
    for path in (vocab, merges):
        _refuse_pickle(path)
    return ByteLevelBPE.from_gpt2(vocab, merges)


def _read_model(path: Path) -> Tokenizer:
    from megatron_yuyuan.data.sentencepiece_model import SentencePieceTokenizer  # loaded when used

    _refuse_pickle(path)
    return SentencePieceTokenizer.from_file(path)


def _refuse_pickle(path: Path) -> None:
    """Raises UnsafeError for a file that begins as a pickle does. What cannot be read, its reader says."""
    try:
        if not path.is_file():  # a pipe is read once
            return
        with open(path, "rb") as stream:
            begin = stream.read(256)
    except OSError:
        return
    if PICKLE.match(begin):
        raise UnsafeError(
            f"{path} is a pickle, and no tokenizer",
            "to open it is to run the code in it",
            "a tokenizer.json, a SentencePiece .model, or GPT-2's vocab.json and merges.txt",
        )
