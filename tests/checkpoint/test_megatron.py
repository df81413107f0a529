"""Megatron-core: its own directories read, ours read by it, old pickles only on trust; the logits are
compared by its own GPTModel each time."""

import argparse
import io
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import megatron_peer
import pytest
import torch
from hostile import Opens
from megatron_peer import LAYOUTS, ROWS, SHAPE
from safetensors.torch import load_file

from megatron_yuyuan.checkpoint import megatron_convert
from megatron_yuyuan.checkpoint.dcp import describe_run
from megatron_yuyuan.checkpoint.megatron import (
    MegatronWeights,
    from_megatron,
    megatron_name,
    model_shape,
    to_megatron,
)
from megatron_yuyuan.checkpoint.megatron_convert import export_megatron, import_megatron
from megatron_yuyuan.checkpoint.megatron_directory import TorchDist, find_torch_dist, read_arguments
from megatron_yuyuan.checkpoint.megatron_legacy import find_legacy, modern_name
from megatron_yuyuan.checkpoint.megatron_source import MegatronSource
from megatron_yuyuan.checkpoint.model import LoadedModel, load_model
from megatron_yuyuan.config import Config, ModelConfig
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError
from megatron_yuyuan.model.gpt2 import GPT2

PEER = Path(megatron_peer.__file__)


def peer(*arguments) -> None:
    pytest.importorskip("megatron.core", reason="needs megatron-core: pip install '.[megatron]'")
    paths = {"PYTHONPATH": os.pathsep.join([str(PEER.parents[1]), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(PEER), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | paths,
        check=False,
        timeout=120,
    )
    assert not ended.returncode, ended.stderr


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(iter(["Question:What is gout? answer: Gout is a disease."] * 4), 280)


@pytest.fixture(scope="module")
def loaded(tokenizer) -> LoadedModel:
    """A model of the peer's shape whose weights all show in the logits."""
    model, noise = GPT2(SHAPE).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=noise))
    state = {"iteration": 0, **describe_run(Config(model=SHAPE), tokenizer, 0, None, TEMPLATE)}
    return LoadedModel(model, tokenizer, TEMPLATE, state, Path("run/iter_0000000"))


@pytest.fixture
def without_megatron(monkeypatch):
    """Checked by our own reader, which costs no process."""
    monkeypatch.setattr(megatron_convert, "has_megatron", lambda: False)


def assert_same(found: dict, expected: dict, rows: int = SHAPE.vocab_size) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        until = rows if tensor.shape[0] > rows else None
        assert torch.equal(found[name][:until], tensor[:until]), name


def test_a_state_dict_goes_there_and_back(loaded):
    ours = loaded.model.state_dict()
    theirs = {f"module.{name}": tensor for name, tensor in to_megatron(ours).items()}
    theirs["module.decoder.layers.0.mlp.linear_fc1._extra_state"] = None
    assert_same(from_megatron(theirs, SHAPE), ours)
    fused = {
        n.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_"): t
        for n, t in to_megatron(ours).items()
    }
    assert fused.keys() != to_megatron(ours).keys()
    assert_same(from_megatron(fused, SHAPE), ours)
    wide = to_megatron(ours)
    wide["embedding.word_embeddings.weight"] = torch.ones(1024, SHAPE.hidden_size)
    found = from_megatron(wide, SHAPE)["wte.weight"]
    assert found.shape == ours["wte.weight"].shape and found[:280].all() and not found[280:].any()


def test_tensors_that_do_not_fit_are_named(loaded):
    theirs = to_megatron(loaded.model.state_dict())
    for change, message in (
        ({"output_layer.weight": torch.ones(1)}, "output_layer.weight is unknown"),
        ({"decoder.final_layernorm.bias": torch.ones(3)}, r"final_layernorm.bias is \(3,\)"),
        (
            {"embedding.word_embeddings.weight": torch.ones(9, 32)},
            r"\(9, 32\), expected \(384, 32\)",
        ),
    ):
        with pytest.raises(DataError, match=message):
            from_megatron(theirs | change, SHAPE)
    theirs.pop("decoder.layers.1.mlp.linear_fc2.weight")
    with pytest.raises(DataError, match=r"linear_fc2\.weight is missing"):
        from_megatron(theirs, SHAPE)
    with pytest.raises(DataError, match="not a GPT-2's"):
        model_shape({"decoder.x": (1,)}, 4, 300)


