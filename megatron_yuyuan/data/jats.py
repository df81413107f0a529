"""Title, abstract and running text of PMC's full-text articles (JATS, the .nxml files)."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lxml import etree

from megatron_yuyuan.data.cleaning import clean, without_notice
from megatron_yuyuan.data.pubmed import number_of, says_retracted
from megatron_yuyuan.data.xml_elements import at_least_one, read_elements, text_of
from megatron_yuyuan.errors import DataError

MATHML = "{http://www.w3.org/1998/Math/MathML}"
DROPPED = frozenset(
    """alt-text array attrib break chem-struct-wrap copyright-holder disp-formula
    disp-formula-group fig fig-group fn-group graphic inline-graphic label long-desc media notes
    object-id permissions ref-list supplementary-material table table-wrap
    table-wrap-group""".split()
)
"""Floats, formulas on lines of their own, notes, references: a space takes their place."""
DROPPED_IN_WORDS = frozenset({"fn", "tex-math", f"{MATHML}annotation", f"{MATHML}annotation-xml"})
"""Footnotes and the sources of formulas: nothing takes their place."""
BLOCKS = frozenset(
    """abstract boxed-text caption def def-item def-list disp-quote list list-item p sec speech
    statement term title verse-group verse-line""".split()
)
"""What stands on lines of its own. Everything else is part of a line."""
DROPPED_SECTIONS = frozenset({"supplementary-material", "display-objects"})
ABSTRACT_TYPES = frozenset({None, "", "normal"})
"""Other abstracts (graphical, for editors, for patients) stand beside one of these."""
RETRACTIONS = frozenset({"retraction", "retracted-article", "retraction-forward"})
LONGEST = 32 << 20
"""Bytes of one article."""
LINE = "\x1e"
"""Ends a line in the raw text: a character that XML does not allow, so that no article has it."""


class Article(NamedTuple):
    """One article of PMC."""

    pmcid: str
    """With its letters: `PMC1065065`; empty where the file names none."""
    pmid: int
    """0 where the file names none."""
    title: str
    abstract: str
    body: str
    """Titles of sections, paragraphs and items of lists, each on a line of its own."""
    retracted: bool = False
    """A retracted article, or the notice that says so."""

    @property
    def text(self) -> str:
        """Title, abstract and body, whichever there are."""
        return "\n".join(part for part in (self.title, self.abstract, self.body) if part)


def read_jats(path: str | Path) -> Iterator[Article]:
    """Yield the articles of one file, plain or gzip: one in PMC's .nxml files.

    Reviews and replies that are printed with an article (sub-article, response) are left out.
    Raises DataError (see `read_elements`; no article in the file) and UnsafeError (entity
    declarations). Source: https://jats.nlm.nih.gov/archiving/tag-library/1.3/
    """
    none = DataError(
        f"{path}: no article in it",
        "JATS holds an article element",
        "an .nxml file of PMC, or --input-format if this is another kind",
    )
    articles = read_elements(path, ("article",), _name, longest=LONGEST)
    yield from map(_article, at_least_one(articles, none))


def _name(element: etree._Element) -> str:
    return f"article {' '.join(_ids(element).values())}"


def _article(element: etree._Element) -> Article:
    ids = _ids(element)
    title = " ".join(_lines_of(element.find("front/article-meta/title-group/article-title")))
    abstracts = element.iterfind("front/article-meta/abstract")
    abstract = next((a for a in abstracts if a.get("abstract-type") in ABSTRACT_TYPES), None)
    pmcid = ids.get("pmc") or ids.get("pmcid") or ""
    related = element.iterfind("front/article-meta/related-article")
    kinds = {element.get("article-type"), *(each.get("related-article-type") for each in related)}
    return Article(
        pmcid=f"PMC{pmcid.removeprefix('PMC')}" if pmcid else "",
        pmid=number_of(ids.get("pmid"), 1 << 40) or 0,
        title=title,
        abstract=without_notice("\n".join(_lines_of(abstract))),
        body="\n".join(_lines_of(element.find("body"))),
        retracted=not kinds.isdisjoint(RETRACTIONS) or says_retracted(title),
    )


def _ids(element: etree._Element) -> dict[str, str]:
    """{kind: identifier} of an article."""
    found = element.iterfind("front/article-meta/article-id")
    return {each.get("pub-id-type", ""): text_of(each) for each in found}


def _lines_of(element: etree._Element | None) -> list[str]:
    """The running text of an element, in reading order. No recursion: XML may nest deeper than
    Python calls."""
    pieces: list[str] = []
    pending = [] if element is None else [element]  # elements and texts, the next one last
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            pieces.append(part)
        elif _is_dropped(part):
            pieces.append(" ")
        elif part.tag not in DROPPED_IN_WORDS and not _is_citation_mark(part):
            border = LINE if part.tag in BLOCKS else ""
            inside = [border, part.text or ""]
            for child in part:
                inside += (child, child.tail or "")
            pending += reversed((*inside, border))
    return [line for line in map(clean, "".join(pieces).split(LINE)) if line]


def _is_dropped(part: etree._Element) -> bool:
    return part.tag in DROPPED or (part.tag == "sec" and part.get("sec-type") in DROPPED_SECTIONS)


def _is_citation_mark(part: etree._Element) -> bool:
    """Whether an element is the superscript number of a reference, which would become part of the
    word before it. A number in brackets is left as it is."""
    if part.tag == "xref":
        return _cites(part) and [child.tag for child in part] == ["sup"] and not part.text
    if part.tag == "sup" and len(part) and all(map(_cites, part)):
        between = (part.text or "", *(child.tail or "" for child in part))
        return not any(letter.isalnum() for letter in "".join(between))
    return False


def _cites(part: etree._Element) -> bool:
    return part.tag == "xref" and part.get("ref-type") == "bibr"
