"""Elements of an XML file one after another, in constant memory, whoever wrote the file."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lxml import etree

from megatron_yuyuan.data.cleaning import clean
from megatron_yuyuan.data.files import Input, open_input
from megatron_yuyuan.errors import DataError, UnsafeError

CHUNK = 1 << 16
"""Bytes parsed at a time; what is parsed and not yet freed is about as much."""
HELD = 1 << 12
"""Bytes of a chunk looked through, from its end, for a place to cut it."""
LONGEST = 8 << 20
"""Bytes from one whole record to the next. What is parsed takes up to thirty times as much memory."""
DECLARATION = b"<!ENTITY"
BOM = b"\xef\xbb\xbf"
NO_ELEMENT = (b"?>", b"->", b"]>")
"""How declarations, comments and CDATA end. After anything else that ends in `>`, an XML
declaration or a DOCTYPE begins another document."""


def read_elements(
    path: str | Path,
    tags: tuple[str, ...],
    name_of: Callable[[etree._Element], str],
    longest: int = LONGEST,
) -> Iterator[etree._Element]:
    """Yield every element named in `tags`, whole, wherever it stands, of every document in a file
    in which several were put one after another.

    It may be emptied once the caller goes on. No entity is expanded, no DTD and no network read.
    `name_of` names an element for the message of an error. Raises DataError (see
    `open_input`; XML not well-formed: line and the last whole element before it) and
    UnsafeError (the file declares entities, or has `longest` bytes without an element that ends).
    """
    parser, element, document, is_safe, without = _parser(tags), None, 1, False, 0
    with open_input(path) as stream:
        for piece in _pieces(stream):
            if not is_safe and DECLARATION in piece:
                raise _declares_entities(path)
            failure, without = _feed(parser, piece), without + len(piece)
            for _, element in parser.read_events():
                without = 0
                if not is_safe:
                    _refuse_entities(path, element)  # in UTF-16 the search above is blind
                    is_safe = True
                yield element
            if failure is not None:
                last = "none" if element is None else name_of(element)
                raise _malformed(path, document, failure, last)
            if without > longest:
                raise _too_long(path, longest)
            if element is not None:
                _free_before(element)
            if not piece:
                parser, document, is_safe = _parser(tags), document + 1, False


def at_least_one(
    elements: Iterator[etree._Element], otherwise: DataError
) -> Iterator[etree._Element]:
    """The elements. Raises `otherwise` at their end if there was none."""
    is_empty = True
    for element in elements:
        is_empty = False
        yield element
    if is_empty:
        raise otherwise


def text_of(element: etree._Element | None) -> str:
    """All text in an element, inline markup dropped, cleaned. Empty for None."""
    if element is None:
        return ""
    return clean("".join(element.itertext()) if len(element) else element.text or "")


def _parser(tags: tuple[str, ...]) -> etree.XMLPullParser:
    return etree.XMLPullParser(
        ("end",),
        tag=tags,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def _pieces(stream: Input) -> Iterator[bytes]:
    """The bytes of a stream in order, and b"" where a document ends, also the last one.

    Pieces end at a `>`, so that what separates two documents lies within one.
    """
    before, held = b"", b""
    while chunk := stream.read(CHUNK):
        chunk = held + chunk
        cut = chunk.rfind(b">", -HELD) + 1
        if not cut and len(chunk) > HELD:
            cut = len(chunk)
        chunk, held, start = chunk[:cut], chunk[cut:], 0
        for end, next_start in _borders(before, chunk):
            if start < end:
                yield chunk[start:end]
            yield b""
            start = next_start
        if start < cut:
            yield chunk[start:] if start else chunk
        before = (before + chunk[-2:])[-2:]
    if held:
        yield held
    yield b""


def _borders(before: bytes, chunk: bytes) -> Iterator[tuple[int, int]]:
    """Where in `chunk` a document ends and where the next one begins; `before` are the two bytes
    that came before it."""
    for position in sorted((*_positions(chunk, b"<?xml "), *_positions(chunk, b"<!DOCTYPE "))):
        ended = (before + chunk[:position]).removesuffix(BOM).rstrip()
        if ended.endswith(b">") and not ended.endswith(NO_ELEMENT):
            yield max(0, len(ended) - len(before)), position


def _positions(chunk: bytes, mark: bytes) -> Iterator[int]:
    """Where `mark` stands in `chunk`. Its second letter is rare in text, and to find one letter is
    fifty times as fast as to find several."""
    position = chunk.find(mark[1:2])
    while position >= 0:
        if position and chunk.startswith(mark, position - 1):
            yield position - 1
        position = chunk.find(mark[1:2], position + 1)


def _feed(parser: etree.XMLPullParser, piece: bytes) -> etree.XMLSyntaxError | None:
    """Parse a piece, or end the document for b"". Returns what is wrong with it: the elements
    before that place are still to be read."""
    try:
        parser.feed(piece) if piece else parser.close()
    except etree.XMLSyntaxError as error:
        return error
    return None


def _free_before(element: etree._Element) -> None:
    """Drop everything that stands before an element, up to the root."""
    while (parent := element.getparent()) is not None:
        del parent[: parent.index(element)]
        element = parent


def _refuse_entities(path: str | Path, element: etree._Element) -> None:
    declared = element.getroottree().docinfo.internalDTD
    if declared is not None and declared.entities():
        raise _declares_entities(path)


def _declares_entities(path: str | Path) -> UnsafeError:
    return UnsafeError(
        f"{path} declares XML entities",
        "entities can read local files or grow without bound",
        "PubMed, PMC and MedQuAD files declare none; remove the declaration if you trust the file",
    )


def _too_long(path: str | Path, longest: int) -> UnsafeError:
    return UnsafeError(
        f"{path}: {longest >> 20} MB of XML without the end of a record",
        "it would be held in memory as a whole",
        "a file of the format it is read as: --input-format, or look into it",
    )


def _malformed(
    path: str | Path, document: int, error: etree.XMLSyntaxError, last: str
) -> DataError:
    place = f"{path}, line {error.lineno}"
    if document > 1:
        place += f" of document {document}"
    return DataError(
        f"{place}: not well-formed XML: {error.msg} (last whole record: {last})",
        "what follows cannot be read, and may be missing",
        "fetch the file again, or mend that line",
    )
