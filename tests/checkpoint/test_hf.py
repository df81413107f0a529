"""Hugging Face: the same function on both sides, whole directories or none, nothing strange is
opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_yuyuan.checkpoint import hf, hf_shards
from megatron_yuyuan.checkpoint.dcp import read_state, save_checkpoint
from megatron_yuyuan.checkpoint.hf import (
    export_directory,
    from_huggingface,
    import_directory,
    to_huggingface,
)
from megatron_yuyuan.checkpoint.hf_format import huggingface_tensor, model_config
from megatron_yuyuan.checkpoint.model import LoadedModel, load_model
from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.data.template import QuestionTemplate
from megatron_yuyuan.data.tokenizer import Tokenizer, train_bpe
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.watch.saved import find_checkpoint

TEXTS = [
    "Question:What is gout? answer: Gout is a disease of the joints.",
    "naïve β-cells, 37 °C\n\n  they'll",
] * 4
OWN_TEMPLATE = QuestionTemplate("Q:{question} answer:", " {answer}")


def shaken(model: GPT2) -> GPT2:
    """Initial weights with biases and LayerNorms that are not 0 and 1, so that each of them shows
    in the logits."""
    init_weights(model, seed=1)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(TEXTS), 300)


@pytest.fixture(scope="module")
def config(tokenizer) -> Config:
    return Config().replace(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=40,
        seq_length=40,
        vocab_size=tokenizer.vocab_size,
        layernorm_epsilon=1e-4,
        ffn_hidden_size=96,
    )


@pytest.fixture(scope="module")
def run(config, tokenizer, tmp_path_factory) -> Path:
    """A run directory as training leaves it, at iteration 7."""
    directory = tmp_path_factory.mktemp("run")
    document = {
        "consumed_samples": 28,
        "optimizer": False,
        "template": OWN_TEMPLATE.to_dict(),
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "random": {},
        "data_order": 1,
        "config": config.to_dict(),
    }
    tensors = {
        f"model.{name}": tensor for name, tensor in shaken(GPT2(config.model)).state_dict().items()
    }
    save_checkpoint(directory, 7, tensors, document)
    tokenizer.save(directory / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def loaded(run) -> LoadedModel:
    return load_model(run)


@pytest.fixture(scope="module")
def export(loaded, tmp_path_factory) -> Path:
    return export_directory(loaded, tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture
def damaged(export, tmp_path) -> Path:
    """A copy of the export without its checksums, as a stranger's directory, to be spoilt."""
    ignored = shutil.ignore_patterns("checksums.json")
    return Path(shutil.copytree(export, tmp_path / "damaged", ignore=ignored))


def tokens_of(vocab_size: int, length: int = 24) -> torch.Tensor:
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(3))


