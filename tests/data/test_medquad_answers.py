"""MedQuAD's answers: each oddity of its sources, as it stands there and as it should read."""

import io
import re
import shutil
import subprocess
import tarfile

import pytest
from lxml import etree

from megatron_yuyuan.data.medquad_answers import clean_answer, clean_text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" What  is\n gout ? ", "What is gout?"),
        ("Gout? ?", "Gout?"),
        ("Why ? Because.", "Why? Because."),
        ("What??", "What??"),
        ("", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


SPACE = "\n                \n"
EXPLAINED = (
    "The Human Phenotype Ontology provides the following list of signs and symptoms for Gout. If the "
    "information is available, the table below includes how often the symptom is seen in people with "
    "this condition. You can use the MedlinePlus Medical Dictionary to look up the definitions. Signs "
    "and Symptoms Approximate number of patients (when available) {} The Human Phenotype Ontology (HPO) "
    "has collected information on how often a sign or symptom occurs in a condition. In these cases, "
    "the sign or symptom may be rare or common."
)
LISTED = "The Human Phenotype Ontology provides the following list of signs and symptoms for Gout."


CASES = [
    (
        "Causes include       - Injuries    - A -  b - c       Then:",
        "Causes include|- Injuries|- A - b - c|Then:",
    ),
    (
        f"One.{SPACE}Two  three?  Four{SPACE}{SPACE}- five  - six",
        "One.|Two three? Four|- five|- six",
    ),
    ("A line\n\t\t\t Another\n -\n - item", "A line|Another|- item"),
    ("Type 1 - the first - is  not a list", "Type 1 - the first - is not a list"),
    ("Summary : Gout.     Pain.    NIH: National Institute on Aging", "Gout.|Pain."),
    ("Food and Drug Administration", "Food and Drug Administration"),
    ("The Food and Drug Administration     agrees.", "The Food and Drug Administration|agrees."),
    ("Key Points\n     - One.    - Two.\n \n One.\n Text.\n Two.\n More.", "One.|Text.|Two.|More."),
    (
        "Key Points\n     - One.    - Else.\n \n One.\n Text.\n    - One.",
        "- Else.|One.|Text.|- One.",
    ),
    (
        "Tests. Information about clinical trials is available from the NCI website.\n  Ask.",
        "Tests.|Ask.",
    ),
    (
        "These resources address the management of gout:  - Gene Review: Gout   "
        "These resources from MedlinePlus offer information:  - Therapy",
        "",
    ),
    (" \n - \n", ""),
    (
        EXPLAINED.format("Autosomal dominant inheritance -"),
        f"{LISTED}|- Autosomal dominant inheritance",
    ),
    (
        EXPLAINED.format(
            "Long face 16/16 EEG: spikes (3 Hz) 7.5% Short 3 of 4 Odd % Type 2 90% Last"
        )
        + " And?",
        f"{LISTED}|- Long face (16/16)|- EEG: spikes (3 Hz) (7.5%)|- Short (3 of 4)|- Odd|- Type 2 (90%)|- Last|And?",
    ),
    (
        "May be - pain  - fever  - a cold pain fever a cold Call us.",
        "May be|- pain|- fever|- a cold|Call us.",
    ),
    ("May be - pain  - a cold pain a cold Or - a  - b a b", "May be|- pain|- a cold|Or|- a|- b"),
    ("May be - pain  - fever pain fever", "May be|- pain|- fever"),
    ("May be - pain  - fever and pain  - a cold", "May be - pain|- fever and pain|- a cold"),
    ("May be - pain  - a cold pain a colder", "May be - pain|- a cold pain a colder"),
    ("May be - pain  - fever pain and fever", "May be - pain|- fever pain and fever"),
]
"""An answer as it stands in a source -> its lines, divided by |."""


@pytest.mark.parametrize(
    ("raw", "lines"), CASES, ids=[" ".join(raw.split())[:30] for raw, _ in CASES]
)
def test_an_answer_becomes_lines(raw, lines):
    clean = lines.replace("|", "\n")
    assert clean_answer(raw) == clean
    assert clean_answer(clean) == clean  # what is clean stays


FURNITURE = re.compile(
    r"Key Points|Summary :|If the information is available.*rare or common\.|NIH: [^.]*$|NCI"
    r"|These resources|This summary section|not mention every new treatment|treatment clinical trials"
    r"|Centers for|Dept\. of|Agency|Administration$|Agriculture$|Genetics Home Reference"
)


def test_no_word_of_the_real_answers_is_lost_but_of_furniture(real_data):
    if not shutil.which("zstd"):
        pytest.skip("needs the command zstd to unpack the real files")
    packed = real_data / "medquad" / "medquad_xml_shared.tar.zst"
    plain = subprocess.run(["zstd", "-dcq", packed], capture_output=True, check=True).stdout
    changed = 0
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        for member in archive.getmembers()[::8]:
            if not member.name.endswith(".xml"):
                continue
            for answer in etree.parse(archive.extractfile(member)).iter("Answer"):
                raw = "".join(answer.itertext())
                clean = clean_answer(raw)
                changed += clean != " ".join(raw.split())
                assert clean_answer(clean) == clean
                lost = set(re.findall(r"\w+", raw)) - set(re.findall(r"\w+", clean))
                assert not lost or FURNITURE.search(" ".join(raw.split())), (member.name, lost)
    assert changed > 500  # not vacuous
