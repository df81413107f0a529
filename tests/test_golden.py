"""What this version wrote once, every later version reads."""

import hashlib
import json
from pathlib import Path

import pytest
from commands import run

from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.log import SCHEMA, read_metrics

GOLDEN = Path(__file__).parent / "golden"

EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def test_the_golden_files_are_small():
    assert (
        sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file() and p.suffix != ".pyc")
        < 300_000
    )


def test_the_shard():
    shard = IndexedDataset(GOLDEN / "text_text_document")
    tokens = shard.tokens(0, shard.num_tokens)
    assert shard.num_documents == 40
    assert shard.meta["bin"]["sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
    shard.check_vocabulary(shard.meta["tokenizer_fingerprint"], 270)


@pytest.mark.parametrize("directory", ["run", "export"])
def test_the_checkpoint_and_the_export_compute_what_they_did(directory):
    from golden_files import probe_logits

    logits = probe_logits(GOLDEN / directory)
    assert logits == pytest.approx(EXPECTED["logits"], rel=1e-5, abs=1e-6)


def test_the_run_goes_on_as_it_did(tmp_path):
    from golden_files import flags

    run(*flags(GOLDEN / "text_text_document", tmp_path, "--load", GOLDEN / "run", "--ckpt-step", 3))
    steps = read_metrics(tmp_path / "metrics.jsonl", "step")
    assert [s["iteration"] for s in steps] == [4, 5, 6]
    assert [s["lm_loss"] for s in steps] == pytest.approx(EXPECTED["losses_after"], rel=1e-5)


def test_the_metrics():
    steps = read_metrics(GOLDEN / "run" / "metrics.jsonl", "step")
    assert [s["iteration"] for s in steps] == list(range(1, 7))
    assert {s["schema"] for s in steps} == {SCHEMA}
    evaluations = read_metrics(GOLDEN / "run" / "metrics.jsonl", "evaluation")
    assert all(isinstance(e["validation_loss"], float) for e in evaluations)
    assert not any("lm_loss" in e for e in evaluations)