def logits(model: GPT2, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model(tokens, positions=positions, sample_ids=tokens[:, 0], step=0)


def transformers_logits(directory, tokens) -> torch.Tensor:
    from transformers import GPT2LMHeadModel

    with torch.no_grad():
        return GPT2LMHeadModel.from_pretrained(directory).float().eval()(tokens).logits


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_opens_as_it_was_saved(loaded, config, run):
    expected = shaken(GPT2(config.model))
    assert not loaded.model.training and loaded.path == find_checkpoint(run)
    assert loaded.template == OWN_TEMPLATE and loaded.state["iteration"] == 7
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_ours_to_theirs_and_back_is_the_same_bits(loaded):
    config, ours = loaded.model.config, loaded.model.state_dict()
    theirs = to_huggingface(ours, config)
    assert theirs["transformer.wte.weight"].shape == (config.vocab_size, config.hidden_size)
    assert theirs["transformer.h.0.mlp.c_fc.weight"].shape == (config.hidden_size, config.mlp_size)
    back = from_huggingface(theirs, config)
    assert back.keys() == ours.keys()
    assert (
        not back["wte.weight"][config.vocab_size :].any()
        and config.padded_vocab_size > config.vocab_size
    )
    for name, tensor in ours.items():
        rows = config.vocab_size if name == "wte.weight" else tensor.shape[0]
        assert torch.equal(back[name][:rows], tensor[:rows]), name


def test_an_export_has_the_tensors_and_logits_of_transformers(loaded, export):
    from transformers import GPT2Config, GPT2LMHeadModel

    file = load_file(export / "model.safetensors")
    assert (
        len({path.stat().st_mode for path in export.iterdir()}) == 1
    )  # who may read one may read all
    reference = GPT2LMHeadModel(GPT2Config.from_pretrained(export))
    assert file.keys() == reference.state_dict().keys() - {"lm_head.weight"}
    tokens = tokens_of(loaded.model.config.vocab_size)
    expected = logits(loaded.model, tokens)
    assert (
        transformers_logits(export, tokens) - expected
    ).abs().max() <= 1e-5 * expected.abs().max()


def test_without_the_permutation_of_qkv_the_logits_are_others(loaded, export, damaged):
    """The rows are (head, q|k|v, D) here and (q|k|v, head, D) there: a transposed copy is another
    model."""
    file = load_file(damaged / "model.safetensors")
    for name, tensor in loaded.model.state_dict().items():
        if ".c_attn." in name:
            file[f"transformer.{name}"] = (tensor.t() if tensor.ndim == 2 else tensor).contiguous()
    save_file(file, damaged / "model.safetensors", metadata={"format": "pt"})
    tokens = tokens_of(loaded.model.config.vocab_size)
    expected = logits(loaded.model, tokens)
    assert (
        transformers_logits(damaged, tokens) - expected
    ).abs().max() > 1e-2 * expected.abs().max()


def test_every_loader_opens_an_export(loaded, export):
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GPT2LMHeadModel,
        GPT2Model,
        GPT2Tokenizer,
        GPT2TokenizerFast,
        pipeline,
    )

    for kind in (GPT2LMHeadModel, GPT2Model, AutoModelForCausalLM):
        model, report = kind.from_pretrained(
            export, local_files_only=True, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], kind
        assert model.dtype == torch.float32 and model.config.eos_token_id == loaded.tokenizer.eod
        head = model.get_output_embeddings()
        assert kind is GPT2Model or head.weight is model.get_input_embeddings().weight
    text = "".join(TEXTS) + " 'll  x\n\n\tβ 1234 "
    for kind in (GPT2Tokenizer, GPT2TokenizerFast, AutoTokenizer):
        theirs = kind.from_pretrained(export, local_files_only=True)
        ids = theirs(text)["input_ids"]
        assert ids == loaded.tokenizer.encode(text) and theirs.decode(ids) == text, kind
        assert (
            len(theirs) == loaded.tokenizer.vocab_size
            and theirs.eos_token_id == loaded.tokenizer.eod
        )
    written = pipeline("text-generation", model=str(export))(
        "What is gout?", max_new_tokens=5, do_sample=False
    )
    assert written[0]["generated_text"].startswith("What is gout?")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_export_is_rounded_as_asked(loaded, dtype, tmp_path):
    export = export_directory(loaded, tmp_path / "rounded", dtype)
    config, file = (
        json.loads((export / "config.json").read_text()),
        load_file(export / "model.safetensors"),
    )
    assert config["dtype"] == config["torch_dtype"] == dtype
    for name, tensor in to_huggingface(loaded.model.state_dict(), loaded.model.config).items():
        assert torch.equal(file[name], tensor.to(getattr(torch, dtype))), name


def test_an_export_opens_here_too(loaded, export):
    again = load_model(export)
    tokens = tokens_of(loaded.model.config.vocab_size)
    assert torch.equal(logits(again.model, tokens), logits(loaded.model, tokens))
    assert (
        again.template == OWN_TEMPLATE
        and again.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    )


def test_the_card_says_what_is_known(export):
    card = (export / "README.md").read_text()
    for text in ("Not medical advice", "7 iterations", "28 samples", OWN_TEMPLATE.prompt, "# tiny"):
        assert text in card


