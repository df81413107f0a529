"""A run that starts from a Megatron-core checkpoint has its weights, in any layout, and nothing more in
memory than it needs."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from commands import tokenizer_flags, train_flags
from hostile import Opens
from live_bytes import peak
from pretraining import pretrained
from safetensors.torch import save_file
from tiny import TINY, Layout, RandomText, build_trainer
from torch.distributed.tensor import DTensor

from megatron_yuyuan.checkpoint.dcp import read_state
from megatron_yuyuan.checkpoint.megatron import to_megatron
from megatron_yuyuan.checkpoint.megatron_directory import write_torch_dist
from megatron_yuyuan.checkpoint.megatron_start import open_megatron
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.origin import starting_point
from megatron_yuyuan.resolve import resolve, run_tokenizer
from megatron_yuyuan.watch.saved import find_checkpoint

CONFIG = TINY.replace(num_layers=4, vocab_size=301, max_position_embeddings=32, seq_length=32)
KINDS = ("torch_dist", "state_dict.pt", "state_dict.safetensors")


def drawn_model() -> GPT2:
    model, noise = GPT2(CONFIG.model).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=noise))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same weights in every form that is read."""
    path, weights = tmp_path_factory.mktemp("megatron"), drawn_model().state_dict()
    (path / "torch_dist").mkdir()
    write_torch_dist(path / "torch_dist", weights, CONFIG.model)
    theirs = to_megatron(weights)
    extra = {"decoder.layers.0.mlp.linear_fc1._extra_state": None}
    torch.save(theirs | extra, path / "state_dict.pt")
    save_file({f"module.{n}": t.clone() for n, t in theirs.items()}, path / KINDS[2])
    return path


@pytest.fixture(scope="module")
def loss() -> float:
    """Of the model that was saved, in one process."""
    batch = read_batch(RandomText(CONFIG, 13), 0, 13, 0, 1, "cpu")
    with torch.no_grad():
        summed, count = drawn_model()(
            batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels
        )  # fmt: skip
    return (summed / count).item()


def started(config, path: Path):
    """(validation loss, every weight whole, on the rank that has it) of a trainer that starts there."""
    trainer = build_trainer(config)
    _, load = open_megatron(path, None, 8, 301)
    trainer.state.begin_with(load)
    tensors = trainer.state.tensors(with_moments=False)
    weights = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    return trainer.evaluate(RandomText(CONFIG, 13))["validation_loss"], weights


@pytest.mark.parametrize(
    ("layout", "kind"),
    [(Layout(2, 1, 2, True), KINDS[0]), (Layout(1, 2, 2), KINDS[0]), (Layout(2, 1, 1), KINDS[1])],
    ids=str,
)
def test_any_layout_starts_with_the_weights(ranks, folder, loss, layout, kind):
    found, weights = ranks.run(layout.ranks, started, layout.of(CONFIG), folder / kind)
    assert found == pytest.approx(loss, rel=1e-5)
    expected = drawn_model().state_dict()
    expected["wte.weight"][301:] = 0  # rows that pad the vocabulary
    assert weights
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name.removeprefix("model.")]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_at_a_time_is_read(folder, kind):
    """Filling a whole model makes no more beside it than its largest tensor, three times over: read, cut and
    padded."""
    state, load = open_megatron(folder / kind, None, 8, 301)
    model = GPT2(CONFIG.model)
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    largest, whole = (of(t.nbytes for t in tensors.values()) for of in (max, sum))
    assert peak(lambda: load(tensors)) <= whole + 3 * largest < 1.6 * whole
    assert torch.equal(model.h["3"].mlp.c_proj.weight, drawn_model().h["3"].mlp.c_proj.weight)
    assert state["config"]["model"]["num_layers"] == 4 and state["tokenizer"] is None


def place(path: Path, prepared: Path, **changes) -> Config:
    """A configuration that starts there."""
    tokenizer = {"tokenizer_type": "HuggingFaceTokenizer"}
    tokenizer["tokenizer_model"] = str(prepared / "tokenizer")
    return Config().replace(load=f"megatron:{path}", **tokenizer | changes)


def test_shape_and_tokens_are_known_before_a_process_group_exists(folder, prepared):
    config = place(folder / "torch_dist", prepared)
    origin = starting_point(config)
    assert origin.weights_only
    model = resolve(config, run_tokenizer(config, origin).vocab_size, origin, 1).model
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (4, 32, 8)
    assert (model.vocab_size, model.max_position_embeddings) == (300, 32)
    assert starting_point(place(folder / KINDS[1], prepared, num_attention_heads=4))


@pytest.mark.parametrize(
    ("kind", "changes", "error", "said"),
    [
        ("nowhere", {}, DataError, "no torch_dist checkpoint in"),
        (KINDS[0], {"tokenizer_model": ""}, ConfigError, "tokenizer_model is not given"),
        (KINDS[0], {"num_attention_heads": 4}, ConfigError, "=4, but .* was trained with 8"),
        (KINDS[0], {"vocab_size": 500}, DataError, r"word_embeddings.weight is \(384, 32\)"),
        (KINDS[0], {"ckpt_step": 3}, DataError, "no torch_dist checkpoint in .*iter_0000003"),
        (KINDS[1], {}, ConfigError, "num_attention_heads is not given"),
        (KINDS[1], {"num_attention_heads": 8, "ckpt_step": 3}, ConfigError, "a file holds one"),
    ],
)
def test_what_is_missing_or_other_is_said(folder, prepared, kind, changes, error, said):
    with pytest.raises(error, match=said):
        starting_point(place(folder / kind, prepared, **changes))


def test_nothing_that_a_stranger_pickled_is_opened(tmp_path, prepared):
    legacy = tmp_path / "old" / "mp_rank_00"
    legacy.mkdir(parents=True)
    hostile = {"model": {"a": torch.ones(1)}, "rng": Opens(tmp_path / "opened")}
    for file in (legacy / "model_optim_rng.pt", tmp_path / "state_dict.pt"):
        torch.save(hostile, file)
    with pytest.raises(
        UnsafeError, match=r"legacy mp_rank_\* files.*\n.*\n.*--trust --load .*old --save"
    ):
        starting_point(place(tmp_path / "old", prepared))
    with pytest.raises(UnsafeError, match="holds more than tensors"):
        starting_point(place(tmp_path / "state_dict.pt", prepared))
    assert not (tmp_path / "opened").exists()
    torch.save({"args": argparse.Namespace().__dict__}, tmp_path / "state_dict.pt")
    with pytest.raises(DataError, match="holds no tensors by name"):
        starting_point(place(tmp_path / "state_dict.pt", prepared))


def test_pretraining_goes_on_from_it_and_then_from_its_own(ranks, folder, prepared, tmp_path):
    there = shutil.copytree(folder / "torch_dist", tmp_path / "theirs")
    shape = ("--num-layers", 0, "--hidden-size", 0, "--num-attention-heads", 0)
    flags = train_flags(prepared, tmp_path / "run", *shape, *tokenizer_flags(prepared / "tokenizer"),
                        "--load", f"megatron:{there}", "--lr-decay-iters", 3)  # fmt: skip
    ranks.run(2, pretrained, (*flags, "--tensor-model-parallel-size", 2, "--train-iters", 2))
    shutil.rmtree(there)  # a restart does not ask for it
    ranks.run(1, pretrained, (*flags, "--train-iters", 3))
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl", "step")
    assert [step["iteration"] for step in steps] == [1, 2, 3]
    state = read_state(find_checkpoint(tmp_path / "run"))
    assert (state["iteration"], state["config"]["model"]["vocab_size"]) == (3, 300)
