"""Perplexity by the command: the library's figures for every shard, of a run and of its export."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_run import save_run

from megatron_yuyuan.checkpoint.model import load_model
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.evaluate.perplexity import Windows, perplexity

TEXTS = [f"Gout number {number} is a disease of the joints. " * 3 for number in range(8)]
PAIRS = [(f"What is gout {number}?", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """run/, and the shards text and pairs, and pairs in the words of another template."""
    folder = tmp_path_factory.mktemp("perplexity")
    tokenizer = save_run(folder / "run", TEXTS)
    made_by = {"tokenizer_fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
    prompts = [TEMPLATE.encode_prompt(tokenizer, question) for question, _ in PAIRS]
    answers = [TEMPLATE.encode_answer(tokenizer, text) for _, text in PAIRS]
    others = {"template": {"prompt": "Q: {question}", "answer": "{answer}"}}
    for name, documents, meta in (
        ("text", [[tokenizer.encode(text)] for text in TEXTS], {}),
        ("pairs", list(zip(prompts, answers, strict=True)), {"template": TEMPLATE.to_dict()}),
        ("other_pairs", list(zip(prompts, answers, strict=True)), others),
        ("other_text", [[[1, 2, 3]]], {"tokenizer_fingerprint": "sha256:other"}),
    ):
        with IndexedDatasetWriter(folder / name, np.uint16) as shard:
            for sequences in documents:
                shard.add_document(sequences)
            shard.finish(made_by | meta)
    return folder


def measured(command, capsys, *flags) -> dict:
    capsys.readouterr()
    command("evaluate_perplexity", *flags, "--json")
    return json.loads(capsys.readouterr().out)


def test_every_shard_and_all_of_them_are_measured(command, folder, capsys):
    shards = [folder / "text", folder / "pairs"]
    flags = ("--load", folder / "run", "--data-path", *shards)
    found, model = measured(command, capsys, *flags), load_model(folder / "run").model
    assert (found["seq_length"], found["stride"]) == (64, 64)
    loss = tokens = 0
    for prefix in shards:
        windows = Windows(IndexedDataset(prefix), 64, 64)
        figures = found["shards"][str(prefix)]
        assert figures == {"windows": len(windows)} | perplexity(model, windows)
        loss, tokens = loss + figures["loss"] * figures["tokens"], tokens + figures["tokens"]
    assert found["shards"]["all"]["tokens"] == tokens
    assert found["shards"]["all"]["perplexity"] == pytest.approx(math.exp(loss / tokens))
    assert found["shards"]["all"]["windows"] == sum(
        found["shards"][str(prefix)]["windows"] for prefix in shards
    )
    command("evaluate_perplexity", *flags)
    shown = capsys.readouterr().out
    assert "windows of 64 tokens, stride 64; part: all" in shown
    row = found["shards"][str(shards[0])]
    assert f"| {shards[0]} | {row['tokens']:,} | {row['windows']:,} | {row['loss']:.6f} |" in shown
    assert "\n| all | " in shown


def test_a_run_and_its_export_cost_the_same(command, folder, tmp_path, capsys):
    command("convert_checkpoint", "--to", "hf", "--load", folder / "run", "--save", tmp_path / "hf")
    found = []
    for load in (folder / "run", f"hf:{tmp_path / 'hf'}"):
        flags = ("--load", load, "--data-path", folder / "pairs", "--seq-length", 40)
        found.append(measured(command, capsys, *flags, "--stride", 7, "--micro-batch-size", 3))
    assert found[0] == found[1] and found[0]["stride"] == 7
    disjoint = measured(command, capsys, *flags)
    assert disjoint["stride"] == 40
    [ours], [theirs] = found[0]["shards"].values(), disjoint["shards"].values()
    assert ours["tokens"] == theirs["tokens"] and abs(ours["loss"] - theirs["loss"]) > 1e-4


def test_a_part_is_the_part_of_training(command, folder, capsys):
    flags = ("--load", folder / "run", "--data-path", folder / "text", "--split", "50,25,25")
    tokens = {}
    for part in ("train", "valid", "test", "all"):
        [figures] = measured(command, capsys, *flags, "--part", part)["shards"].values()
        tokens[part] = figures["tokens"] + 1  # the first is not predicted
    assert tokens.pop("all") == sum(tokens.values())
    shard = IndexedDataset(folder / "text")
    assert tokens["valid"] == shard.document_start(6) - shard.document_start(4)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--seq-length", 65), "seq_length=65, the model has 64 positions"),
        (("--stride", 65), "stride=65 with seq_length=64"),
        (("--seq-length", -1), "--seq-length and --stride are 0 or more"),
        (("--micro-batch-size", 0), "--micro-batch-size 1 or more"),
        (("--part", "valid", "--split", "1,x"), "split='1,x'"),
        (("--split", "0,0,1"), "--split divides the documents for --part"),
        (("--part", "test", "--split", "1"), "no token to predict in documents 8 to 8"),
        (("--data-path", "other_text"), "made with another tokenizer"),
        (("--data-path", "other_pairs"), "was made with the template"),
        (("--data-path", "missing"), "cannot read"),
        (("--load", "."), "no checkpoint in"),
    ],
)
def test_what_cannot_be_measured_is_refused(refused, folder, monkeypatch, flags, message):
    monkeypatch.chdir(folder)
    given = ("--load", "run", "--data-path", "text")
    assert message in refused("evaluate_perplexity", *given, *flags)