def test_an_export_is_read_again(loaded, tmp_path, without_megatron, tokenizer):
    export = export_megatron(loaded, tmp_path / "megatron")
    path = find_torch_dist(export)
    assert path.name == "release" and read_arguments(path).num_attention_heads == 4
    stacked = TorchDist(path)
    assert stacked.shapes["decoder.layers.2.mlp.linear_fc1.weight"] == (96, 32)
    run = import_megatron(export, tmp_path / "run", tokenizer)
    assert load_model(run).model.config == SHAPE
    assert_same(load_model(run).model.state_dict(), loaded.model.state_dict())
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_megatron(loaded, export)


def test_a_file_of_a_state_dict_is_imported(loaded, tmp_path, without_megatron, tokenizer):
    weights = loaded.model.state_dict()
    torch.save(to_megatron(weights), tmp_path / "gpt.pt")
    run = import_megatron(tmp_path / "gpt.pt", tmp_path / "run", tokenizer, num_attention_heads=4)
    assert_same(load_model(run).model.state_dict(), weights)
    assert {path.name for path in tmp_path.iterdir()} == {"gpt.pt", "run"}


@pytest.mark.parametrize("zipped", [True, False], ids=["now", "before_torch_1.6"])
def test_the_scales_of_fp8_in_a_state_dict_stay_closed(
    loaded, tmp_path, without_megatron, tokenizer, zipped
):
    """Transformer Engine keeps them as None, as a pickle in a BytesIO (before 2.0), or as bytes in a tensor."""
    pickled = pickle.dumps(Opens(tmp_path / "opened"))
    kept = {
        "self_attention.linear_qkv": None,
        "mlp.linear_fc1": io.BytesIO(pickled),
        "mlp.linear_fc2": torch.frombuffer(bytearray(pickled), dtype=torch.uint8),
    }
    weights = loaded.model.state_dict()
    theirs = OrderedDict(to_megatron(weights))
    theirs.update({f"decoder.layers.0.{name}._extra_state": s for name, s in kept.items()})
    theirs._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() brings it
    torch.save(theirs, tmp_path / "gpt.pt", _use_new_zipfile_serialization=zipped)
    run = import_megatron(tmp_path / "gpt.pt", tmp_path / "run", tokenizer, num_attention_heads=4)
    assert_same(load_model(run).model.state_dict(), weights)
    assert not (tmp_path / "opened").exists()
    theirs["decoder.layers.1.mlp.linear_fc1._extra_state"] = Opens(tmp_path / "opened")
    torch.save(theirs, tmp_path / "gpt.pt", _use_new_zipfile_serialization=zipped)
    for trust in (False, True):  # which is of mp_rank_* files alone
        with pytest.raises(UnsafeError, match="holds more than tensors"):
            import_megatron(tmp_path / "gpt.pt", tmp_path / "other", tokenizer, trust=trust)
    assert not (tmp_path / "opened").exists()


