"""Elements of an XML file one after another, in constant memory, whoever wrote the file."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lxml import etree

from megatron_yuyuan.data.files import open_plain_or_gzip
from megatron_yuyuan.errors import DataError, UnsafeError

CHUNK = 1 << 16
DECLARATION = b"<!ENTITY"


def read_elements(
    path: str | Path, tags: tuple[str, ...], name_of: Callable[[etree._Element], str]
) -> Iterator[etree._Element]:
    """Yield every element named in `tags`, whole, wherever it stands.

    It is emptied once the caller goes on. No entity is expanded, no DTD and no network read.
    `name_of` names an element for the message of an error. Raises DataError (see
    `open_plain_or_gzip`; XML not well-formed: line and the last whole element before it) and
    UnsafeError (the file declares entities).
    """
    parser = etree.XMLPullParser(
        ("end",),
        tag=tags,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    last, end_of_chunk = "none", b""
    with open_plain_or_gzip(path) as stream:
        more = True
        while more:
            chunk = stream.read(CHUNK)
            if DECLARATION in end_of_chunk + chunk:
                raise _entities(path)
            end_of_chunk, more, failure = chunk[1 - len(DECLARATION) :], bool(chunk), None
            try:
                parser.feed(chunk) if chunk else parser.close()
            except etree.XMLSyntaxError as error:
                failure = error
            for _, element in parser.read_events():
                declared = element.getroottree().docinfo.internalDTD
                if declared is not None and declared.entities():  # in UTF-16 the search is blind
                    raise _entities(path)
                last = name_of(element)
                yield element
                _free(element)
            if failure is not None:
                raise DataError(
                    f"{path}, line {failure.lineno}: not well-formed XML: {failure.msg} "
                    f"(last whole record: {last})",
                    "what follows cannot be read, and may be missing",
                    "fetch the file again, or mend that line",
                )


def text_of(element: etree._Element | None) -> str:
    """All text in an element, inline markup dropped, white space collapsed. Empty for None."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _free(element: etree._Element) -> None:
    """Empty an element and drop everything that stands before it, up to the root."""
    element.clear(keep_tail=False)
    while (parent := element.getparent()) is not None:
        while parent[0] is not element:
            del parent[0]
        element = parent


def _entities(path: str | Path) -> UnsafeError:
    return UnsafeError(
        f"{path} declares XML entities",
        "entities can read local files or grow without bound",
        "PubMed and MedQuAD files declare none; remove the declaration if you trust the file",
    )
