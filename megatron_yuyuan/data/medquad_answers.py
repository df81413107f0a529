"""MedQuAD's answers as text: lines and bullets restored, what belongs to a web page taken away."""

import re
from collections.abc import Iterable

LINE_END = re.compile(r"\s*\n\s*|\s{3,}|\s{2,}(?=-\s)")
"""The pages were flattened in several ways: what was a line ends with a line feed or three blanks, or
with two before a bullet."""
PHENOTYPES = re.compile(
    r"If the information is available, the table below includes how often .*?"
    r"Approximate number of patients \(when available\)\s(?P<rows>.*?)\s"
    r"The Human Phenotype Ontology \(HPO\) has collected information on how often .*?"
    r"the sign or symptom may be rare or common\.",
    re.DOTALL,
)
"""GARD's table of signs, between the same ten sentences of explanation each time."""
ROW = re.compile(r"(\S.*?)(?: (-|%|\d+(?:\.\d+)?%|\d+/\d+|\d+ of \d+)(?= |$)|$) ?")
"""A sign and the share of patients who show it; `-` or `%` where that is not known."""
PAGE_SENTENCES = re.compile(
    r"((General i|I)nformation about clinical trials is available from the NCI [Ww]eb ?site"
    r"|See the Treatment Options section that follows for links to current treatment clinical trials"
    r"|These have been retrieved from NCI's (listing of clinical trials|clinical trials database)"
    r"|Check the list of NCI-supported cancer clinical trials that are now accepting patients with [^.]*"
    r"|For more specific results, refine the search by using other search features, such as [^.]*"
    r"|This summary section describes treatments that are being studied in clinical trials"
    r"|It may not mention every new treatment being studied)\.\s?"
)
"""Sentences of CancerGov about its own pages."""
AGENCY = re.compile(
    r"NIH: .*|Centers for .*|Dept\. of .*|Agency for .*|Food and Drug Administration"
    r"|(Environmental Protection|Federal Emergency Management) Agency"
    r"|United States Department of Agriculture|Genetics Home Reference"
)
"""The last line of MedlinePlus: who wrote the page."""
LINKS = "These resources "
"""How a line of Genetics Home Reference begins under which there are links and nothing else."""


def clean_text(text: str) -> str:
    """White space collapsed, `Gout? ?` to `Gout?`: a question, or one line of an answer."""
    return re.sub(r"\s*\?(\s+\?)*", "?", " ".join(text.split()))


def clean_lines(lines: Iterable[str]) -> list[str]:
    """The lines as `clean_text` leaves them, less those with nothing but a bullet."""
    return [line for line in map(clean_text, lines) if line not in ("", "-")]


def clean_answer(text: str) -> str:
    """The lines of an answer, each without surplus white space, a bullet as `- item`.

    Taken away: see the constants above, what the page says twice, `Summary :`. Empty where nothing is
    left, as of a list of links. What is clean stays as it is.
    """
    text = PHENOTYPES.sub(_phenotype_lines, text.removeprefix("Summary :"))
    lines = clean_lines(PAGE_SENTENCES.sub("", line) for line in LINE_END.split(text))
    lines = _without_repeated_lists(_without_key_points(lines))
    if len(lines) > 1 and AGENCY.fullmatch(lines[-1]):
        lines.pop()
    if lines and lines[0].startswith(LINKS):
        lines = [line for line in lines if not line.startswith((LINKS, "- "))]
    return "\n".join(lines)


def _phenotype_lines(table: re.Match) -> str:
    """A line for each sign: `- Macrocephaly (15/16)`, `- Seizures`."""
    rows = ROW.findall(" ".join(table["rows"].split()))
    lines = [
        f"- {name}" if share in ("", "-", "%") else f"- {name} ({share})" for name, share in rows
    ]
    return "\n" + "\n".join(lines) + "\n"


def _without_key_points(lines: list[str]) -> list[str]:
    """The lines less CancerGov's `Key Points`, whose bullets come back as headings below.

    A bullet that does not come back stays.
    """
    kept, inside, headings = [], False, set(lines)
    for line in lines:
        inside = line == "Key Points" or (inside and line.startswith("- "))
        if not inside or (line.startswith("- ") and line.removeprefix("- ") not in headings):
            kept.append(line)
    return kept


def _without_repeated_lists(lines: list[str]) -> list[str]:
    """The lines less the items of a list that stand once more, run together, behind the last:

        It may include - pain         It may include
        - fever                  ->   - pain
        - chills pain fever chills    - fever
                                      - chills

    SeniorHealth's lists are like that, and begin on the line before.
    """
    kept, items = [], []
    for line in lines:
        kept.append(line)
        if not line.startswith("- "):
            items = _first_item(line)
        elif items:
            last, again, rest = line.removeprefix("- ").partition(f" {' '.join(items)} ")
            items.append(last)
            if again and f"{rest} ".startswith(f"{last} "):
                begin, after = -len(items), rest.removeprefix(last).strip()
                sentence = kept[begin].rpartition(" - ")[0]
                kept[begin:] = [sentence, *(f"- {item}" for item in items), *filter(None, [after])]
                items = _first_item(after)
    return kept


def _first_item(line: str) -> list[str]:
    """What may be the first item of a list, behind its sentence: at most one."""
    _, dash, item = line.rpartition(" - ")
    return [item] if dash else []
