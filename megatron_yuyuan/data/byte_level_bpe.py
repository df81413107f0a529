"""Byte-level BPE with exactly GPT-2's ids, on `tokenizers`: read, learned, written."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from megatron_yuyuan.data.files import cannot_read
from megatron_yuyuan.data.tokenizer_base import (
    END_OF_TEXT,
    PART_OF_TOKENIZER,
    Tokenizer,
    refuse_surrogates,
)
from megatron_yuyuan.errors import ConfigError, DataError


@contextmanager
def _encoding(texts: Sequence[str]) -> Iterator[None]:
    """Raises DataError where the library cannot encode: for half of a surrogate pair, and for rules of a
    tokenizer.json at which it fails, or panics, which Python sees as no Exception."""
    try:
        yield
    except TypeError:
        for text in texts:
            refuse_surrogates(text)
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise DataError(
            f"the tokenizer cannot encode a text: {error}",
            "its tokenizer.json has rules that the tokenizers library does not carry out",
            "a tokenizer.json as it was published",
        ) from None


class ByteLevelBPE(Tokenizer):
    """Byte-level BPE: decode(encode(text)) is the text, whatever its characters.

    Source: Radford et al. 2019, section 2.2. Another algorithm's tokenizer.json, with an end of
    text, is taken too, and then keeps of a text what that algorithm does.
    """

    end_of_text = END_OF_TEXT
    huggingface_class = "GPT2Tokenizer"

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        vocab: dict[str, int],
        merges: Sequence[str],
        source: str,
    ):
        """Wrap what was read from `source`: every token and its id, the merges as `left right`.

        Raises DataError: no end of text, or not special.
        """
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # chance is for training: ids are a function of the text
        self._backend, self._vocab, self._merges = backend, vocab, merges
        if END_OF_TEXT not in vocab:
            raise _no_end_of_text(source)
        self.eod = vocab[END_OF_TEXT]
        if self.eod in self.encode(f"a{END_OF_TEXT} {END_OF_TEXT}"):
            raise DataError(
                f"{source}: the text {END_OF_TEXT} would become the token",
                "a text could end its document",
                "a tokenizer.json that declares it as a special token",
            )

    @classmethod
    def from_gpt2(cls, vocab_file: str | Path, merge_file: str | Path) -> "ByteLevelBPE":
        """Read GPT-2's vocab.json (encoder.json) and merges.txt (vocab.bpe). Raises DataError."""
        vocab = _parse_json(vocab_file)
        if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
            raise DataError(
                f"{vocab_file} is not a vocabulary",
                "it maps every token to its id",
                "GPT-2's vocab.json, also called encoder.json",
            )
        lines = (line.rstrip("\r") for line in _read_text(merge_file).split("\n"))
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
        if not all(line.count(" ") == 1 for line in merges):
            raise DataError(
                f"{merge_file} is not a list of merges",
                "every line holds two tokens",
                "GPT-2's merges.txt, also called vocab.bpe",
            )
        backend = _gpt2_backend(vocab, merges, f"{vocab_file} with {merge_file}")
        return cls(backend, vocab, merges, str(vocab_file))

    @classmethod
    def from_json(cls, path: str | Path) -> "ByteLevelBPE":
        """Read a tokenizer.json. Raises DataError: not readable, no end of text, not special."""
        document = _parse_json(path)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing finer
            raise DataError(
                f"{path} is not a tokenizer: {error}",
                "it was named as the tokenizer",
                "a tokenizer.json of Hugging Face tokenizers",
            ) from None
        merges = _as_lines(document["model"].get("merges", []))
        return cls(backend, backend.get_vocab(with_added_tokens=True), merges, str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, on the calling thread. Raises DataError: half of a surrogate pair."""
        with _encoding([text]):
            return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on as many threads as the library was given. Raises DataError."""
        with _encoding(texts):
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; decode(encode(text)) is the text. The end of text shows as its name."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=False)

    @cached_property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""
        return 1 + max(self._vocab.values())

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the sorted (token, id) pairs, the merges and, where ids depend on more than
        these (see `gpt2_json`), the other rules."""
        content: list = [sorted(self._vocab.items(), key=itemgetter(0)), self._merges]
        if self.gpt2_json() is None:
            rules = json.loads(self._backend.to_str())
            content.append(
                [rules[n] for n in ("normalizer", "pre_tokenizer", "added_tokens", "model")]
            )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def gpt2_json(self) -> str | None:
        """A tokenizer.json of this vocabulary without special tokens, for another implementation;
        None where the ids depend on more than GPT-2's rules, the vocabulary and the merges."""
        splitter, model = self._backend.pre_tokenizer, self._backend.model
        added = self._backend.get_added_tokens_decoder().values()
        if not (
            isinstance(model, models.BPE)
            and isinstance(splitter, pre_tokenizers.ByteLevel)
            and self._backend.normalizer is None
            and (splitter.add_prefix_space, splitter.use_regex) == (False, True)
            and not any((model.dropout, model.unk_token, model.byte_fallback, model.ignore_merges))
            and not any((model.continuing_subword_prefix, model.end_of_word_suffix))
            and all(token.special for token in added)
        ):
            return None
        outside = {token.content for token in added if model.token_to_id(token.content) is None}
        vocab = {token: index for token, index in self._vocab.items() if token not in outside}
        rules = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        merging = {"type": "BPE", "vocab": vocab, "merges": self._merges}
        return json.dumps({"pre_tokenizer": rules, "model": merging})

    def files(self) -> dict[str, bytes]:
        """tokenizer.json, vocab.json and merges.txt."""
        vocab = dict(sorted(self._vocab.items(), key=itemgetter(1)))
        contents = {
            "tokenizer.json": self._backend.to_str(pretty=True),
            "vocab.json": json.dumps(vocab, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *self._merges, ""]),
        }
        return {name: content.encode() for name, content in contents.items()}

    def huggingface_files(self) -> dict[str, bytes]:
        """The files of `files`: transformers reads them as they are."""
        return self.files()


def train_bpe(texts: Iterator[str], vocab_size: int) -> ByteLevelBPE:
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
        refuse_surrogates(error.object)
        raise
    model = json.loads(learner.to_str())["model"]
    vocab, merges = model["vocab"] | {END_OF_TEXT: len(model["vocab"])}, _as_lines(model["merges"])
    return ByteLevelBPE(_gpt2_backend(vocab, merges, "training"), vocab, merges, "training")


def _gpt2_backend(vocab: dict[str, int], merges: list[str], source: str) -> tokenizers.Tokenizer:
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
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
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


def _as_lines(merges: list[str] | list[list[str]]) -> list[str]:
    """Merges of a tokenizer.json, old (`left right`) or new ([left, right]), as `left right`."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _no_end_of_text(source: str) -> DataError:
    return DataError(
        f"{source} has no token {END_OF_TEXT}",
        "documents are separated by it",
        "a GPT-2 vocabulary, or one that tools/train_tokenizer.py made",
    )


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise cannot_read(path, error, PART_OF_TOKENIZER) from None
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
            "it is a part of the tokenizer",
            "GPT-2's vocab.json or a tokenizer.json",
        ) from None