@pytest.mark.slow  # four processes that import Megatron-core
@pytest.mark.timeout(600)
def test_megatron_core_opens_what_we_write(loaded, tmp_path):
    export = export_megatron(loaded, tmp_path / "megatron")  # checked by GPTModel
    peer("load", export / "release", tmp_path / "found.safetensors")
    found, ours = load_file(tmp_path / "found.safetensors"), loaded.model.state_dict()
    assert_same(found, to_megatron(ours), SHAPE.padded_vocab_size)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_megatron_core_writes_is_read(tmp_path, tokenizer):
    peer("save", tmp_path)
    expected = from_megatron(load_file(tmp_path / "state_dict.safetensors"), SHAPE)
    for layout in LAYOUTS:
        path = find_torch_dist(tmp_path / layout)
        assert path.name == "iter_0000500"
        tensors = TorchDist(path)
        assert tensors.shapes["embedding.word_embeddings.weight"] == (ROWS, 32)
        assert_same(dict(MegatronWeights(tensors, tensors.shapes, SHAPE)), expected)
    run = import_megatron(tmp_path / "stacked", tmp_path / "run", tokenizer)  # by GPTModel
    assert_same(load_model(run).model.state_dict(), expected)
    assert not load_model(run).model.wte.weight[280:].any()


def test_a_conversion_that_computes_something_else_does_not_appear(
    loaded, tmp_path, without_megatron, tokenizer, monkeypatch
):
    export_megatron(loaded, tmp_path / "good")
    monkeypatch.setattr(megatron_convert, "their_logits", lambda *_: torch.ones(2, 32, 280))
    for convert in (
        lambda: export_megatron(loaded, tmp_path / "bad"),
        lambda: import_megatron(tmp_path / "good", tmp_path / "bad", tokenizer),
    ):
        with pytest.raises(DataError, match="computes other logits"):
            convert()
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_megatron_core_that_fails_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(megatron_convert, "has_megatron", lambda: True)
    monkeypatch.setattr(megatron_convert.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="Megatron-core cannot compute"):
        megatron_convert.their_logits(tmp_path, SHAPE, tmp_path)


def test_what_is_missing_or_other_is_said(loaded, tmp_path, without_megatron, tokenizer):
    export = export_megatron(loaded, tmp_path / "megatron")
    common = export / "release" / "common.pt"
    for arguments, error, message in (
        ({"num_attention_heads": 4, "swiglu": True}, DataError, "trained with swiglu True"),
        ({"num_attention_heads": 5}, DataError, "num_attention_heads=5 does not divide"),
        ({}, ConfigError, "num_attention_heads is not given"),
    ):
        torch.save({"args": argparse.Namespace(**arguments)}, common)
        with pytest.raises(error, match=message):
            import_megatron(export, tmp_path / "run", tokenizer)
    torch.save({"args": Opens(tmp_path / "opened")}, common)
    with pytest.raises(ConfigError, match="without running code"):
        import_megatron(export, tmp_path / "run", tokenizer)
    assert not (tmp_path / "opened").exists()
    run = import_megatron(
        export, tmp_path / "run", tokenizer, num_attention_heads=4
    )  # norm_epsilon cannot be seen: 1e-5
    assert load_model(run).config.layernorm_epsilon == 1e-5
    old = argparse.Namespace(num_attention_heads=4, layernorm_epsilon=1e-6)  # its name before 2023
    torch.save({"args": old}, common)
    run = import_megatron(export, tmp_path / "old", tokenizer)
    assert load_model(run).config.layernorm_epsilon == 1e-6
    for tracker in (b"\xff\xfe", "\N{SUPERSCRIPT TWO}".encode()):
        (export / "latest_checkpointed_iteration.txt").write_bytes(tracker)
        assert find_torch_dist(export) == export / "release"
        assert find_legacy(export) is None
    with pytest.raises(DataError, match="no torch_dist checkpoint"):
        import_megatron(tmp_path / "nothing", tmp_path / "other", tokenizer)


def test_metadata_that_would_run_code_is_refused(loaded, tmp_path, without_megatron, tokenizer):
    export = export_megatron(loaded, tmp_path / "megatron")
    hostile = pickle.dumps(Opens(tmp_path / "opened"))
    (export / "release" / ".metadata").write_bytes(hostile)
    with pytest.raises(UnsafeError, match="makedirs"):
        import_megatron(export, tmp_path / "run", tokenizer)
    assert not (tmp_path / "opened").exists() and not (tmp_path / "run").exists()


