"""PubMed XML: what is kept of a record, which files are refused, and that memory stays flat."""

import gzip
import random
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_yuyuan.data import xml_elements
from megatron_yuyuan.data.pubmed import (
    DELETED,
    EMPTY,
    FOREIGN,
    REASONS,
    RETRACTED,
    TITLE_ONLY,
    Citation,
    CitationFilter,
    read_pubmed,
)
from megatron_yuyuan.errors import DataError, UnsafeError

RECORD = """<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="{version}">{pmid}</PMID>
  <Article><ArticleTitle>{title}</ArticleTitle>{abstract}{article}</Article>{citation}</MedlineCitation>
  <PubmedData><ArticleIdList><ArticleId>1</ArticleId></ArticleIdList></PubmedData></PubmedArticle>
"""
HEAD = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD" "http://dtd.nlm.nih.gov/out/pubmed_190101.dtd">
"""


def record(title="Gout.", abstract="", pmid=1, version=1, article="", citation=""):
    """One PubmedArticle; `article` and `citation` are more XML at the end of these elements."""
    abstract = f"<Abstract>{abstract}</Abstract>" if abstract else ""
    return RECORD.format(
        title=title,
        abstract=abstract,
        pmid=pmid,
        version=version,
        article=article,
        citation=citation,
    )


def document(*records, root="PubmedArticleSet", head=HEAD):
    return f"{head}<{root}>\n{''.join(records)}</{root}>"


def read(tmp_path, content):
    file = tmp_path / "input"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_pubmed(file))


def test_a_citation_is_its_title_and_abstract(tmp_path):
    abstract = (
        '<AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">Gout  is\n old.</AbstractText>'
        '<AbstractText Label="EMPTY"/><AbstractText Label="UNLABELLED">H<sub>2</sub>O &lt; 5.'
        "<!-- a comment --></AbstractText><AbstractText>End.</AbstractText>"
    )
    (citation,) = read(tmp_path, document(record("<i>Gout</i> and\n water.", abstract, 7, 2)))
    assert citation == Citation(7, 2, "Gout and water.", "BACKGROUND: Gout is old.\nH2O < 5.\nEnd.")
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


def test_abstracts_lose_their_notice_and_other_publishers(tmp_path):
    abstract = (
        '<AbstractText Label="AIM">Gout. © 2019 Elsevier.</AbstractText>'
        "<AbstractText>It hurts. Copyright © 2019 Elsevier Inc. All rights reserved.</AbstractText>"
        "<CopyrightInformation>© 2019</CopyrightInformation>"
    )
    other = "<OtherAbstract><AbstractText>La goutte.</AbstractText></OtherAbstract>"
    (citation,) = read(tmp_path, document(record("T", abstract, citation=other)))
    assert citation.abstract == "AIM: Gout. © 2019 Elsevier.\nIt hurts."
    notice = '<AbstractText Label="COPYRIGHT">© 2019 Elsevier Inc.</AbstractText>'
    (citation,) = read(tmp_path, document(record("T", notice)))
    assert citation.abstract == "" and citation.text == "T"


def test_languages_are_read_in_small_letters(tmp_path):
    article = "<Language>ENG</Language><Language> fre\n</Language>"
    first, second = read(tmp_path, document(record(article=article), record()))
    assert first.languages == ("eng", "fre") and second.languages == ()


TYPES = "<PublicationTypeList><PublicationType>{}\n</PublicationType></PublicationTypeList>"
REFERENCE = """<CommentsCorrectionsList><CommentsCorrections RefType="{}"><RefSource>J</RefSource>
<PMID>99</PMID></CommentsCorrections></CommentsCorrectionsList>"""


@pytest.mark.parametrize(
    ("parts", "retracted"),
    [
        ({"article": TYPES.format("Retracted Publication")}, True),
        ({"article": TYPES.format("Retraction of Publication")}, True),
        ({"article": TYPES.format("Retraction Notice")}, True),
        ({"article": TYPES.format("Published Erratum")}, False),
        ({"citation": REFERENCE.format("RetractionIn")}, True),
        ({"citation": REFERENCE.format("RetractionOf")}, True),
        ({"citation": REFERENCE.format("CommentIn")}, False),
        ({"title": "RETRACTED: Gout."}, True),
        ({"title": "Retracted Article: Gout."}, True),
        ({"title": "WITHDRAWN: Gout."}, True),
        ({"title": "RETRACTION notice to gout."}, True),
        ({"title": "Gout [withdrawn]."}, True),
        ({"title": "Gout. [Retracted]"}, True),
        ({"title": "Retraction of the gum in gout."}, False),
        ({"title": "Withdrawn patients with gout."}, False),
        ({"title": "Patients who were withdrawn."}, False),
    ],
    ids=str,
)
def test_retracted_records_are_marked(tmp_path, parts, retracted):
    (citation,) = read(tmp_path, document(record(**parts)))
    assert citation.retracted == retracted and citation.pmid == 1


def test_deletions_come_in_the_order_of_the_file(tmp_path):
    deletion = '<DeleteCitation><PMID Version="2">1</PMID><PMID>5</PMID></DeleteCitation>'
    citations = read(tmp_path, document(record(pmid=1), deletion, record(pmid=5)))
    assert [(c.pmid, c.version, c.deleted) for c in citations] == [
        (1, 1, False),
        (1, 2, True),
        (5, 1, True),
        (5, 1, False),
    ]
    assert not citations[1].text


def test_books_and_chapters_have_a_title_and_an_abstract(tmp_path):
    book = """<PubmedBookArticle><BookDocument><PMID>{}</PMID><Book><BookTitle>Joints</BookTitle></Book>
    {}<Language>eng</Language><PublicationType>Review</PublicationType>
    <Abstract><AbstractText>Gout.</AbstractText></Abstract></BookDocument></PubmedBookArticle>"""
    chapter = "<ArticleTitle>Chapter</ArticleTitle>"
    citations = read(tmp_path, document(book.format(1, ""), book.format(2, chapter)))
    assert [c.text for c in citations] == ["Joints\nGout.", "Chapter\nGout."]
    assert citations[0].languages == ("eng",)


def test_records_without_number_or_text_are_read_too(tmp_path):
    citations = read(
        tmp_path,
        document(
            "<MedlineCitation/>",
            record(pmid="12-a", version="x"),
            record("", "<AbstractText>Only.</AbstractText>"),
        ),
    )
    assert citations[0] == Citation(0, 1, "", "")
    assert citations[1][:2] == (0, 1) and citations[2].text == "Only."


@pytest.mark.parametrize(
    ("citation", "reason"),
    [
        (Citation(1, 1, "T", "A", ("eng",)), ""),
        (Citation(1, 1, "T", "A"), ""),
        (Citation(1, 1, "", "A", ("ger", "eng")), ""),
        (Citation(1, 1, "", "", deleted=True), DELETED),
        (Citation(1, 1, "", "", ("eng",), True), EMPTY),
        (Citation(1, 1, "T", "A", ("ger",), True), RETRACTED),
        (Citation(1, 1, "T", "", ("ger",)), TITLE_ONLY),
        (Citation(1, 1, "T", "A", ("ger",)), FOREIGN),
    ],
)
def test_the_filter_names_its_reason(citation, reason):
    assert CitationFilter().reason(citation) == reason
    everything = CitationFilter(languages=(), keep_retracted=True, keep_title_only=True)
    assert everything.reason(citation) == (reason if reason in (DELETED, EMPTY) else "")


def test_each_option_of_the_filter_moves_one_reason():
    foreign, retracted = Citation(1, 1, "T", "A", ("ger",)), Citation(1, 1, "T", "A", (), True)
    title_only = Citation(1, 1, "T", "")
    options = [{"languages": ("ger",)}, {"keep_retracted": True}, {"keep_title_only": True}]
    for option, wanted in zip(options, (foreign, retracted, title_only), strict=True):
        kept = [
            c for c in (foreign, retracted, title_only) if not CitationFilter(**option).reason(c)
        ]
        assert kept == [wanted]
    assert set(REASONS) == {DELETED, EMPTY, RETRACTED, TITLE_ONLY, FOREIGN}


def test_any_root_any_nesting_and_gzip_by_content(tmp_path):
    bare = "<MedlineCitation><PMID>4</PMID><Article><ArticleTitle>T</ArticleTitle></Article></MedlineCitation>"
    wrapped = document(f"<wrapper>{record()}</wrapper>", bare, root="anything")
    for content in (
        wrapped.encode(),
        gzip.compress(wrapped.encode(), mtime=0),
        gzip.compress(wrapped[:99].encode(), mtime=0)
        + gzip.compress(wrapped[99:].encode(), mtime=0),
    ):
        assert [c.pmid for c in read(tmp_path, content)] == [1, 4]
    assert [c.pmid for c in read(tmp_path, bare)] == [4]
    utf16 = document(record("Größe"), head='<?xml version="1.0" encoding="utf-16"?>').encode(
        "utf-16"
    )
    assert read(tmp_path, utf16)[0].title == "Größe"


@pytest.mark.parametrize("border", ["", "\n", "\n\n \ufeff"])
@pytest.mark.parametrize("head", [HEAD, HEAD.splitlines()[0], HEAD.splitlines()[1]])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 16])
def test_documents_put_one_after_another_are_all_read(tmp_path, monkeypatch, border, head, chunk):
    """Also where the border falls between two reads."""
    monkeypatch.setattr(xml_elements, "CHUNK", chunk)
    documents = [document(record(pmid=n), head=head) for n in (1, 2)]
    documents += [f"{head}<PubmedArticleSet/>", document(record(pmid=3), head=head)]
    content = border.join(documents)
    assert [c.pmid for c in read(tmp_path, content)] == [1, 2, 3]
    with pytest.raises(DataError, match=r"line \d+ of document 4.*last whole record: PMID 2"):
        read(tmp_path, content.replace('<PMID Version="1">3</PMID>', "<PMID>"))
    with pytest.raises(DataError, match=r"line \d+: not well-formed.*last whole record: PMID 1"):
        read(tmp_path, content.replace("</PubmedArticleSet>", "", 1))


def test_what_looks_like_a_second_document_is_text_in_cdata(tmp_path):
    title = "<![CDATA[<?xml version='1.0'?> and <!DOCTYPE x> ]]>"
    assert (
        read(tmp_path, document(record(title)))[0].title == "<?xml version='1.0'?> and <!DOCTYPE x>"
    )


WHOLE = document(*(record(f"Title {n}.", pmid=n) for n in range(1, 400)))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (gzip.compress(WHOLE.encode(), mtime=0)[:-8], "stream ends early"),
        (gzip.compress(WHOLE.encode(), mtime=0)[:200], "stream ends early"),
        (gzip.compress(WHOLE.encode(), mtime=0)[:-8] + bytes(8), "damaged"),
        (WHOLE[:-40], "not well-formed XML"),
        (WHOLE + "<more/>", "not well-formed XML"),
        (document(record("a & b")), "not well-formed XML"),
        ("<html><p>Service unavailable</p></html>", "no citation in it"),
        ("not XML", "not well-formed XML"),
        (HEAD + "<a>" * 100_000, "not well-formed XML"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) and "<" not in value else "",
)
def test_damaged_files_are_refused(tmp_path, content, what):
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    assert what in error.value.what


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
def test_a_cut_gzip_is_refused_wherever_it_is_cut(tmp_path, share):
    content = gzip.compress(WHOLE.encode(), mtime=0)
    with pytest.raises(DataError, match=r"is empty|stream ends early"):
        read(tmp_path, content[: int(len(content) * share)])


def test_a_gzip_cut_between_two_members_is_refused(tmp_path):
    half = len(WHOLE) // 2
    members = [gzip.compress(part.encode(), mtime=0) for part in (WHOLE[:half], WHOLE[half:])]
    assert len(read(tmp_path, b"".join(members))) == 399
    with pytest.raises(DataError, match=r"not well-formed XML.*last whole record: PMID 200"):
        read(tmp_path, members[0])


def test_every_flipped_bit_of_a_gzip_is_noticed(tmp_path):
    content, chance = gzip.compress(WHOLE.encode(), mtime=0), random.Random(0)
    for _ in range(50):
        position = chance.randrange(10, len(content))  # the header's date and system do not matter
        flipped = bytearray(content)
        flipped[position] ^= 1 << chance.randrange(8)
        with pytest.raises(DataError):
            read(tmp_path, bytes(flipped))


def test_an_error_page_saved_under_the_name_of_a_file_is_refused(tmp_path):
    file = tmp_path / "pubmed26n0001.xml.gz"
    file.write_text("<!DOCTYPE html><html><p>Service unavailable<br></p></html>")
    with pytest.raises(DataError, match="not well-formed XML"):
        list(read_pubmed(file))


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
import re, resource, sys
from megatron_yuyuan.data.pubmed import read_pubmed
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    print(sum(1 for _ in read_pubmed(sys.argv[1])))
except Exception as error:
    print(type(error).__name__)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""
NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from /proc"
)


def count_and_peak(file):
    """What a process with 1 GiB of address space finds in `file`: the number of citations or the
    name of the error, and its peak of memory in bytes (the parser's memory is not Python's)."""
    command = [sys.executable, "-c", PEAK, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, peak = done.stdout.split()
    return found, int(peak)


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))


@NEEDS_PROC
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("head", "title", "error"),
    [
        (f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>', "&l9;", "UnsafeError"),
        (f'<!DOCTYPE x [<!ENTITY a "{"a" * 100_000}">]>', "&a;" * 100_000, "UnsafeError"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "&a;", "UnsafeError"),
        ("", "<b>" * 100_000, "DataError"),
    ],
    ids=["billion laughs", "quadratic", "external", "nesting"],
)
def test_bombs_are_refused_in_little_memory(tmp_path, head, title, error, encoding):
    file = tmp_path / "bomb.xml"
    head = f'<?xml version="1.0" encoding="{encoding}"?>{head}'
    file.write_text(document(record(title), head=head), encoding=encoding)
    found, peak = count_and_peak(file)
    assert found in (error, "DataError") and peak < 300e6
    if encoding == "utf-8":
        assert found == error


@NEEDS_PROC
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Measured on a whole process: the parser's memory is not Python's."""
    peaks, abstract = [], f"<AbstractText>{'x ' * 2000}</AbstractText>"
    for records in (100, 10_000):
        file = tmp_path / f"{records}.xml"
        file.write_text(document(*[record(abstract=abstract)] * records))
        count, peak = count_and_peak(file)
        assert count == str(records)
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 4e6 < file.stat().st_size / 10


