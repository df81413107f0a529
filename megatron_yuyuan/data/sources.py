"""From the paths on a command line to documents or questions: which files, in which format."""

import os
import re
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from megatron_yuyuan.data.cleaning import read_plain_text
from megatron_yuyuan.data.files import cannot_read, describe_source, open_input
from megatron_yuyuan.data.jats import read_jats
from megatron_yuyuan.data.jsonl import Notice, first_keys, read_jsonl_texts
from megatron_yuyuan.data.medquad import QuestionAnswer, drop_repeats, read_medquad, read_qa_jsonl
from megatron_yuyuan.data.pubmed import RETRACTED, CitationFilter, number_of, read_pubmed
from megatron_yuyuan.data.question_lines import parse_question_line
from megatron_yuyuan.data.records import DELETION_NOTICE
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError

TEXT_FORMATS = ("pubmed-xml", "jats-xml", "jsonl", "text")
CITED = TEXT_FORMATS[:2]
"""Whose documents say whether they are retracted; those of the first also their language, and whether they have an
abstract."""
QA_FORMATS = ("medquad-xml", "qa-jsonl")
FORMATS = ("auto", *TEXT_FORMATS, *QA_FORMATS)
UNKNOWN = "unknown"
"""Format of a bad file."""
SUFFIXES = (".xml", ".nxml", ".jsonl", ".gz", ".zst")
"""Files looked at in a folder: no .json, which our shards and tokenizers have beside them, and no .txt,
which may be a note about the others. A file named on the command line may be called anything."""
TEXT_SUFFIXES = (".txt", ".gz", ".zst")
"""Files looked at in a folder of texts."""
FIRST_ELEMENT = re.compile(
    rb"<(?:(PubmedArticle|PubmedBookArticle|MedlineCitation|DeleteCitation)|(article)|(QAPairs|qaPairs))\b"
)
PUBMED_FILE = re.compile(r"pubmed(\d\d)n(\d{4,})\.xml")
HEAD = 1 << 20
PMC = 1 << 40
"""Added to the number of a PMC article, so that its identity is no PMID's."""


class Document(NamedTuple):
    """One document of an input, wanted or not."""

    text: str
    identity: int = 0
    """PMID, or PMC + number; 0 for a document that only its text identifies."""
    version: int = 0
    reason: str = ""
    """Why it is not wanted, one of REASONS; empty if it is."""

    @property
    def name(self) -> str:
        """`PMID 1`, `PMC1`; empty without an identity."""
        if self.identity >= PMC:
            return f"PMC{self.identity - PMC}"
        return f"PMID {self.identity}" if self.identity else ""


@dataclass(frozen=True)
class Source:
    """One input file and how it is read."""

    path: Path
    format: str
    error: DataError | UnsafeError | None = None
    """Why its format is not known; raised by who reads it."""

    def documents(
        self,
        key: str,
        wanted: CitationFilter | None = None,
        span: tuple[int, int] | None = None,
        notice: Notice = lambda *_: None,
    ) -> Iterator[Document]:
        """Its documents, those that are not wanted included; a question has its answer under it.

        `key` and `span` are for JSONL (see `read_jsonl_texts`), `wanted` is for PubMed and PMC.
        """
        if self.error:
            raise self.error
        if self.format == "jsonl":
            return map(Document, read_jsonl_texts(self.path, key, span, notice))
        if self.format == "text":
            return map(Document, [read_plain_text(self.path)])
        if self.format in QA_FORMATS:
            pairs = self.questions(Counter())
            return (Document(f"{pair.question}\n{pair.answer}") for pair in pairs)
        return self._articles(wanted)

    def _articles(self, wanted: CitationFilter | None) -> Iterator[Document]:
        wanted = wanted or CitationFilter()
        if self.format == "jats-xml":
            for article in read_jats(self.path):
                number = number_of(article.pmcid.removeprefix("PMC"), PMC)
                identity = 0 if number is None else PMC + number
                is_dropped = article.retracted and not wanted.keep_retracted
                yield Document(article.text, identity, 1, RETRACTED if is_dropped else "")
            return
        for citation in read_pubmed(self.path):
            reason = DELETION_NOTICE if citation.deleted else wanted.reason(citation)
            text = "" if reason else citation.text
            yield Document(text, citation.pmid, citation.version, reason)

    def questions(self, dropped: Counter) -> Iterator[QuestionAnswer]:
        """Its questions and answers."""
        if self.error:
            raise self.error
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


