"""Text as it goes into a corpus: one Unicode form, plain spaces, no publisher's notice at its end."""

import re
import unicodedata
from pathlib import Path

from megatron_yuyuan.data.files import open_input
from megatron_yuyuan.errors import DataError

LARGEST_TEXT = 64 << 20
"""Bytes of a plain text file, which is one document."""


def clean(text: str) -> str:
    """Runs of white space as one space, none at the ends; Unicode in form NFC.

    Almost every text of PubMed is clean already, so that is what is quick to find out: of all white
    space only the plain space is printable.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        has_spaces = not text.isprintable()
    else:
        has_spaces = "\n" in text or "\t" in text or "\r" in text
    return " ".join(text.split()) if has_spaces or "  " in text else text.strip(" ")


NOTICE_TAIL = 500
"""Characters at the end of an abstract among which a notice is looked for."""
NOTICE_HINTS = ("©", "(c)", "(C)", "opyright", "ights reserved", "Published ", "TRUNCATED")
"""One of these stands in every notice, at most NOTICE_LEAD characters from where it begins."""
NOTICE_LEAD = 40
NOTICE_BEGIN = re.compile(
    r"""(?=[(©ACPTr])                                 # most places are none: quick to see
    (?: (?P<database> \(ABSTRACT\ TRUNCATED | \(Psyc[A-Za-z]+\ Database\ Record )
      | This\ article\ is\ protected\ by\ copyright
      | (?: All\ )? rights\ reserved
      | (?: Adis\ )? ©
      | Copyright\b | \(copyright\) | \([cC]\)\s*(?=(?:19|20)\d\d)
      | Published\ (?= (?: by | online | (?:19|20)\d\d ) \b )
    )""",
    re.VERBOSE,
)
"""What publishers and databases begin their notices with, the latter also amid a sentence."""
NOTICE_WORDS = frozenset(
    """a abstract access al all also an and are article as at author authors been behalf by
    contributed copyright de distributed domain du editorial employees et exclusive for
    governed has held holder in is issue its journal la le licence licenced license licensed
    licensee licensors of on online open or originally permission protected public published
    publisher publishers publishing reserved rights see society terms the their this to und
    under van von was with work works""".split()
)
"""Words in small letters that a notice may hold. A sentence of an abstract always has others."""
SENTENCE_ENDS, PUNCTUATION = ".!?;:)]>\"'”’%*", "()[].,:;\"'”’"


def without_notice(abstract: str) -> str:
    """An abstract without the copyright, publisher's, database's or truncation notices at its end.

    Only what reaches to the very end is taken, and no sentence with words of its own.
    """
    while _may_be_of_notice(abstract[abstract.rfind(" ") + 1 :]):  # few abstracts end so
        tail = max(0, len(abstract) - NOTICE_TAIL)
        hints = [place for hint in NOTICE_HINTS if (place := abstract.find(hint, tail)) >= 0]
        start = _notice_start(abstract, min(hints) - NOTICE_LEAD) if hints else None
        if start is None:
            break
        abstract = abstract[:start].rstrip()
    return abstract


def _notice_start(abstract: str, first: int) -> int | None:
    """Where, from `first` on, the longest notice begins that ends with the abstract."""
    for begin in NOTICE_BEGIN.finditer(abstract, max(0, first)):
        before = abstract[: begin.start()].rstrip()
        ends_a_sentence = not before or before[-1] in SENTENCE_ENDS
        if (ends_a_sentence or begin["database"]) and all(
            map(_may_be_of_notice, abstract[begin.end() :].split())
        ):
            return begin.start()
    return None


def _may_be_of_notice(word: str) -> bool:
    """Whether a word is a name, a number, an address, or one of NOTICE_WORDS."""
    return (
        not word[:1].islower()
        or word.strip(PUNCTUATION) in NOTICE_WORDS
        or word.startswith(("http", "www."))
    )


def read_plain_text(path: str | Path) -> str:
    """A UTF-8 text file, plain or gzip, as one document: line breaks stay, Unicode in form NFC.

    Raises DataError: see `open_input`; more than LARGEST_TEXT bytes; not UTF-8; bytes that
    no text has (NUL).
    """
    with open_input(path) as stream:
        content = stream.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise DataError(
            f"{path} holds more than {LARGEST_TEXT >> 20} MB",
            "a text file is read as one document",
            "one file a document, or JSONL with one document a line",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_text(path, f"byte {error.start} is not UTF-8") from None
    if (position := text.find("\0")) >= 0:
        raise _no_text(path, f"character {position} is NUL")
    lines = unicodedata.normalize("NFC", text).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _no_text(path: str | Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what}",
        "only text can be trained on",
        "convert it: iconv -f WINDOWS-1252 -t UTF-8 for an old text; leave other files out",
    )
