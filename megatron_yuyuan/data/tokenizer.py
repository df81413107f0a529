"""The tokenizer that a configuration, a file or a directory names, of whatever kind it is."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from megatron_yuyuan.cli import add_config_argument
from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.byte_level_bpe import ByteLevelBPE, train_bpe
from megatron_yuyuan.data.tokenizer_base import END_OF_TEXT, Tokenizer
from megatron_yuyuan.errors import ConfigError, DataError

__all__ = [
    "END_OF_TEXT",
    "TOKENIZER_FIELDS",
    "Tokenizer",
    "add_tokenizer_arguments",
    "named_tokenizer",
    "open_tokenizer",
    "read_tokenizer",
    "train_bpe",
]

TOKENIZER_FIELDS = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")
"""The fields of DataConfig that name a tokenizer."""
GPT2_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, a SentencePiece .model, or a directory with tokenizer.model,
    tokenizer.json, or vocab.json and merges.txt, the first of these that is there.

    Raises DataError: nothing there, not readable, no end of text, or one that a text can yield.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_model(path) if path.suffix == ".model" else ByteLevelBPE.from_json(path)
    if (path / "tokenizer.model").exists():
        return _read_model(path / "tokenizer.model")
    if (path / "tokenizer.json").exists():
        return ByteLevelBPE.from_json(path / "tokenizer.json")
    for vocab, merges in GPT2_PAIRS:
        if (path / vocab).exists() and (path / merges).exists():
            return ByteLevelBPE.from_gpt2(path / vocab, path / merges)
    raise DataError(
        f"no tokenizer in {path}",
        "it holds neither tokenizer.json, nor tokenizer.model, nor vocab.json with merges.txt",
        "the directory that tools/train_tokenizer.py wrote, or a Hugging Face model's",
    )


def add_tokenizer_arguments(parser: ArgumentParser) -> None:
    """The flags that name a tokenizer, as in training."""
    for name in TOKENIZER_FIELDS:
        add_config_argument(parser, name)


def named_tokenizer(options: Namespace) -> Tokenizer:
    """The tokenizer that the flags of `add_tokenizer_arguments` name. Raises as `open_tokenizer`."""
    return open_tokenizer(DataConfig(**{name: getattr(options, name) for name in TOKENIZER_FIELDS}))


def open_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that a configuration names.

    Raises ConfigError (its files are not named) and DataError (they are not readable).
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
    named = {"vocab_file": data.vocab_file, "merge_file": data.merge_file}
    if missing := [name for name, path in named.items() if not path]:
        raise ConfigError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not given",
            "GPT2BPETokenizer, the default tokenizer_type, is read from both",
            "--vocab-file vocab.json --merge-file merges.txt, or "
            "--tokenizer-type HuggingFaceTokenizer "
            "--tokenizer-model DIRECTORY",
        )
    return ByteLevelBPE.from_gpt2(data.vocab_file, data.merge_file)


def _read_model(path: Path) -> Tokenizer:
    from megatron_yuyuan.data.sentencepiece_model import SentencePieceTokenizer  # loaded when used

    return SentencePieceTokenizer.from_file(path)