def find_sources(
    inputs: Sequence[str], input_format: str = "auto", skip_bad_files: bool = False
) -> list[Source]:
    """The files of `inputs`, folders searched and sorted, each with its format (by content for
    `auto`).

    PubMed's own files stand in the order of their numbers, after whatever else there is: a later one
    corrects an earlier one, also if they lie in folders called baseline and updatefiles. Raises
    DataError: nothing there, unknown content; with `skip_bad_files` the latter waits in the source.
    """
    suffixes = TEXT_SUFFIXES if input_format == "text" else SUFFIXES
    files = [file for given in inputs for file in _files_of(Path(given), suffixes)]
    sources = []
    for file in files:
        try:
            name = detect_format(file) if input_format == "auto" else input_format
            sources.append(Source(file, name))
        except (DataError, UnsafeError) as error:
            if not skip_bad_files:
                raise
            sources.append(Source(file, UNKNOWN, error))
    return sorted(sources, key=_pubmed_number)


def _pubmed_number(source: Source) -> tuple[int, ...]:
    name = PUBMED_FILE.match(source.path.name)
    return (int(name[1]), int(name[2])) if name else ()


def hold_questions(sources: Sequence[Source]) -> bool:
    """True for questions with answers, False for texts. Raises ConfigError where there are both."""
    known = [source for source in sources if source.format != UNKNOWN]
    kinds = {source.format in QA_FORMATS: source for source in known}
    if len(kinds) == 2:
        raise ConfigError(
            f"{kinds[False].path} holds texts, {kinds[True].path} questions with answers",
            "they become different shards",
            "one call for each kind",
        )
    return True in kinds


def read_texts(sources: Sequence[Source], key: str, dropped: Counter) -> Iterator[str]:
    """The texts of all wanted documents of the sources, in order; `dropped` counts the others."""
    for document in chain.from_iterable(source.documents(key) for source in sources):
        if document.reason:
            dropped[document.reason] += 1
        elif document.text:
            yield document.text


def read_questions(
    sources: Sequence[Source], dropped: Counter, bad: dict[Source, str] | None = None
) -> Iterator[QuestionAnswer]:
    """All questions of the sources, in order, no exact repeats; `dropped` counts the others.

    With `bad`, a file that cannot be read whole gives nothing, and its error is put there.
    """

    def pairs():
        for source in sources:
            own: Counter[str] = Counter()
            try:
                describe_source(source.path)  # is it what its .md5 says?
                found = list(source.questions(own))
            except (DataError, UnsafeError) as error:
                if bad is None:
                    raise
                bad[source] = error.what
            else:
                dropped.update(own)
                yield from found

    return drop_repeats(pairs(), dropped)


def detect_format(path: Path) -> str:
    """The format of a file, by its first megabyte; that of a .txt is text unless it begins as another's.
    Raises DataError."""
    with open_input(path) as stream:
        head = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    is_txt = path.suffixes[-1:] == [".txt"] or path.suffixes[-2:-1] == [".txt"]
    element = FIRST_ELEMENT.search(head) if head.startswith(b"<") else None
    if element:
        pubmed, jats, _ = element.groups()
        return "pubmed-xml" if pubmed else "jats-xml" if jats else "medquad-xml"
    if head.startswith(b"{"):
        try:
            keys = {key.lower() for key in first_keys(path, parse_question_line)}
            return "qa-jsonl" if {"question", "answer"} <= keys else "jsonl"
        except DataError:
            if not is_txt:
                raise
    if is_txt:
        return "text"
    raise DataError(
        f"{path}: neither PubMed, PMC or MedQuAD XML nor JSONL, and not called .txt",
        f"it begins with {head[:40]!r}",
        f"a file of one of these, or --input-format {'|'.join(FORMATS[1:])}",
    )


def _files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not path.is_dir():
        try:
            path.open("rb").close()  # a path that is not there is no bad file to go on without
        except OSError as error:
            raise cannot_read(path, error) from None
        return [path]
    files = sorted(  # a broken link is refused when it is opened
        file
        for file in _walk(path)
        if file.suffix in suffixes and (file.is_file() or not file.exists())
    )
    if not files:
        raise DataError(
            f"{path} holds no input",
            f"files ending in {', '.join(suffixes)} were looked for",
            "the folder that holds the files; --input-format text for a folder of .txt",
        )
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """The files under a folder that are not hidden: links are followed, and each folder is entered once."""

    def refuse(error: OSError):
        raise cannot_read(error.filename, error)

    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        state = os.stat(where)
        place = state.st_dev, state.st_ino
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in names if not name.startswith("."))
