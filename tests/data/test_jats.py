"""JATS full text: what is running text, in which order, and which files are refused."""

import gzip
import json
import subprocess
from collections import Counter

import pytest

from megatron_yuyuan.data.jats import Article, read_jats
from megatron_yuyuan.errors import DataError, UnsafeError

ARTICLE = """<?xml version="1.0"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS v1.3//EN" "JATS-archivearticle1-3.dtd">
<article xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="{kind}"><front><article-meta>
<article-id pub-id-type="pmid">15566573</article-id><article-id pub-id-type="pmc">1065065</article-id>
<title-group><article-title>{title}</article-title><subtitle>Sub</subtitle></title-group>
{meta}</article-meta></front>
<body>{body}</body><back><ref-list><ref><mixed-citation>Ref</mixed-citation></ref></ref-list></back>
<sub-article><body><p>A review.</p></body></sub-article></article>"""


def article(
    body="<p>Text.</p>", title="<italic>Gout</italic>\n today", meta="", kind="research-article"
):
    return ARTICLE.format(body=body, title=title, meta=meta, kind=kind)


def read(tmp_path, content):
    file = tmp_path / "input.nxml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_jats(file))


def body_of(tmp_path, body):
    return read(tmp_path, article(body))[0].body


def test_an_article_is_title_abstract_and_body(tmp_path):
    meta = """<abstract abstract-type="graphical"><p>A picture.</p></abstract>
    <abstract><sec><title>Aim</title><p>To cure.</p></sec><p>Done. © 2019 Elsevier Inc.</p></abstract>
    <abstract abstract-type="summary"><p>For editors.</p></abstract>"""
    body = "<sec><label>1.</label><title>Methods</title><p>First.</p><sec><title>Mice</title><p>Two.</p></sec></sec>"
    (found,) = read(tmp_path, gzip.compress(article(body, meta=meta).encode(), mtime=0))
    assert found == Article(
        pmcid="PMC1065065",
        pmid=15566573,
        title="Gout today",
        abstract="Aim\nTo cure.\nDone.",
        body="Methods\nFirst.\nMice\nTwo.",
    )
    assert found.text == "Gout today\nAim\nTo cure.\nDone.\nMethods\nFirst.\nMice\nTwo."


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("<p>H<sub>2</sub>O and 10<sup>6</sup> <bold>cells</bold>\n  grew.</p>", "H2O and 106 cells grew."),
        ("<p>A <table-wrap><table><td>5</td></table></table-wrap>B</p>", "A B"),
        ("<p>A</p><fig><label>1</label><caption><p>C</p></caption></fig><p>B</p>", "A\nB"),
        ("<p>If <inline-formula><tex-math>\\alpha</tex-math><mml:math><mml:mi>α</mml:mi><mml:annotation>T"
         "</mml:annotation></mml:math></inline-formula>=1<disp-formula>x</disp-formula>then</p>", "If α=1 then"),
        ("<p>Old [<xref ref-type='bibr'>1</xref>].</p>", "Old [1]."),
        ("<p>Old<sup><xref ref-type='bibr'>1</xref>, <xref ref-type='bibr'>2</xref></sup>.</p>", "Old."),
        ("<p>Old<xref ref-type='bibr'><sup>1</sup></xref>.</p>", "Old."),
        ("<p>m<sup>2 <xref ref-type='bibr'>1</xref></sup>; see <xref ref-type='fig'>Figure 1</xref>.</p>",
         "m2 1; see Figure 1."),
        ("<p>Ask:<list><list-item><label>a</label><p>Why</p></list-item><list-item><p>How</p>"
         "</list-item></list>and go on.</p>", "Ask:\nWhy\nHow\nand go on."),
        ("<boxed-text><caption><title>Key</title></caption><p>Rest.</p></boxed-text>", "Key\nRest."),
        ("<disp-quote><p>Said.</p><attrib>Anon</attrib></disp-quote>", "Said."),
        ("<sec sec-type='supplementary-material'><title>More</title><p>S1</p></sec><p>End</p>", "End"),
        ("<p>One<break/>two<supplementary-material><p>S1</p></supplementary-material></p>", "One two"),
        ("<p>5 &lt; 6 &nbsp;&amp; more</p>", "5 < 6 &nbsp;& more"),  # what &nbsp; is stands in a DTD
        ("<p>Note<fn><p>Foot</p></fn></p>", "Note"),
        ("", ""),
    ],
)  # fmt: skip
def test_running_text(tmp_path, body, kept):
    assert body_of(tmp_path, body) == kept


