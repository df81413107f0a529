"""Titles and abstracts from MEDLINE/PubMed XML: baseline files, exports, single records."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from megatron_yuyuan.data.xml_elements import read_elements, text_of
from megatron_yuyuan.errors import DataError

PLACEHOLDERS = frozenset({"not available", "in process citation"})
"""What stands in brackets for a title that there is not."""


@dataclass(frozen=True)
class Citation:
    """One record of PubMed."""

    pmid: str
    version: int
    title: str
    abstract: str

    @property
    def text(self) -> str:
        """Title and abstract on lines of their own, whichever there are."""
        return "\n".join(part for part in (self.title, self.abstract) if part)


def read_pubmed(path: str | Path, dropped: Counter | None = None) -> Iterator[Citation]:
    """Yield the citations of one file, plain or gzip, under any root, in constant memory.

    `dropped` counts what is passed over, by reason. Raises DataError (missing, empty, cut or
    damaged file, XML not well-formed with line and last good PMID, no citation at all) and
    UnsafeError (entity declarations). Source:
    https://www.nlm.nih.gov/bsd/licensee/elements_descriptions.html
    """
    seen = 0
    for element in read_elements(
        path, ("MedlineCitation",), lambda e: f"PMID {text_of(e.find('PMID'))}"
    ):
        seen += 1
        citation = _citation(element)
        if citation.text:
            yield citation
        elif dropped is not None:
            dropped["neither title nor abstract"] += 1
    if not seen:
        raise DataError(
            f"{path}: no citation in it",
            "PubMed XML holds MedlineCitation elements",
            "a file of the PubMed baseline, or --input-format if this is another kind",
        )


def _citation(element: etree._Element) -> Citation:
    pmid = element.find("PMID")
    version = pmid.get("Version", "1") if pmid is not None else "1"
    parts = (_abstract_part(part) for part in element.iterfind("Article/Abstract/AbstractText"))
    return Citation(
        pmid=text_of(pmid),
        version=int(version) if version.isdecimal() else 1,
        title=_title(text_of(element.find("Article/ArticleTitle"))),
        abstract="\n".join(part for part in parts if part),
    )


def _title(text: str) -> str:
    """A title without the brackets of a translated one, as in `[Gout.]`, `[Gout].`, `[Gout]`."""
    bare = text.removesuffix(".").rstrip()
    if bare.startswith("[") and bare.endswith("]") and _closes_at_the_end(bare):
        inner = bare[1:-1].strip()
        if inner.removesuffix(".").lower() in PLACEHOLDERS:
            return ""
        return inner if inner.endswith((".", "?", "!")) or bare == text else inner + "."
    return text


def _closes_at_the_end(text: str) -> bool:
    """Whether the bracket that opens `text` is the one that ends it (`[1] and [2]` is not)."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth == 0:
            return position == len(text) - 1
    return False


def _abstract_part(part: etree._Element) -> str:
    """One AbstractText; a labelled one as `BACKGROUND: ...`."""
    text, label = text_of(part), " ".join(part.get("Label", "").split())
    return f"{label}: {text}" if text and label and label != "UNLABELLED" else text
