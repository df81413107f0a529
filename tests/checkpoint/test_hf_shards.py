"""Large exports: files of a bounded size with an index, and little memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from live_bytes import peak
from safetensors.torch import load_file

from megatron_yuyuan.checkpoint.conversion import new_directory, write_run
from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
from megatron_yuyuan.checkpoint.hf import export_directory, import_directory, to_huggingface
from megatron_yuyuan.checkpoint.model import load_model, open_model
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

SHARD = 1_500_000
CONFIG = Config().replace(
    num_layers=12, hidden_size=128, num_attention_heads=4, vocab_size=280,
    max_position_embeddings=64, seq_length=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """9.5 MB of weights in one file."""
    directory = tmp_path_factory.mktemp("run")
    tokenizer = train_bpe(iter(["Question:What is gout? answer: Gout is a disease."] * 4), 280)
    model = GPT2(CONFIG.model)
    init_weights(model, seed=1)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(directory, 7, tensors, describe_run(CONFIG, tokenizer, 28, None, TEMPLATE))
    tokenizer.save(directory / "tokenizer")
    return directory


def test_files_are_bounded_and_the_index_names_them(run, tmp_path):
    from transformers import GPT2LMHeadModel

    export = export_directory(open_model(run), tmp_path / "export", shard_bytes=SHARD)
    index = json.loads((export / "model.safetensors.index.json").read_text())
    files = sorted(export.glob("*.safetensors"))
    assert len(files) == 8 and files[0].name == "model-00001-of-00008.safetensors"
    found = {}
    for file in files:
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= SHARD
        assert {index["weight_map"][name] for name in tensors} == {file.name}
        found |= tensors
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    ours = load_model(run).model.state_dict()
    expected = to_huggingface(ours, CONFIG.model)
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = load_model(export).model.state_dict()
    assert torch.equal(again["h.11.attn.c_attn.weight"], ours["h.11.attn.c_attn.weight"])
    theirs = GPT2LMHeadModel.from_pretrained(export).state_dict()
    assert all(torch.equal(theirs[name], expected[name]) for name in expected)
    assert len({path.stat().st_mode for path in export.iterdir()}) == 1


def test_an_export_needs_less_memory_than_one_file_and_one_layer(run, tmp_path):
    """The bound that is promised; what is true is a few tensors."""
    layer = 4 * sum(p.numel() for p in GPT2(CONFIG.model).h["0"].parameters())
    needed = peak(lambda: export_directory(open_model(run), tmp_path / "export", shard_bytes=SHARD))
    assert needed <= 2.5 * layer < 1.2 * SHARD + layer
    assert peak(lambda: load_model(run)) > 1.2 * SHARD + layer  # a whole model would be seen


def test_an_import_needs_no_more_than_an_export(run, tmp_path):
    export = export_directory(open_model(run), tmp_path / "export", shard_bytes=SHARD)
    layer = 4 * sum(p.numel() for p in GPT2(CONFIG.model).h["0"].parameters())
    assert peak(lambda: import_directory(export, tmp_path / "run")) <= 2.5 * layer
    expected, found = (load_model(each).model.state_dict() for each in (run, tmp_path / "run"))
    assert all(torch.equal(found[name][:280], tensor[:280]) for name, tensor in expected.items())


def test_a_source_that_cannot_be_read_on_the_way_is_named(run, tmp_path):
    """Not the place that is written."""
    source = open_model(shutil.copytree(run, tmp_path / "source"))
    [file] = source.path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:1000])
    with (
        pytest.raises(DataError, match=f"^{source.path} cannot be read"),
        new_directory(tmp_path / "run") as partial,
    ):
        write_run(source, partial)
    assert not (tmp_path / "run").exists()
