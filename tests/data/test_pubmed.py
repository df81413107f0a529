"""PubMed XML: what is kept of a record, which files are refused, and that memory stays flat."""

import gzip
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from megatron_yuyuan.data.pubmed import Citation, read_pubmed
from megatron_yuyuan.errors import DataError, UnsafeError

RECORD = """<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="{version}">{pmid}</PMID>
  <Article><ArticleTitle>{title}</ArticleTitle>{abstract}</Article></MedlineCitation>
  <PubmedData><ArticleIdList><ArticleId>1</ArticleId></ArticleIdList></PubmedData></PubmedArticle>
"""
HEAD = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD" "http://dtd.nlm.nih.gov/out/pubmed_190101.dtd">
"""


def record(title="Gout.", abstract="", pmid=1, version=1):
    body = f"<Abstract>{abstract}</Abstract>" if abstract else ""
    return RECORD.format(title=title, abstract=body, pmid=pmid, version=version)


def document(*records, root="PubmedArticleSet", head=HEAD):
    return f"{head}<{root}>\n{''.join(records)}</{root}>"


def read(tmp_path, content, dropped=None):
    file = tmp_path / "input"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_pubmed(file, dropped))


def test_a_citation_is_its_title_and_abstract(tmp_path):
    abstract = (
        '<AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">Gout  is\n old.</AbstractText>'
        '<AbstractText Label="EMPTY"/><AbstractText Label="UNLABELLED">H<sub>2</sub>O &lt; 5.'
        "<!-- a comment --></AbstractText><AbstractText>End.</AbstractText>"
    )
    (citation,) = read(tmp_path, document(record("<i>Gout</i> and\n water.", abstract, 7, 2)))
    assert citation == Citation(
        "7", 2, "Gout and water.", "BACKGROUND: Gout is old.\nH2O < 5.\nEnd."
    )
    assert citation.text == "Gout and water.\nBACKGROUND: Gout is old.\nH2O < 5.\nEnd."


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("[Gout.]", "Gout."),
        ("[Gout].", "Gout."),
        ("[Gout]", "Gout"),
        ("[Gout?].", "Gout?"),
        ("[Gout] .", "Gout."),
        ("[18F]CFA and [11C]X", "[18F]CFA and [11C]X"),
        ("[The [18F] probe].", "The [18F] probe."),
        ("Gout [review].", "Gout [review]."),
        ("[Not Available].", ""),
        ("[In process citation]", ""),
    ],
)
def test_brackets_of_translated_titles_go(tmp_path, written, kept):
    citations = read(tmp_path, document(record(written, "<AbstractText>a</AbstractText>")))
    assert citations[0].title == kept


def test_records_without_text_are_passed_over_and_counted(tmp_path):
    dropped = Counter()
    only_abstract = record("", "<AbstractText>An abstract.</AbstractText>", 2)
    content = document(record("", "", 1), only_abstract, record("Title.", "", 3))
    assert [c.text for c in read(tmp_path, content, dropped)] == ["An abstract.", "Title."]
    assert dropped == {"neither title nor abstract": 1}


def test_any_root_any_nesting_and_gzip_by_content(tmp_path):
    bare = "<MedlineCitation><PMID>4</PMID><Article><ArticleTitle>T</ArticleTitle></Article></MedlineCitation>"
    wrapped = document(f"<wrapper>{record()}</wrapper>", bare, root="anything")
    for content in (
        wrapped.encode(),
        gzip.compress(wrapped.encode()),
        gzip.compress(wrapped[:99].encode()) + gzip.compress(wrapped[99:].encode()),
    ):
        assert [c.pmid for c in read(tmp_path, content)] == ["1", "4"]
    assert [c.pmid for c in read(tmp_path, bare)] == ["4"]
    utf16 = document(record("Größe"), head='<?xml version="1.0" encoding="utf-16"?>').encode(
        "utf-16"
    )
    assert read(tmp_path, utf16)[0].title == "Größe"


WHOLE = document(*(record(f"Title {n}.", pmid=n) for n in range(1, 400)))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (gzip.compress(b""), "is empty"),
        (gzip.compress(WHOLE.encode())[:-8], "gzip stream ends early"),
        (gzip.compress(WHOLE.encode())[:200], "gzip stream ends early"),
        (gzip.compress(WHOLE.encode())[:-8] + bytes(8), "damaged gzip"),
        (WHOLE[:-40], "not well-formed XML"),
        (WHOLE + "<more/>", "not well-formed XML"),
        (document(record("a & b")), "not well-formed XML"),
        ("<html><p>Service unavailable</p></html>", "no citation in it"),
        (document("<DeleteCitation><PMID>1</PMID></DeleteCitation>"), "no citation in it"),
        ("not XML", "not well-formed XML"),
        (HEAD + "<a>" * 100_000, "not well-formed XML"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) and "<" not in value else "",
)
def test_damaged_files_are_refused(tmp_path, content, what):
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    assert what in error.value.what


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.xml", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            list(read_pubmed(path))


def test_malformed_xml_is_located(tmp_path):
    content = document(
        record("One.", pmid=11), record("Two.", pmid=12), record("<b>Three.", pmid=13)
    )
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    assert "line 11" in error.value.what and "PMID 12" in error.value.what


@pytest.mark.parametrize(
    "declaration",
    [
        '<!ENTITY a "b">',
        '<!ENTITY a SYSTEM "file:///etc/hostname">',
        '<!ENTITY % a SYSTEM "http://localhost/x">',
        '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_declarations_are_refused(tmp_path, declaration, encoding):
    head = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE PubmedArticleSet [{declaration}]>'
    content = document(record("safe" if "%" in declaration else "&a;"), head=head)
    with pytest.raises(UnsafeError, match="declares XML entities"):
        read(tmp_path, content.encode(encoding))


def test_a_declaration_across_two_reads_is_seen(tmp_path):
    padding = " " * ((1 << 16) - len("<!DOCTYPE x [") - 4)
    with pytest.raises(UnsafeError):
        read(tmp_path, f"<!DOCTYPE x [{padding}<!ENTITY a 'b'>]><x>{record()}</x>")


PEAK = """
import re, sys
from megatron_yuyuan.data.pubmed import read_pubmed
count = sum(1 for _ in read_pubmed(sys.argv[1]))
print(count, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Measured on a whole process: the parser's memory is not Python's."""
    peaks, abstract = [], f"<AbstractText>{'x ' * 2000}</AbstractText>"
    for records in (100, 10_000):
        file = tmp_path / f"{records}.xml"
        file.write_text(document(*[record(abstract=abstract)] * records))
        command = [sys.executable, "-c", PEAK, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        assert count == records
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 4e6 < file.stat().st_size / 10


def test_the_real_files_are_read(real_data):
    files = sorted(
        path for path in (real_data / "pubmed_xml" / "real").rglob("*") if path.is_file()
    )
    citations = [citation for file in files for citation in read_pubmed(file)]
    assert len(files) == 224
    assert len(citations) == 3342 and sum(bool(c.abstract) for c in citations) > 2000
    assert sum(c.pmid[:7].isdecimal() for c in citations) == len(citations) - 4  # hand-made ones
    assert all(c.text and c.text.strip() == c.text for c in citations)
    (malformed,) = (real_data / "pubmed_xml" / "malformed").iterdir()
    with pytest.raises(DataError, match="line 256"):
        list(read_pubmed(malformed))