STAGES = {"two": [[0, 1], [2]], "virtual": [[0], [1], [2], []]}
"""Layers of each stage; the last has the last LayerNorm besides."""
FILES = {
    "two": ({0: "model"}, {1: "model"}),
    "virtual": ({0: "model0", 2: "model1"}, {1: "model0", 3: "model1"}),
}
"""Of each pipeline rank: its stages -> where their tensors stand in the file."""


def write_legacy(directory: Path, weights: dict, extra: dict, stages: str = "two") -> Path:
    """Two tensor ranks of two pipeline ranks, as Megatron-LM before its core saved them."""
    for pipeline, held in enumerate(FILES[stages]):
        for rank in range(2):
            models: dict = {}
            for stage, key in held.items():
                named = {legacy_name(n, stage, STAGES[stages]): n for n in weights}
                named.pop(None)
                parts = {old: part_of(n, weights[n], rank).clone() for old, n in named.items()}
                models[key] = {"language_model": parts}
            path = directory / "iter_0000007" / f"mp_rank_{rank:02d}_{pipeline:03d}"
            path.mkdir(parents=True)
            arguments = argparse.Namespace(num_attention_heads=4, norm_epsilon=1e-4)
            content = models | {"args": arguments, "checkpoint_version": 3.0} | extra
            torch.save(content, path / "model_optim_rng.pt")
    (directory / "latest_checkpointed_iteration.txt").write_text("7")
    return directory


def legacy_name(name: str, stage: int, stages: list[list[int]]) -> str | None:
    """None where another stage has it; each counts its layers from 0."""
    theirs, layers = megatron_name(name), stages[stage]
    if name.startswith("h."):
        number = int(name.split(".")[1])
        if number not in layers:
            return None
        theirs = theirs.replace(f"layers.{number}.", f"layers.{layers.index(number)}.")
    elif stage != (len(stages) - 1 if name.startswith("ln_f") else 0):
        return None
    for new, old in (
        ("decoder.", "encoder."),
        ("linear_qkv", "query_key_value"),
        ("linear_proj", "dense"),
        ("pre_mlp_layernorm", "post_attention_layernorm"),
        ("linear_fc1", "dense_h_to_4h"),
        ("linear_fc2", "dense_4h_to_h"),
    ):
        theirs = theirs.replace(new, old)
    return theirs