@pytest.mark.parametrize("by_transformers", [True, False])
def test_an_export_that_computes_something_else_does_not_appear(
    loaded, tmp_path, monkeypatch, by_transformers
):
    def spoilt(name, tensor, config):
        return huggingface_tensor(name, tensor, config) * (1 + name.endswith("c_proj.weight") / 100)

    if not by_transformers:
        monkeypatch.setattr(hf.importlib.util, "find_spec", lambda name: None)
        export_directory(loaded, tmp_path / "good")
    monkeypatch.setattr(hf_shards, "huggingface_tensor", spoilt)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="computes other logits"):
        export_directory(loaded, tmp_path / "bad")
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_with_other_token_ids_does_not_appear(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "_their_ids", lambda directory, config: [1, 2])
    with pytest.raises(DataError, match="other ids"):
        export_directory(loaded, tmp_path / "bad")


def test_a_float16_export_of_weights_beyond_its_range_is_refused(config, loaded, tmp_path):
    model = shaken(GPT2(config.model))
    with torch.no_grad():
        model.wpe.weight[0, 0] = 1e6
    huge = LoadedModel(model, loaded.tokenizer, loaded.template, loaded.state, loaded.path)
    with pytest.raises(DataError, match="relative difference nan"):
        export_directory(huge, tmp_path / "bad", "float16")


