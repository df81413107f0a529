"""Row E04: from Hugging Face into every layout, saved there, and out again, no bit changes."""

from pathlib import Path

import pytest
from hf_peer import gpt2
from tiny import TINY, Layout, build_trainer

from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
from megatron_yuyuan.checkpoint.hf import export_directory
from megatron_yuyuan.checkpoint.hf_start import load_huggingface
from megatron_yuyuan.checkpoint.model import open_model
from megatron_yuyuan.data.tokenizer import read_tokenizer, train_bpe

CONFIG = TINY.replace(num_layers=4, vocab_size=301)
LAYOUTS = [Layout(pipeline, 1, tensor) for pipeline in (1, 2) for tensor in (1, 2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="needs transformers")
    path = tmp_path_factory.mktemp("huggingface")
    gpt2(301, 16).save_pretrained(path)
    train_bpe(iter(["Question:What is gout? answer: Gout is a disease."] * 4), 280).save(path)
    return path


def saved(config, directory: Path, run: Path) -> None:
    """Load the directory into this layout, and save that as a run."""
    state = build_trainer(config).state
    state.begin_with(lambda tensors: load_huggingface(directory, tensors))
    document = describe_run(config, read_tokenizer(directory), 24, 0)
    save_checkpoint(run, 3, state.tensors(), document)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_bit_changes_on_the_way_through_a_layout(ranks, directory, tmp_path, layout):
    """The export compares its logits with transformers' to 1e-5 besides."""
    run = tmp_path / "run"
    ranks.run(layout.ranks, saved, layout.of(CONFIG), directory, run)
    read_tokenizer(directory).save(run / "tokenizer")
    export = export_directory(open_model(run), tmp_path / "export")
    file = "model.safetensors"
    assert (export / file).read_bytes() == (directory / file).read_bytes()
    config = open_model(export).config
    assert (config.num_layers, config.num_attention_heads, config.vocab_size) == (4, 8, 301)
