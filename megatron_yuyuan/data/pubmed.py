"""Titles and abstracts from MEDLINE/PubMed XML: baseline and update files, exports, records."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lxml import etree

from megatron_yuyuan.data.cleaning import clean, without_notice
from megatron_yuyuan.data.xml_elements import at_least_one, read_elements, text_of
from megatron_yuyuan.errors import DataError

CITATIONS, DELETIONS = ("MedlineCitation", "BookDocument"), ("DeleteCitation", "DeleteDocument")
PARTS = (
    "PMID",
    "ArticleTitle",
    "BookTitle",
    "AbstractText",
    "Language",
    "PublicationType",
    "CommentsCorrections",
    "OtherAbstract",
)
"""What is read of a citation; authors, MeSH headings and the rest never become Python objects."""
PLACEHOLDERS = frozenset({"not available", "in process citation"})
"""What stands in brackets for a title that there is not."""
RETRACTION_TYPES = frozenset(
    {"Retracted Publication", "Retraction of Publication", "Retraction Notice"}
)
RETRACTION_REFERENCES = frozenset({"RetractionIn", "RetractionOf", "RetractedandRepublishedIn"})
RETRACTION_TITLE = re.compile(
    r"(?: RETRACT(?:ED|ION) | WITHDRAWN )\b | (?i: (?: retracted | withdrawn ) (?:\s+article)? : )",
    re.VERBOSE,
)
RETRACTION_SUFFIXES = ("[retracted]", "[withdrawn]")
DELETED, EMPTY, RETRACTED, TITLE_ONLY, FOREIGN = REASONS = (
    "deleted",
    "neither title nor abstract",
    "retracted",
    "no abstract",
    "other language",
)
"""Why a citation is not wanted, as a report says it."""


class Citation(NamedTuple):
    """One record of PubMed, or the deletion of one."""

    pmid: int
    """0 where the record has no number."""
    version: int
    title: str
    abstract: str
    """A labelled section as `BACKGROUND: ...`, each section on a line of its own."""
    languages: tuple[str, ...] = ()
    """Of the article, in small letters: `eng`. The abstract of a foreign article is English."""
    retracted: bool = False
    """A retracted or withdrawn article, or the notice that says so."""
    deleted: bool = False
    """An entry of DeleteCitation: only the PMID and the version mean something."""

    @property
    def text(self) -> str:
        """Title and abstract on lines of their own, whichever there are."""
        if self.title and self.abstract:
            return f"{self.title}\n{self.abstract}"
        return self.title or self.abstract


@dataclass(frozen=True)
class CitationFilter:
    """Which citations are wanted."""

    languages: tuple[str, ...] = ("eng",)
    """Languages of the article; () for any. A record that names none is wanted."""
    keep_retracted: bool = False
    """Retracted and withdrawn articles, and retraction notices."""
    keep_title_only: bool = False
    """Records without an abstract."""

    def reason(self, citation: Citation) -> str:
        """Why a citation is not wanted, the first of REASONS that holds; empty if it is."""
        if citation.deleted:
            return DELETED
        if not citation.abstract and not citation.title:
            return EMPTY
        if citation.retracted and not self.keep_retracted:
            return RETRACTED
        if not citation.abstract and not self.keep_title_only:
            return TITLE_ONLY
        if self.languages and citation.languages:
            return "" if any(each in self.languages for each in citation.languages) else FOREIGN
        return ""


def read_pubmed(path: str | Path) -> Iterator[Citation]:
    """Yield every citation and every deletion of one file, plain or gzip, under any root and in the
    order of the file, in constant memory.

    Raises DataError (missing, empty, cut or damaged file, XML not well-formed with line and last
    good PMID, no citation at all) and UnsafeError (entity declarations). Source:
    https://www.nlm.nih.gov/bsd/licensee/elements_descriptions.html
    """
    none = DataError(
        f"{path}: no citation in it",
        "PubMed XML holds MedlineCitation elements",
        "a file of the PubMed baseline, or --input-format if this is another kind",
    )
    for element in at_least_one(read_elements(path, CITATIONS + DELETIONS, _name), none):
        if element.tag in DELETIONS:
            yield from map(_deletion, element.iterchildren("PMID"))
        else:
            yield _citation(element)


def _name(element: etree._Element) -> str:
    return f"PMID {text_of(element.find('PMID'))}"


def _citation(element: etree._Element) -> Citation:
    pmid, title, sections, is_retracted = None, "", [], False
    languages: tuple[str, ...] = ()
    for part in element.iter(*PARTS):
        tag = part.tag
        if tag == "AbstractText":
            sections.append((part.get("Label"), text_of(part)))
        elif tag == "PublicationType":
            is_retracted = is_retracted or (part.text or "").strip() in RETRACTION_TYPES
        elif tag == "PMID":
            pmid = part if pmid is None else pmid  # the others are those of comments
        elif tag == "ArticleTitle":
            title = _title(text_of(part))
        elif tag == "Language":
            languages = (*languages, (part.text or "").strip().lower())
        elif tag == "CommentsCorrections":
            is_retracted = is_retracted or part.get("RefType") in RETRACTION_REFERENCES
        elif tag == "BookTitle":
            title = text_of(part)  # unless the title of a chapter follows
        else:  # OtherAbstract, of another publisher: all that is wanted stands before it
            break
    return Citation(
        *_pmid(pmid),
        title,
        _abstract(sections) if sections else "",
        languages,
        is_retracted or says_retracted(title),
    )


def _deletion(pmid: etree._Element) -> Citation:
    return Citation(*_pmid(pmid), title="", abstract="", deleted=True)


def _pmid(element: etree._Element | None) -> tuple[int, int]:
    """PMID and version."""
    if element is None:
        return 0, 1
    return number_of(element.text, 1 << 40) or 0, number_of(element.get("Version"), 1 << 31) or 1


def number_of(text: str | None, below: int) -> int | None:
    """The number that a text is, or None where it is none from 0 to `below`."""
    try:
        number = int(text or "")
    except ValueError:  # nothing, no number, or thousands of digits
        return None
    return number if 0 <= number < below else None


def _title(text: str) -> str:
    """A title without the brackets of a translated one, as in `[Gout.]`, `[Gout].`, `[Gout]`."""
    if not text.startswith("["):
        return text
    bare = text.removesuffix(".").rstrip()
    if bare.endswith("]") and _closes_at_the_end(bare):
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


def says_retracted(title: str) -> bool:
    """Whether a title marks a retracted or withdrawn article."""
    if "]" in title[-2:] and title.removesuffix(".").lower().endswith(RETRACTION_SUFFIXES):
        return True
    return RETRACTION_TITLE.match(title) is not None


def _abstract(sections: list[tuple[str | None, str]]) -> str:
    """The (label, text) sections as lines, the notice at the end of the last one taken off."""
    label, text = sections[-1]
    sections[-1] = label, without_notice(text)
    return "\n".join([_section(label, text) for label, text in sections if text])


def _section(label: str | None, text: str) -> str:
    return f"{clean(label)}: {text}" if label and label != "UNLABELLED" else text
