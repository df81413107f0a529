"""A run that goes on over other data than it began with says so, whatever the files are called."""

import json
import shutil
from pathlib import Path

from commands import ROOT, SAMPLE_DATA, run, tokenizer_flags, train_flags

from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.watch.saved import find_checkpoint

SHORT = ("--train-iters", 2, "--save-interval", 2, "--eval-iters", 0)


def preprocess(folder: Path, *sources: Path) -> None:
    """text_text_document of the sources, in a folder with a tokenizer."""
    flags = tokenizer_flags(folder / "tokenizer")
    run(ROOT / "tools/preprocess_data.py", "--input", *sources, "--output-prefix", folder / "text",
        "--append-eod", *flags)  # fmt: skip


def without_meta(prefix: Path) -> IndexedDataset:
    prefix.with_name(f"{prefix.name}.meta.json").unlink()
    return IndexedDataset(prefix)


def test_other_content_under_the_same_name_is_refused(prepared, tmp_path):
    folder, save, prefix = tmp_path / "data", tmp_path / "run", tmp_path / "data/text_text_document"
    shutil.copytree(prepared, folder)
    run(*train_flags(folder, save, *SHORT))
    before = IndexedDataset(prefix).fingerprint
    state = json.loads((find_checkpoint(save) / "state.json").read_text())
    assert state["data"] == [before]
    run(*train_flags(folder, save, *SHORT))  # the same goes on

    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "Gout is a disease."}\n')
    for path in folder.glob("text_text_document.*"):
        path.unlink()
    preprocess(folder, SAMPLE_DATA / "pubmed_sample.xml", more)
    shard = IndexedDataset(prefix)
    assert shard.fingerprint != before
    refused = run(*train_flags(folder, save, *SHORT), status=2).stderr
    was, found = before[:12], shard.fingerprint[:12]
    assert f"the content of shard 1 was {was}, is {found} (sha256)" in refused
    assert "--override" in refused
    said = run(*train_flags(folder, save, *SHORT, "--override")).stdout
    assert f"overridden: the content of shard 1 was {was}" in said
    assert without_meta(prefix).fingerprint != without_fingerprint_of(prepared, tmp_path)


def without_fingerprint_of(prepared: Path, tmp_path: Path) -> str:
    """That of the first shard, its .meta.json lost."""
    for end in (".bin", ".idx", ".meta.json"):
        shutil.copy(prepared / f"text_text_document{end}", tmp_path / f"bare{end}")
    return without_meta(tmp_path / "bare").fingerprint
