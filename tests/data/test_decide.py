"""Which documents are kept: versions, deletions, repeats; compared with the rule written out plainly."""

import random

import numpy as np
import pytest

from megatron_yuyuan.data import decide as decide_module
from megatron_yuyuan.data.decide import ScannedUnit, decide
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.permutation import mix
from megatron_yuyuan.data.pubmed import DELETED
from megatron_yuyuan.data.records import (
    CODES,
    DELETION_NOTICE,
    IN_BAD_FILE,
    NEAR_REPEATED,
    OLDER,
    REASONS,
    REPEATED,
    UnitFiles,
    UnitWriter,
)


def unit(folder, number, first, documents, parts=None) -> ScannedUnit:
    """A scanned unit of documents {pmid, version, notice, text, bands, reason}."""
    files = UnitFiles(folder, number)
    with AtomicFiles() as atomic:
        writer = UnitWriter(files, atomic)
        for place, d in enumerate(documents):
            if pmid := d.get("pmid"):
                value = 2 * d.get("version", 1) + d.get("notice", False)
                writer.runs["identity"].add(
                    *np.array([[mix(pmid)], [pmid], [place], [value]], np.uint64)
                )
            if text := d.get("text"):
                writer.runs["text"].add(*np.array([[mix(text)], [text], [place]], np.uint64))
            for number_of, band in enumerate(d.get("bands", ())):
                writer.runs["bands"].add(*np.array([[mix(band)], [number_of], [place]], np.uint64))
        reason = [
            CODES[d.get("reason", DELETION_NOTICE if d.get("notice") else "")] for d in documents
        ]
        empty = np.zeros(len(documents))
        writer.add(np.zeros(0, np.uint16), empty, np.array(reason))
        parts = parts or [(number, {"documents": len(documents)})]
        writer.finish({"fingerprint": "f", "parts": [part for _, part in parts]})
    return ScannedUnit(files, files.done("f"), [source for source, _ in parts], first)


def reasons(folder, *units) -> list[str]:
    scanned, first = [], 0
    for number, documents in enumerate(units):
        scanned.append(unit(folder, number, first, documents))
        first += len(documents)
    return [REASONS[code] for code in decide(scanned)]


def test_a_baseline_and_two_updates(tmp_path):
    """Row D09: PMID 1 in two versions, 2 deleted, 3 deleted and added again."""
    baseline = [{"pmid": n, "version": 1} for n in (1, 2, 3, 4)]
    first = [
        {"pmid": 1, "version": 2},
        *({"pmid": n, "version": 1, "notice": True} for n in (2, 3)),
    ]
    second = [{"pmid": 3, "version": 1}, {"pmid": 4, "version": 1}]
    assert reasons(tmp_path, baseline, first, second) == [
        *(OLDER, DELETED, DELETED, OLDER),
        *("", DELETION_NOTICE, DELETION_NOTICE),
        *("", ""),
    ]


def test_an_unwanted_newest_version_does_not_bring_back_an_older_one(tmp_path):
    retracted = {"pmid": 1, "version": 2, "reason": "retracted"}
    assert reasons(tmp_path, [{"pmid": 1}], [retracted], [{"pmid": 1}]) == [
        OLDER,
        "retracted",
        OLDER,
    ]


def test_a_deletion_reaches_up_to_its_version(tmp_path):
    two = [{"pmid": 1, "version": 1}, {"pmid": 1, "version": 2}]
    for version, expected in ((1, [DELETED, ""]), (2, [DELETED, DELETED]), (3, [DELETED, DELETED])):
        notice = [{"pmid": 1, "version": version, "notice": True}]
        assert reasons(tmp_path, two, notice)[:2] == expected
        assert reasons(tmp_path, notice, two)[1:] == [OLDER, ""]


def test_of_repeats_the_first_that_is_kept_stays(tmp_path):
    dropped = {"pmid": 7, "text": 5}
    units = [
        [dropped, {"text": 5}, {"text": 6}],
        [{"pmid": 7, "text": 8}, {"text": 5}, {"text": 6}],
    ]
    assert reasons(tmp_path, *units) == [OLDER, "", "", "", REPEATED, REPEATED]