def test_the_real_files_are_read(real_data):
    folder = real_data / "pubmed_xml"
    files = sorted(path for path in (folder / "real").rglob("*") if path.is_file())
    entries = [entry for file in files for entry in read_pubmed(file)]
    citations = [entry for entry in entries if not entry.deleted]
    assert len(files) == 224 and len(citations) == 3352 and len(entries) > len(citations)
    assert sum(c.pmid > 0 for c in citations) > len(citations) - 20  # some are hand-made
    assert sum(bool(c.abstract) for c in citations) > 2000
    assert 5 < sum(c.retracted for c in citations) < 30
    assert all(c.text.strip() == c.text for c in citations)
    (malformed,) = (folder / "malformed").iterdir()
    with pytest.raises(DataError, match="line 256"):
        list(read_pubmed(malformed))


@pytest.mark.parametrize("pmid", ["-1", "7" * 30, "9" * 5000, "x", ""])
def test_a_number_that_is_none_is_no_identity(tmp_path, pmid):
    for version in ("-1", str(2**31), "7" * 30, "x"):
        (citation,) = read(tmp_path, document(record(pmid=pmid, version=version)))
        assert (citation.pmid, citation.version) == (0, 1)


def test_xml_without_records_is_not_collected_in_memory(tmp_path):
    for content in (document(record(), "<x/>" * 4_000_000), document(record("<x/>" * 4_000_000))):
        with pytest.raises(UnsafeError, match="8 MB of XML without the end of a record"):
            read(tmp_path, gzip.compress(content.encode(), mtime=0))
