"""What every tokenizer here is and keeps to, whatever its algorithm and its files."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import DataError

END_OF_TEXT = "<|endoftext|>"
PART_OF_TOKENIZER = "it is a part of the tokenizer"
"""Why a file is read, of one that cannot be."""
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt")
"""What `save` writes, of whatever kind the tokenizer is."""


class Tokenizer(ABC):
    """Text to token ids and back, and one id, the end of text, that no text ever yields.

    `encode` is a pure function of the text: nothing is added, cut or padded, and the characters of
    the end of text's name are ordinary characters. Opening a tokenizer, and encoding one text,
    starts no thread.
    """

    eod: int
    """Id of the end of text, which closes a document."""
    end_of_text: str
    """Its name."""
    huggingface_class: str
    """The class of transformers that reads `huggingface_files`."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex sha256 of what decides the ids."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, on the calling thread. Raises DataError: half of a surrogate pair."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on as many threads as the library was given. Raises DataError."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. The end of text shows as its name."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """File name -> content: what `read_tokenizer` needs to make the same tokenizer again."""

    @abstractmethod
    def huggingface_files(self) -> dict[str, bytes]:
        """File name -> content: what transformers needs, beside tokenizer_config.json, to give the
        same ids. Raises ConfigError: it cannot."""

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files, all or none, and remove those of another kind, which would be
        read in their place. Raises DataError where the disk refuses."""
        files = self.files()
        with AtomicFiles() as written:
            for name, content in files.items():
                written.open(Path(directory) / name).write(content)
        for name in set(TOKENIZER_FILES) - set(files):
            (Path(directory) / name).unlink(missing_ok=True)


def refuse_surrogates(text: str) -> None:
    """Raise DataError where a text holds half of a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text holds half of a surrogate pair at character {error.start}: "
            f"{text[max(0, error.start - 20) : error.start + 20]!a}",
            "it is no character",
            "remove it from the input",
        ) from None
