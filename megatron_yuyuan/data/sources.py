"""From the paths on a command line to texts or questions: which files, in which format."""

import re
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from megatron_yuyuan.data.files import open_plain_or_gzip, read_json_lines, read_jsonl_texts
from megatron_yuyuan.data.medquad import QuestionAnswer, drop_repeats, read_medquad, read_qa_jsonl
from megatron_yuyuan.data.pubmed import read_pubmed
from megatron_yuyuan.errors import ConfigError, DataError

TEXT_FORMATS, QA_FORMATS = ("pubmed-xml", "jsonl"), ("medquad-xml", "qa-jsonl")
FORMATS = ("auto", *TEXT_FORMATS, *QA_FORMATS)
SUFFIXES = (".xml", ".nxml", ".jsonl", ".gz")
"""Files looked at in a folder: no .json, which our shards and tokenizers have beside them. A file named
on the command line may be called anything."""
FIRST_ELEMENT = re.compile(
    rb"<(?:(PubmedArticle|MedlineCitation|DeleteCitation)|(QAPairs|qaPairs))\b"
)
HEAD = 1 << 20


@dataclass(frozen=True)
class Source:
    """One input file and how it is read."""

    path: Path
    format: str

    def texts(self, key: str, dropped: Counter) -> Iterator[str]:
        """Its documents as plain texts, a question with its answer under it."""
        if self.format == "pubmed-xml":
            return (citation.text for citation in read_pubmed(self.path, dropped))
        if self.format == "jsonl":
            return read_jsonl_texts(self.path, key)
        return (f"{pair.question}\n{pair.answer}" for pair in self.questions(dropped))

    def questions(self, dropped: Counter) -> Iterator[QuestionAnswer]:
        """Its questions and answers."""
        return (
            read_medquad(self.path, dropped)
            if self.format == "medquad-xml"
            else read_qa_jsonl(self.path)
        )


def add_input_arguments(parser: ArgumentParser) -> None:
    """The flags that name inputs, alike for every command that reads them."""
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, or folders to search"
    )
    parser.add_argument(
        "--input-format", choices=FORMATS, default="auto", help="auto looks into each file"
    )


def find_sources(inputs: Sequence[str], input_format: str = "auto") -> list[Source]:
    """The files of `inputs`, folders searched and sorted, each with its format (by content for
    `auto`). Raises DataError: nothing there, unknown content."""
    files = [file for given in inputs for file in _files_of(Path(given))]
    return [
        Source(file, detect_format(file) if input_format == "auto" else input_format)
        for file in files
    ]


def hold_questions(sources: Sequence[Source]) -> bool:
    """True for questions with answers, False for texts. Raises ConfigError where there are both."""
    kinds = {source.format in QA_FORMATS: source for source in sources}
    if len(kinds) == 2:
        raise ConfigError(
            f"{kinds[False].path} holds texts, {kinds[True].path} questions with answers",
            "they become different shards",
            "one call for each kind",
        )
    return True in kinds


def read_texts(sources: Sequence[Source], key: str, dropped: Counter) -> Iterator[str]:
    """All documents of the sources as plain texts, in order; `dropped` counts the others."""
    return chain.from_iterable(source.texts(key, dropped) for source in sources)


def read_questions(sources: Sequence[Source], dropped: Counter) -> Iterator[QuestionAnswer]:
    """All questions of the sources, in order, no exact repeats; `dropped` counts the others."""
    return drop_repeats(
        chain.from_iterable(source.questions(dropped) for source in sources), dropped
    )


def detect_format(path: Path) -> str:
    """The format of a file, by its first megabyte. Raises DataError."""
    with open_plain_or_gzip(path) as stream:
        head = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"<"):
        if element := FIRST_ELEMENT.search(head):
            return "pubmed-xml" if element[1] else "medquad-xml"
    elif head.startswith(b"{"):
        _, record = next(read_json_lines(path))
        return "qa-jsonl" if {"question", "answer"} <= {key.lower() for key in record} else "jsonl"
    raise DataError(
        f"{path}: neither PubMed XML, MedQuAD XML nor JSONL",
        f"it begins with {head[:40]!r}",
        f"a file of one of these, or --input-format {'|'.join(FORMATS[1:])}",
    )


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise DataError(
            f"{path} holds no input",
            f"files ending in {', '.join(SUFFIXES)} were looked for",
            "the folder that holds the files",
        )
    return files