@pytest.mark.parametrize("failing", ["write_shards", "model_card", "_check_export"])
def test_an_export_that_is_stopped_leaves_nothing(loaded, tmp_path, monkeypatch, failing):
    def stop(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, failing, stop)
    with pytest.raises(DataError, match="No space left"):
        export_directory(loaded, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_an_existing_target_stays_as_it_is(loaded, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    for taken in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(ConfigError, match="exists and is not empty"):
            export_directory(loaded, taken)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert (export_directory(loaded, tmp_path / "empty") / "model.safetensors").exists()


@pytest.fixture(scope="module")
def foreign(tokenizer, tmp_path_factory):
    """A GPT2LMHeadModel of transformers, its directory, with more rows than tokens as Megatron's
    exports have."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(4)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.vocab_size + 9,
            n_positions=32,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=80,
            layer_norm_epsilon=1e-3,
            activation_function="gelu_pytorch_tanh",
            initializer_range=0.2,
        )
    ).eval()
    directory = tmp_path_factory.mktemp("foreign")
    model.save_pretrained(directory)
    tokenizer.save(directory)
    return model, directory


def test_an_imported_model_computes_what_transformers_does(foreign, tokenizer, tmp_path):
    model, directory = foreign
    run = import_directory(directory, tmp_path / "run")
    imported = load_model(run)
    tokens = tokens_of(model.config.vocab_size)
    with torch.no_grad():
        expected = model(tokens).logits
    assert (logits(imported.model, tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (
        imported.path.name == "iter_0000000"
        and find_checkpoint(run) == find_checkpoint(run, 0) == imported.path
    )
    state = read_state(imported.path)
    assert not state["optimizer"] and state["iteration"] == 0
    assert state["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert from_dict(state["config"]).model == imported.model.config
    again = export_directory(imported, tmp_path / "back")
    theirs, ours = (
        load_file(directory / "model.safetensors"),
        load_file(again / "model.safetensors"),
    )
    assert theirs.keys() == ours.keys() and all(
        torch.equal(theirs[name], ours[name]) for name in ours
    )


def test_an_import_that_computes_something_else_does_not_appear(foreign, tmp_path, monkeypatch):
    _, directory = foreign
    monkeypatch.setattr(hf, "_their_logits", lambda d: torch.ones(2, 32, 309))
    with pytest.raises(DataError, match="imported model computes other logits"):
        import_directory(directory, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_every_kind_of_weight_file_is_read(foreign, tokenizer, tmp_path):
    model, directory = foreign
    expected = load_model(directory).model.state_dict()
    sharded, old = tmp_path / "sharded", tmp_path / "old"
    model.save_pretrained(sharded, max_shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    shutil.copytree(directory, old, ignore=shutil.ignore_patterns("*.safetensors"))
    bare = {
        name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()
    }
    masks = {
        "h.0.attn.bias": torch.ones(1, 1, 32, 32).tril(),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    torch.save(bare | masks, old / "pytorch_model.bin")  # with lm_head.weight, without the prefix
    assert "lm_head.weight" in bare
    tokenizer.save(sharded)
    for path in (sharded, old):
        found = load_model(path).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), path


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt_neox"},
        {"activation_function": "relu"},
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"quantization_config": {"bits": 4}},
        {"n_layer": None},
        {"n_head": 3},
        {"vocab_size": 12.5},
        {"layer_norm_epsilon": None},
        {"resid_pdrop": "0.1"},
        {"initializer_range": float("nan")},
        {"n_inner": "32"},
    ],
    ids=str,
)
def test_another_kind_of_model_is_refused_by_name(export, change):
    values = json.loads((export / "config.json").read_text())
    assert model_config(values, "config.json").num_layers == 2
    with pytest.raises(DataError, match=next(iter(change))):
        model_config(values | change, "config.json")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(damaged, file):
    edit(damaged / file, auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    with pytest.raises(UnsafeError, match=f"{file} has auto_map"):
        load_model(damaged)


def test_a_pickle_that_would_run_code_is_refused(damaged):
    class Bomb:
        def __reduce__(self):
            return print, ("boom",)

    (damaged / "model.safetensors").unlink()
    torch.save({"wte.weight": Bomb()}, damaged / "pytorch_model.bin")
    with pytest.raises(UnsafeError, match="more than tensors"):
        load_model(damaged)


def test_an_index_that_leaves_its_folder_is_refused(damaged):
    (damaged / "model.safetensors").rename(damaged.parent / "elsewhere.safetensors")
    index = damaged / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UnsafeError, match="elsewhere"):
        load_model(damaged)
    index.write_text("{}")
    with pytest.raises(DataError, match="no weight_map"):
        load_model(damaged)


def test_weights_that_do_not_fit_are_named(damaged):
    path = damaged / "model.safetensors"
    good = load_file(path)
    wte = good["transformer.wte.weight"]
    for change, message in (
        ({"transformer.h.0.extra": wte}, "h.0.extra is unknown"),
        ({"transformer.wpe.weight": wte}, r"wpe.weight is \(300, 32\), expected \(40, 32\)"),
        ({"lm_head.weight": wte + 1}, "lm_head.weight differs"),
    ):
        save_file({n: t.clone() for n, t in (good | change).items()}, path)
        with pytest.raises(DataError, match=message):
            load_model(damaged)
    good.pop("transformer.ln_f.bias")
    save_file(good, path)
    with pytest.raises(DataError, match=r"ln_f\.bias is missing"):
        load_model(damaged)
    path.write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read"):
        load_model(damaged)
    path.unlink()
    with pytest.raises(DataError, match="no weights"):
        load_model(damaged)


def test_damaged_descriptions_are_named(damaged):
    for content, message in (("{", "cannot be read"), ("[]", "not a JSON object")):
        (damaged / "config.json").write_text(content)
        with pytest.raises(DataError, match=message):
            load_model(damaged)


def test_more_tokens_than_rows_are_refused(damaged, tmp_path):
    train_bpe(iter(TEXTS * 2 + ["lupus erythematosus hypertension"] * 9), 340).save(damaged)
    with pytest.raises(DataError, match="the tokenizer has"):
        import_directory(damaged, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_beside_a_run_is_refused(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    train_bpe(iter(["another text"]), 300).save(copy / "tokenizer")
    with pytest.raises(DataError, match="was trained with tokenizer"):
        load_model(copy)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no checkpoint"):
        load_model(tmp_path)
    with pytest.raises(DataError, match=r"no config\.json"):
        import_directory(tmp_path, tmp_path / "run")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA"):
            load_model(tmp_path, device="cuda")
