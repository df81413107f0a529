"""Text to token ids and back: byte-level BPE with exactly GPT-2's ids, on `tokenizers`."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from megatron_yuyuan.config import DataConfig
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import ConfigError, DataError

END_OF_TEXT = "<|endoftext|>"
FILE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


class Tokenizer:
    """Byte-level BPE with one special token, the end of text, that no text ever yields.

    `encode` is a pure function of the text: nothing is added, cut or padded, and the characters
    `<|endoftext|>` in a text are ordinary characters. Source: Radford et al. 2019, section 2.2.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str):
        """Wrap what was read from `source`. Raises DataError: no end of text, or not special."""
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        eod = backend.token_to_id(END_OF_TEXT)
        if eod is None:
            raise _no_end_of_text(source)
        self.eod: int = eod
        """Id of the end of text, which closes a document."""
        if eod in self.encode(f"a{END_OF_TEXT} {END_OF_TEXT}"):
            raise DataError(
                f"{source}: the text {END_OF_TEXT} would become the token",
                "a text could end its document",
                "a tokenizer.json that declares it as a special token",
            )

    @classmethod
    def from_gpt2(cls, vocab_file: str | Path, merge_file: str | Path) -> "Tokenizer":
        """Read GPT-2's vocab.json (encoder.json) and merges.txt (vocab.bpe). Raises DataError."""
        vocab = _parse_json(vocab_file)
        if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
            raise DataError(
                f"{vocab_file} is not a vocabulary",
                "it maps every token to its id",
                "GPT-2's vocab.json, also called encoder.json",
            )
        lines = _read_text(merge_file).split("\n")
        merges = [
            tuple(line.rstrip("\r").split(" "))
            for line in lines
            if line.strip() and not line.startswith("#version")
        ]
        if not all(len(pair) == 2 for pair in merges):
            raise DataError(
                f"{merge_file} is not a list of merges",
                "every line holds two tokens",
                "GPT-2's merges.txt, also called vocab.bpe",
            )
        return cls(
            _byte_level_bpe(vocab, merges, f"{vocab_file} with {merge_file}"), str(vocab_file)
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json, or a directory with one or with vocab.json and merges.txt.

        Raises DataError: nothing there, not readable, no end of text, end of text not special.
        """
        path = Path(path)
        if path.is_dir():
            if (path / "tokenizer.json").exists():
                return cls.from_file(path / "tokenizer.json")
            for vocab, merges in FILE_PAIRS:
                if (path / vocab).exists() and (path / merges).exists():
                    return cls.from_gpt2(path / vocab, path / merges)
            raise DataError(
                f"no tokenizer in {path}",
                "it holds neither tokenizer.json nor vocab.json with merges.txt",
                "the directory that tools/train_tokenizer.py wrote, or a Hugging Face model's",
            )
        _parse_json(path)
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), str(path))
        except DataError:
            raise
        except Exception as error:  # the library raises nothing finer
            raise DataError(
                f"{path} is not a tokenizer: {error}",
                "it was named as the tokenizer",
                "a tokenizer.json of Hugging Face tokenizers",
            ) from None

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises DataError: half of a surrogate pair, which is no character."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on as many threads as the library was given."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                _refuse_surrogates(text)
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; decode(encode(text)) is the text. The end of text shows as its name."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=False)

    @cached_property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the sorted (token, id) pairs and the merges."""
        vocab = sorted(self._backend.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps([vocab, self._merges]).encode()).hexdigest()

    @cached_property
    def _merges(self) -> list[str]:
        merges = json.loads(self._backend.to_str())["model"].get("merges", [])
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, vocab.json and merges.txt, all or none. Raises DataError.

        With a tokenizer_config.json beside them, transformers loads the directory.
        """
        vocab = self._backend.get_vocab(with_added_tokens=True)
        contents = {
            "tokenizer.json": self._backend.to_str(pretty=True),
            "vocab.json": json.dumps(
                dict(sorted(vocab.items(), key=lambda item: item[1])), ensure_ascii=False
            ),
            "merges.txt": "\n".join(["#version: 0.2", *self._merges, ""]),
        }
        with AtomicFiles() as files:
            for name, content in contents.items():
                files.open(Path(directory) / name).write(content.encode())


def open_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that a configuration names.

    Raises ConfigError (its files are not named) and DataError (they are not readable).
    """
    if data.tokenizer_type == "HuggingFaceTokenizer":
        if not data.tokenizer_model:
            raise ConfigError(
                "tokenizer_model is not given",
                "HuggingFaceTokenizer is read from it",
                "--tokenizer-model PATH of a tokenizer.json or its directory",
            )
        return Tokenizer.from_file(data.tokenizer_model)
    if not (data.vocab_file and data.merge_file):
        raise ConfigError(
            "vocab_file and merge_file are not given",
            "GPT2BPETokenizer is read from both",
            "--vocab-file vocab.json --merge-file merges.txt, or "
            "--tokenizer-type HuggingFaceTokenizer "
            "--tokenizer-model DIRECTORY",
        )
    return Tokenizer.from_gpt2(data.vocab_file, data.merge_file)


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of at most `vocab_size` tokens: 256 bytes, merges and, as the last id,
    the end of text.

    The same texts in the same order give the same tokenizer. Raises ConfigError for fewer than 257
    tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ConfigError(
            f"vocab_size={vocab_size} is too small",
            "256 bytes and the end of text come first",
            "--vocab-size 257 or more",
        )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    try:
        learner.train_from_iterator(texts, trainer)
    except UnicodeEncodeError as error:
        _refuse_surrogates(error.object)
        raise
    model = json.loads(learner.to_str())["model"]
    vocab = model["vocab"] | {END_OF_TEXT: len(model["vocab"])}
    return Tokenizer(
        _byte_level_bpe(vocab, [tuple(pair) for pair in model["merges"]], "training"), "training"
    )


def _byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple], source: str
) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer over a vocabulary that already holds the end of text."""
    if END_OF_TEXT not in vocab:
        raise _no_end_of_text(source)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise DataError(
            f"{source}: ids are not 0 to {len(vocab) - 1}, each once",
            "an id is a row of the embedding",
            "the file as it was published",
        )
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises nothing finer
        raise DataError(
            f"{source} do not fit together: {error}",
            "every merge makes a token of the vocabulary",
            "both files of the same tokenizer",
        ) from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


def _no_end_of_text(source: str) -> DataError:
    return DataError(
        f"{source} has no token {END_OF_TEXT}",
        "documents are separated by it",
        "a GPT-2 vocabulary, or one that tools/train_tokenizer.py made",
    )


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text holds half of a surrogate pair at character {error.start}: "
            f"{text[max(0, error.start - 20) : error.start + 20]!a}",
            "it is no character",
            "remove it from the input",
        ) from None


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}",
            "it was named as part of the tokenizer",
            "a path that exists and may be read",
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error}", "tokenizer files are text", "the file as published"
        ) from None


def _parse_json(path: str | Path):
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON: {error}",
            "it was named as part of the tokenizer",
            "GPT-2's vocab.json or a tokenizer.json",
        ) from None