def test_near_repeats_share_a_band_in_the_same_place(tmp_path):
    a, b, c, d = [
        {"text": n, "bands": bands} for n, bands in enumerate([(1, 2), (3, 2), (2, 1), (3, 9)], 1)
    ]
    again = {"text": 1, "bands": (9, 9)}
    assert reasons(tmp_path, [a, b, c, again, d]) == [
        "",
        NEAR_REPEATED,
        "",
        REPEATED,
        NEAR_REPEATED,
    ]


def test_a_file_that_is_bad_in_one_unit_gives_nothing_in_any(tmp_path):
    begin, end, good = {"documents": 2}, {"documents": 2, "error": "cut"}, {"documents": 1}
    documents = [{"text": 2}, {"text": 3}, {"pmid": 1}]
    units = [
        unit(tmp_path, 0, 0, [{"pmid": 1, "version": 9}, {"text": 1}], [(0, begin)]),
        unit(tmp_path, 1, 2, documents, [(0, end), (1, good)]),
    ]
    codes = decide(units)
    assert [REASONS[code] for code in codes] == [*[IN_BAD_FILE] * 4, ""]


def test_a_text_that_is_everywhere_takes_no_more_memory(tmp_path, monkeypatch):
    """Records come together a block at a time, also if all are alike."""
    monkeypatch.setattr(decide_module, "BLOCK", 64)
    joined, join = [], decide_module._join
    monkeypatch.setattr(
        decide_module, "_join", lambda slices: joined.append(join(slices)) or joined[-1]
    )
    units = [[{"text": 1}] * 50 for _ in range(20)]
    found = reasons(tmp_path, *units)
    assert found == ["", *[REPEATED] * 999]
    assert max(len(records) for records, _ in joined) <= 20


def expected_reasons(documents) -> list[str]:
    """The rule, one document after another."""
    result = [d.get("reason", DELETION_NOTICE if d.get("notice") else "") for d in documents]
    for pmid in {d["pmid"] for d in documents if "pmid" in d}:
        own = [n for n, d in enumerate(documents) if d.get("pmid") == pmid and not d.get("notice")]
        notices = [
            (n, d) for n, d in enumerate(documents) if d.get("pmid") == pmid and d.get("notice")
        ]
        gone = {
            n
            for n in own
            if any(at > n and d["version"] >= documents[n]["version"] for at, d in notices)
        }
        alive = [n for n in own if n not in gone]
        newest = max(alive, key=lambda n: (documents[n]["version"], n), default=None)
        for n in own:
            if n != newest:
                result[n] = result[n] or (DELETED if n in gone else OLDER)
    seen = set()
    for n, d in enumerate(documents):
        if not result[n] and "text" in d:
            result[n] = REPEATED if d["text"] in seen else ""
            seen.add(d["text"])
    return result


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_in_small_blocks(tmp_path, monkeypatch, seed):
    """With so small a block every range of keys is gathered from many files."""
    monkeypatch.setattr(decide_module, "BLOCK", 16)
    draw = random.Random(seed)
    documents = []
    for _ in range(300):
        d = {"text": draw.randrange(1, 200)}
        if draw.random() < 0.8:
            d |= {"pmid": draw.randrange(1, 60), "version": draw.randrange(1, 4)}
            d |= {"notice": True} if draw.random() < 0.15 else {}
        if draw.random() < 0.1 and not d.get("notice"):
            d["reason"] = "retracted"
        if d.get("notice") or d.get("reason"):
            del d["text"]
        documents.append(d)
    cuts = sorted(draw.sample(range(1, 300), 7))
    units = [documents[a:b] for a, b in zip([0, *cuts], [*cuts, 300], strict=True)]
    found = reasons(tmp_path, *units)
    assert found == expected_reasons(documents)
    assert {"", DELETED, OLDER, REPEATED} <= set(found)