@pytest.mark.parametrize(
    ("parts", "retracted"),
    [
        ({"kind": "retraction"}, True),
        ({"title": "RETRACTED: Gout"}, True),
        ({"meta": '<related-article related-article-type="retracted-article"/>'}, True),
        ({"meta": '<related-article related-article-type="companion"/>'}, False),
        ({"kind": "correction"}, False),
    ],
)
def test_retracted_articles_are_marked(tmp_path, parts, retracted):
    assert read(tmp_path, article(**parts))[0].retracted == retracted


def test_articles_without_numbers_and_several_in_a_file(tmp_path):
    bare = "<article><front/><body><p>Text.</p></body></article>"
    number = '<front><article-meta><article-id pub-id-type="pmcid">PMC7</article-id></article-meta></front>'
    content = f"<pmc-articleset>{bare}<article>{number}</article></pmc-articleset>"
    assert read(tmp_path, content) == [
        Article("", 0, "", "", "Text."),
        Article("PMC7", 0, "", "", ""),
    ]


def test_nesting_as_deep_as_the_parser_goes_is_read(tmp_path):
    deep = 250
    assert body_of(tmp_path, f"<p>{'<b>' * deep}x{'</b>' * deep}</p>") == "x"


@pytest.mark.parametrize(
    ("content", "error", "what"),
    [
        ("", DataError, "is empty"),
        ("<html/>", DataError, "no article in it"),
        (article()[:-20], DataError, "not well-formed XML"),
        (article() + article()[:-9], DataError, "last whole record: article 15566573 1065065"),
        (gzip.compress(article().encode(), mtime=0)[:-9], DataError, "stream ends early"),
        (article("<b>" * 100_000), DataError, "not well-formed XML"),
        ('<!DOCTYPE article [<!ENTITY a "b">]><article>&a;</article>', UnsafeError, "declares"),
    ],
)
def test_what_is_no_article_is_refused(tmp_path, content, error, what):
    with pytest.raises(error) as raised:
        read(tmp_path, content)
    assert what in raised.value.what


def test_the_text_of_real_articles_is_all_there(tmp_path, real_data):
    """Against another reader's text of the same articles: what either has, the other has too."""
    archive = real_data / "pmc_nxml" / "pmc_nxml.tar.zst"
    with gzip.open(
        real_data / "pubmed_text" / "pmc_fulltext.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        expected = {record["id"].removeprefix("pmc:"): record for record in map(json.loads, lines)}
    unpack = ["tar", "--use-compress-program=zstd --long=27", "-xf", archive, "-C", tmp_path]
    subprocess.run(unpack, check=True)
    shared, ours, theirs = 0, 0, 0
    for file in sorted(tmp_path.rglob("*.nxml"))[::20]:
        (found,) = read_jats(file)
        if (record := expected.get(found.pmcid)) is None:
            assert not found.body
            continue
        assert found.title == record["title"] and found.pmid == int(record["pmid"] or 0)
        words, other = Counter(found.body.split()), Counter(record["text"].split())
        shared, ours, theirs = (
            shared + (words & other).total(),
            ours + words.total(),
            theirs + other.total(),
        )
    assert shared > 300_000 and shared > 0.99 * ours and shared > 0.99 * theirs
