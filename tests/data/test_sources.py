"""Which files of a folder are inputs."""

import pytest

from megatron_yuyuan.data.sources import find_sources
from megatron_yuyuan.errors import DataError

INPUTS = ["a.xml", "b.nxml", "c.jsonl", "d.xml.gz", "deep/e.xml"]
OTHERS = [
    *("text_document.bin", "text_document.idx", "text_document.meta.json", "notes.txt"),
    *("tokenizer.json", "vocab.json", "merges.txt", "config.json", ".hidden.jsonl"),
]


def test_a_folder_gives_its_inputs_and_not_what_was_made_from_them(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in [*INPUTS, *OTHERS]:
        (tmp_path / name).write_text('{"text": "a"}')
    found = [str(source.path.relative_to(tmp_path)) for source in find_sources([str(tmp_path)])]
    assert found == INPUTS
    named = find_sources([str(tmp_path / "vocab.json")])  # by its own name a file may be anything
    assert [source.format for source in named] == ["jsonl"]


def test_a_folder_without_inputs_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="holds no input") as raised:
        find_sources([str(tmp_path)])
    assert ".nxml" in raised.value.why


def test_links_are_followed_and_a_broken_one_is_an_error(tmp_path):
    for name in ("in", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text('{"text": "a"}')
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    found = [source.path.name for source in find_sources([str(tmp_path / "in")])]
    assert sorted(found) == ["elsewhere.jsonl", "in.jsonl"]
    (tmp_path / "in" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot read"):
        find_sources([str(tmp_path / "in")])


def test_a_bad_file_that_is_named_is_left_out_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    named = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert [s.format for s in find_sources(named, skip_bad_files=True)] == ["unknown", "jsonl"]
    with pytest.raises(DataError, match="is empty"):
        find_sources(named)
    with pytest.raises(DataError, match="cannot read"):
        find_sources([str(tmp_path / "absent")], skip_bad_files=True)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("<5% of patients had a cough.", "text"),
        ("{see table 1}", "text"),
        ('{"text": "a"}', "jsonl"),
        ("<PubmedArticleSet><PubmedArticle>", "pubmed-xml"),
    ],
)
def test_a_txt_is_text_unless_it_begins_as_another_format(tmp_path, content, expected):
    (tmp_path / "a.txt").write_text(content)
    assert [source.format for source in find_sources([str(tmp_path / "a.txt")])] == [expected]
