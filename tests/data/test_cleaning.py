"""Text normalisation: the quick path says what the slow one does; notices go, science stays."""

import gzip
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_yuyuan.data import cleaning
from megatron_yuyuan.data.cleaning import clean, read_plain_text, without_notice
from megatron_yuyuan.errors import DataError

XML_TEXT = st.text(
    st.one_of(st.characters(min_codepoint=32), st.sampled_from(" \t\n\r\xa0\u2009\u0301"))
)


@given(XML_TEXT)
def test_clean_is_split_and_join_of_the_composed_form(text):
    assert clean(text) == " ".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("Gout is old.", "Gout is old."),
        (" Gout\n  is\told. ", "Gout is old."),
        ("Gout  is old.", "Gout is old."),
        ("p\u2009=\u20090.05,\xa0n", "p = 0.05, n"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("5 \u00b5g", "5 \u00b5g"),  # NFKC would make it another letter
        ("", ""),
    ],
)
def test_clean(raw, kept):
    assert clean(raw) == kept


@pytest.mark.parametrize(
    "notice",
    [
        "Copyright © 2019 Elsevier Inc. All rights reserved.",
        "© 2020 The Authors. Published by Wiley Periodicals, Inc. on behalf of the AHA.",
        "© The Author(s) 2012. This article is published with open access at Springerlink.com.",
        "© 2013 Marchesi et al, publisher and licensee Dove Medical Press Ltd",
        "© Springer-Verlag 2010",
        "© 2018 Wiley Periodicals, Inc. J Biomed Mater Res Part B: 107B: 1864-1876, 2019.",
        "©2017 AACR.",
        "(c) 2005 Wiley-Liss, Inc.",
        "(C) 2019 Elsevier Masson SAS. All rights reserved.",
        "(copyright) 2011 Elsevier Ltd.",
        "Copyright 1994 S. Karger AG, Basel",
        "Published by Elsevier Ltd.",
        "Published 2004 by the American Cancer Society.",
        "This article is protected by copyright. All rights reserved.",
        "All rights reserved.",
        "(ABSTRACT TRUNCATED AT 250 WORDS)",
        "(ABSTRACT TRUNCATED)",
        "(PsycInfo Database Record (c) 2021 APA, all rights reserved).",
        "Copyright © 2015 John Wiley & Sons, Ltd. (PsycINFO Database Record (c) 2015 APA, "
        "all rights reserved) (journal abstract)",
    ],
)
def test_notices_at_the_end_go(notice):
    assert without_notice(f"Gout hurts (n = 5). {notice}") == "Gout hurts (n = 5)."
    assert without_notice(f"Gout hurts.{notice}") == "Gout hurts."
    assert without_notice(notice) == ""
    amid = f"Gout hurts. {notice} Colchicine helps most patients."
    assert without_notice(amid) == amid


@pytest.mark.parametrize(
    "abstract",
    [
        "Surgery should be reserved for patients whose disease progresses.",
        "Groups were (a) treated, (b) untreated and (c) 2021 controls that were matched by age.",
        "The antisense poly(C) binds. Function was preserved.",
        "We used the Beck Inventory © 1996 and found that scores fell.",
        "Published by the CDC in 2010, the guideline was followed by most of the hospitals.",
        "Published cohorts differed. Rights of patients were respected.",
        "Copyright law was discussed by all participants.",
        "Expression rose in 2019. CRISPR-Cas9 KO of TP53.",
        "The video was made public under an open licence [Published with Video sequence].",
        "",
    ],
)
def test_science_stays(abstract):
    assert without_notice(abstract) == abstract


def test_real_abstracts_lose_notices_and_nothing_else(real_data):
    changed = total = longest = 0
    with gzip.open(
        real_data / "pubmed_text" / "abstracts.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        for line in lines:
            abstract = clean(json.loads(line).get("abstract") or "")
            kept = without_notice(abstract)
            assert abstract.startswith(kept)
            total, changed = total + 1, changed + (kept != abstract)
            longest = max(longest, len(abstract) - len(kept))
    assert total == 27249 and 600 < changed < 700 and longest < 250


def test_a_text_file_is_one_document(tmp_path):
    file = tmp_path / "a.txt"
    for content in (
        "\ufeff\nCafe\u0301  au lait \r\n\r\nEnd\n\n".encode(),
        gzip.compress("Caf\u00e9  au lait\n\nEnd".encode(), mtime=0),
    ):
        file.write_bytes(content)
        assert read_plain_text(file) == "Caf\u00e9  au lait\n\nEnd"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"gout \xff\xfe", "byte 5 is not UTF-8"),
        (b"gout \xed\xa0\x80", "byte 5 is not UTF-8"),
        (b"gout\0", "character 4 is NUL"),
        (b"123456789", "holds more than"),
        (gzip.compress(b"12345678", mtime=0)[:-4], "stream ends early"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, content, what):
    monkeypatch.setattr(cleaning, "LARGEST_TEXT", 8)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=what):
        read_plain_text(tmp_path / "a.txt")
