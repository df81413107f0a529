"""A run that starts from a Hugging Face directory computes what transformers computes, in any layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import train_flags
from hf_peer import gpt2
from hostile import Opens
from pretraining import pretrained
from safetensors.torch import load_file, save_file
from tiny import TINY, Layout, RandomText, build_trainer
from torch.distributed.tensor import DTensor

from megatron_yuyuan.checkpoint.dcp import describe_run, read_state, save_checkpoint
from megatron_yuyuan.checkpoint.hf_directory import read_tensors
from megatron_yuyuan.checkpoint.hf_format import from_huggingface
from megatron_yuyuan.checkpoint.hf_start import describe_huggingface, load_huggingface
from megatron_yuyuan.config import IGNORE, Config
from megatron_yuyuan.data.tokenizer import read_tokenizer
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.origin import starting_point
from megatron_yuyuan.resolve import resolve, run_tokenizer
from megatron_yuyuan.watch.saved import find_checkpoint

transformers = pytest.importorskip("transformers", reason="needs transformers")
CONFIG = TINY.replace(num_layers=4, vocab_size=301, global_batch_size=8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """What save_pretrained writes, without a tokenizer."""
    path = tmp_path_factory.mktemp("huggingface")
    gpt2(301, 16).save_pretrained(path)
    return path


@pytest.fixture
def copy(directory, tmp_path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "copy"))


def started(config, directory):
    """(validation loss, every weight whole, on the rank that has it) of a trainer that starts there."""
    trainer = build_trainer(config)
    tensors = trainer.state.tensors(with_moments=False)
    load_huggingface(directory, tensors)
    weights = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    return trainer.evaluate(RandomText(CONFIG, 13))["validation_loss"], weights


@torch.no_grad()
def loss_of_transformers(model) -> float:
    """Mean loss of the learned tokens of 13 samples."""
    samples = RandomText(CONFIG, 13)
    tokens, labels = (torch.stack([torch.tensor(s[i]) for s in map(samples.__getitem__, range(13))])
                      for i in (0, 1))  # fmt: skip
    logits = model(tokens).logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE).item()


@pytest.mark.parametrize("layout", [Layout(2, 1, 2, True), Layout(1, 2, 2)], ids=str)
def test_any_layout_starts_with_what_transformers_computes(ranks, directory, layout):
    loss, weights = ranks.run(layout.ranks, started, layout.of(CONFIG), directory)
    model = transformers.GPT2LMHeadModel.from_pretrained(directory)
    assert loss == pytest.approx(loss_of_transformers(model), rel=1e-5)
    expected = from_huggingface(load_file(directory / "model.safetensors"), CONFIG.model)
    assert expected["wte.weight"].shape[0] == 384
    assert weights
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name.removeprefix("model.")]), name


def test_shards_of_a_model_without_head_are_read_too(ranks, tmp_path, directory):
    """GPT2Model names its tensors without `transformer.`; half precision becomes float32."""
    gpt2(301, 16, headless=True).half().save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _, weights = ranks.run(2, started, Layout(tensor=2).of(CONFIG), tmp_path)
    assert weights["model.wte.weight"].dtype == torch.float32
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
    assert torch.equal(weights["model.wte.weight"][:301], theirs["transformer.wte.weight"].float())


@pytest.mark.parametrize("zipped", [True, False], ids=["now", "before_torch_1.6"])
def test_pickled_weights_are_mapped_into_memory_where_torch_can(copy, zipped):
    expected = load_file(copy / "model.safetensors")
    pickled = copy / "pytorch_model.bin"
    torch.save(expected, pickled, _use_new_zipfile_serialization=zipped)
    (copy / "model.safetensors").unlink()
    found = read_tensors(copy)
    assert (str(pickled) in Path("/proc/self/maps").read_text()) is zipped
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    pickled.write_bytes(pickled.read_bytes()[:-1000])
    with pytest.raises(DataError, match="damaged or incomplete"):
        read_tensors(copy)


def pickled_shards(copy: Path, second) -> None:
    """The weights as transformers 4 wrote large models: embeddings in one file, `second` of the rest in the
    other."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    first = {name: tensor for name, tensor in tensors.items() if ".h." not in name}
    rest = {name: tensor for name, tensor in tensors.items() if ".h." in name}
    files = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    torch.save(first, copy / files[0])
    torch.save(second(rest), copy / files[1])
    where = dict.fromkeys(first, files[0]) | dict.fromkeys(rest, files[1])
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_pickled_shards_are_mapped_into_memory_too(copy):
    expected = load_file(copy / "model.safetensors")
    pickled_shards(copy, lambda rest: rest)
    found = read_tensors(copy)
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(shard) in mapped for shard in copy.glob("*.bin"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert starting_point(Config().replace(load=f"hf:{copy}"))


def a_hostile_shard(directory):
    pickled_shards(directory, lambda rest: rest | {"x": Opens(directory / "opened")})


def a_missing_shard(directory):
    pickled_shards(directory, lambda rest: rest)
    (directory / "pytorch_model-00002-of-00002.bin").unlink()


def an_index_of_nothing(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')


def an_index_that_leaves(directory):
    (directory / "model.safetensors").rename(directory.parent / "elsewhere.bin")
    where = {"weight_map": {"wte.weight": "../elsewhere.bin"}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(where))


def cut_weights(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def another_width(directory):
    values = json.loads((directory / "config.json").read_text()) | {"n_embd": 64}
    (directory / "config.json").write_text(json.dumps(values))


def a_missing_layer(directory):
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".h.2." not in name}
    save_file(kept, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (lambda d: (d / "config.json").unlink(), DataError, "no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), DataError, "no weights in"),
        (lambda d: (d / "vocab.json").write_text("{}"), DataError, "no tokenizer in"),
        (lambda d: (d / "tokenizer_config.json").write_text('{"auto_map": 1}'), UnsafeError,
         "auto_map"),
        (cut_weights, DataError, "damaged or incomplete"),
        (a_hostile_shard, UnsafeError, "-00002-of-00002.bin holds more than tensors"),
        (a_missing_shard, DataError, "-00002-of-00002.bin cannot be read"),
        (an_index_of_nothing, DataError, r"bin\.index\.json has no weight_map"),
        (an_index_that_leaves, UnsafeError, r"bin\.index\.json names '\.\./elsewhere\.bin'"),
        (another_width, DataError, r"ln_1\.bias is \(32,\), expected \(64,\)"),
        (a_missing_layer, DataError, r"h\.2\.attn\.c_attn\.bias is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_before_a_process_group_exists(copy, damage, kind, said):
    starting_point(Config().replace(load=f"hf:{copy}"))
    damage(copy)
    with pytest.raises(kind, match=said):
        starting_point(Config().replace(load=f"hf:{copy}"))
    assert not (copy / "opened").exists()


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no config.json in .*nowhere"):
        starting_point(Config().replace(load=f"hf:{tmp_path / 'nowhere'}"))


def test_the_shape_is_the_directorys(directory, prepared):
    origin = starting_point(Config().replace(load=f"hf:{directory}"))
    tokenizer = read_tokenizer(prepared / "tokenizer")
    model = resolve(Config(), tokenizer.vocab_size, origin, 1).model
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (4, 32, 8)
    assert (model.vocab_size, model.max_position_embeddings, model.hidden_dropout) == (301, 16, 0)
    with pytest.raises(ConfigError, match="num_layers=3, but"):
        resolve(Config().replace(num_layers=3), tokenizer.vocab_size, origin, 1)


def test_the_tokenizer_is_the_directorys_or_else_configured(copy, prepared):
    place = Config().replace(load=f"hf:{copy}")
    assert describe_huggingface(copy)["tokenizer"] is None
    with pytest.raises(ConfigError, match="not given"):
        run_tokenizer(Config(), starting_point(place))
    configured = Config().replace(
        tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(prepared / "tokenizer")
    )
    expected = read_tokenizer(prepared / "tokenizer").fingerprint
    assert run_tokenizer(configured, starting_point(place)).fingerprint == expected
    for file in (prepared / "tokenizer").iterdir():
        shutil.copy(file, copy)
    assert run_tokenizer(Config(), starting_point(place)).fingerprint == expected
    assert run_tokenizer(configured, starting_point(place)).fingerprint == expected
    content = json.loads((copy / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="was trained with tokenizer"):
        run_tokenizer(configured, starting_point(place))


def test_a_tokenizer_that_the_embedding_has_no_rows_for_is_refused(prepared, tmp_path):
    gpt2(299, 16).save_pretrained(tmp_path)
    origin = starting_point(Config().replace(load=f"hf:{tmp_path}"))
    with pytest.raises(ConfigError, match="vocab_size=299, but the tokenizer has 300"):
        resolve(Config(), read_tokenizer(prepared / "tokenizer").vocab_size, origin, 1)


def test_a_checkpoint_of_save_comes_before_the_directory(directory, prepared, tmp_path):
    load = Config().replace(load=f"hf:{directory}", save=str(tmp_path))
    assert starting_point(load).weights_only
    state = describe_run(CONFIG, read_tokenizer(prepared / "tokenizer"), 24, optimizer_steps=3)
    save_checkpoint(tmp_path, 3, {"model.a": torch.ones(2)}, state)
    origin = starting_point(load)
    assert (origin.path, origin.weights_only) == (find_checkpoint(tmp_path), False)
    with pytest.raises(ConfigError, match="ckpt_step=3 and load=hf:"):
        starting_point(Config().replace(load=f"hf:{directory}", ckpt_step=3))


def test_pretraining_goes_on_from_a_directory_and_then_from_its_own(ranks, prepared, tmp_path):
    gpt2(300, 32).save_pretrained(tmp_path / "hf")
    shape = ("--num-layers", 0, "--hidden-size", 0, "--num-attention-heads", 0)
    flags = train_flags(prepared, tmp_path / "run", *shape, "--load", f"hf:{tmp_path / 'hf'}")
    ranks.run(2, pretrained, (*flags, "--pipeline-model-parallel-size", 2,
                              "--train-iters", 2, "--lr-decay-iters", 3))  # fmt: skip
    ranks.run(1, pretrained, (*flags, "--train-iters", 3, "--lr-decay-iters", 3))
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl", "step")
    assert [step["iteration"] for step in steps] == [1, 2, 3]
    state = read_state(find_checkpoint(tmp_path / "run"))
    assert (state["iteration"], state["optimizer_steps"], state["optimizer"]) == (3, 3, True)
    assert state["config"]["model"]["num_layers"] == 4
    assert state["began_with"] == f"hf:{tmp_path / 'hf'}"