def part_of(name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    if name.endswith("c_proj.weight"):
        return tensor.chunk(2, 1)[rank]
    if name == "wte.weight" or ".c_attn." in name or ".c_fc." in name:
        return tensor.chunk(2, 0)[rank]
    return tensor


def test_old_pickles_are_opened_on_trust_alone_and_elsewhere(
    loaded, tmp_path, without_megatron, tokenizer
):
    weights = loaded.model.state_dict()
    old = write_legacy(tmp_path / "old", weights, {"rng": Opens(tmp_path / "opened")})
    with pytest.raises(UnsafeError, match="legacy mp_rank"):
        import_megatron(old, tmp_path / "run", tokenizer)
    assert not (tmp_path / "opened").exists()
    run = import_megatron(old, tmp_path / "run", tokenizer, iteration=None, trust=True)
    assert (tmp_path / "opened").exists()  # it was opened, as a person said
    assert_same(load_model(run).model.state_dict(), weights)


def test_virtual_stages_of_old_pickles_are_put_in_their_order(
    loaded, tmp_path, without_megatron, tokenizer
):
    """Layers 0 and 2 lie in the files of the first pipeline rank, 1 and the last LayerNorm in the others."""
    weights = loaded.model.state_dict()
    old = write_legacy(tmp_path / "old", weights, {}, "virtual")
    run = import_megatron(old, tmp_path / "run", tokenizer, trust=True)
    assert_same(load_model(run).model.state_dict(), weights)
    file, *_ = sorted(old.rglob("model_optim_rng.pt"))
    torch.save({"checkpoint_version": 3.0}, file)
    with pytest.raises(DataError, match="no model in mp_rank_00_000/model_optim_rng"):
        import_megatron(old, tmp_path / "other", tokenizer, trust=True)


class Copies:
    """Copies a file when it is opened as a pickle."""

    def __init__(self, source: str, target: Path):
        self.arguments = source, str(target)

    def __reduce__(self):
        return shutil.copyfile, self.arguments


def test_old_pickles_see_no_network(loaded, tmp_path, without_megatron, tokenizer, capsys):
    enter = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    if subprocess.run([sys.executable, "-c", enter]).returncode:
        pytest.skip("this system gives no user an empty network")
    seen = Copies("/proc/net/dev", tmp_path / "network")
    old = write_legacy(tmp_path / "old", loaded.model.state_dict(), {"rng": seen})
    import_megatron(old, tmp_path / "run", tokenizer, trust=True)
    devices = [
        line.split(":")[0].strip() for line in (tmp_path / "network").read_text().splitlines()[2:]
    ]
    assert devices == ["lo"] and "warning" not in capsys.readouterr().err


def test_the_exact_gelu_is_refused():
    exact = argparse.Namespace(bias_gelu_fusion=False, openai_gelu=False)
    with pytest.raises(DataError, match="bias_gelu_fusion=False"):
        MegatronSource(Path("there"), {}, {}, exact).weights(4, 280)


def test_old_pickles_that_cannot_be_converted_are_said(
    loaded, tmp_path, without_megatron, tokenizer
):
    weights = loaded.model.state_dict()
    old = write_legacy(tmp_path / "old", weights, {"checkpoint_version": 1.0})
    with pytest.raises(DataError, match="checkpoint_version is below 2"):
        import_megatron(old, tmp_path / "run", tokenizer, trust=True)
    (old / "iter_0000007" / "mp_rank_01_001" / "model_optim_rng.pt").write_bytes(b"cut")
    with pytest.raises(DataError, match="iter_0000007 cannot be read"):
        import_megatron(old, tmp_path / "run", tokenizer, trust=True)


def test_old_pickles_of_which_a_rank_is_missing_are_refused(
    loaded, tmp_path, without_megatron, tokenizer
):
    """The rest would be joined to a model of fewer layers, or of narrower ones."""
    weights = loaded.model.state_dict()
    for missing, lacks in (("mp_rank_00_000", "rank 0 of 2"), ("mp_rank_01_001", "rank 1 of 2")):
        old = write_legacy(tmp_path / missing, weights, {})
        shutil.rmtree(old / "iter_0000007" / missing)
        with pytest.raises(DataError, match=f"pipeline {lacks} lacks tensor rank"):
            import_megatron(old, tmp_path / "run", tokenizer, trust=True)
    arguments = argparse.Namespace(num_attention_heads=4, num_layers=24)
    old = write_legacy(tmp_path / "short", weights, {"args": arguments})
    with pytest.raises(DataError, match="layers, and was trained with 24"):
        import_megatron(old, tmp_path / "run", tokenizer, trust=True)


def test_names_of_old_are_todays():
    for old, new in (
        ("embedding.position_embeddings.weight", "embedding.position_embeddings.weight"),
        (
            "language_model.transformer.layers.3.attention.dense.bias",
            "decoder.layers.3.self_attention.linear_proj.bias",
        ),
        ("encoder.final_layernorm.bias", "decoder.final_layernorm.bias"),
        ("decoder.layers.0.mlp.linear_fc1.weight", "decoder.layers.0.mlp.linear_fc1.weight"),
    ):
        assert modern_name(old) == new


def test_the_shape_is_seen_in_the_tensors():
    shapes = {megatron_name(n): tuple(t.shape) for n, t in GPT2(SHAPE).state_dict().items()}
    assert model_shape(shapes, 4, 280, 1e-4) == SHAPE
    assert model_shape(shapes, 8, 280, 1e-4) == ModelConfig(
        **{**SHAPE.__dict__, "num_attention_heads": 8}
    )
