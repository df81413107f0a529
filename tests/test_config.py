"""Every knob once: documented, read by someone, and reloaded as it was."""

import dataclasses
import re
import tomllib

import pytest
from tiny import TINY

from megatron_yuyuan.cli import _field_documentation, parse_config
from megatron_yuyuan.config import Config, config_fields, load_toml
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation import validate


def test_every_field_is_documented_and_has_a_name_of_its_own():
    documented = _field_documentation()
    groups = [dataclasses.fields(group.default) for group in dataclasses.fields(Config)]
    assert sum(map(len, groups)) == len(config_fields())  # no name twice
    assert set(config_fields()) <= set(documented)


def test_every_field_is_read_by_someone(repository):
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (repository / "megatron_yuyuan").rglob("*.py")
        if path.name not in ("config.py", "validation.py", "cli.py")
    )
    declared = (repository / "megatron_yuyuan" / "config.py").read_text(encoding="utf-8")
    properties = "\n".join(re.findall(r"self\.\w+", declared))
    unread = [n for n in config_fields() if not re.search(rf"\.{n}\b", code + properties)]
    assert not unread


def test_shipped_configurations_parse_and_are_valid(repository):
    paths = sorted((repository / "examples" / "configs").glob("*.toml"))
    assert paths
    for path in paths:
        values = load_toml(path)
        assert values, path
        assert Config().replace(**values) != Config()


def test_a_resolved_configuration_reloads_equal():
    config = TINY.replace(
        data_path=("a b", 'c"\\d'), lr=1e-7, vocab_file="naïve\t\n.json", sequence_parallel=True
    )
    assert Config.from_dict(tomllib.loads(config.to_toml())) == config
    assert Config.from_dict(config.to_dict()) == config


def test_flags_win_over_files_and_later_files_over_earlier(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("[model]\nnum_layers = 2\nhidden_size = 8\n[optimizer]\nlr = 1\n")
    second.write_text("[model]\nnum_layers = 3\n")
    arguments = ["--config", str(first), "--config", str(second), "--hidden_size", "16"]
    config = parse_config("", arguments)
    assert (config.model.num_layers, config.model.hidden_size, config.optimizer.lr) == (3, 16, 1.0)
    assert parse_config("", [*arguments, "--no-sequence-parallel"]) == config


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("[modle]\n", "unknown table [modle]", "[model]"),
        ("[model]\nnum_layer = 2", "[model] has no num_layer", "num_layers"),
        ("[model]\nlr = 1.0", "[model] has no lr", "lr belongs to [optimizer]"),
        ("lr = 1.0", "lr stands outside a table", "[optimizer] lr"),
        ("[model]\nnum_layers = 2.5", "num_layers = 2.5 is not int", "int"),
        ("[training]\nbf16 = 1", "bf16 = 1 is not bool", "bool"),
        ('[parallel]\ndevice = "tpu"', "device = 'tpu'", "auto, cpu, cuda"),
        ("[data]\ndata_path = 3", "data_path = 3", ""),
        ("[model", "is not TOML", "mend"),
    ],
)
def test_a_wrong_file_is_refused_with_a_remedy(tmp_path, text, what, remedy):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_toml(path)
    assert what in raised.value.what
    assert remedy in raised.value.remedy


@pytest.mark.parametrize(
    ("changes", "ranks", "what", "remedy"),
    [
        ({"num_layers": 0}, 1, "num_layers is not given", "--num-layers N"),
        ({"lr": -1.0}, 1, "lr=-1.0", "0 or more"),
        ({"lr": float("nan")}, 1, "lr=nan", "0 or more"),
        ({"hidden_size": 36}, 1, "not a multiple of num_attention_heads=8", "1, 2, 3, 4, 6, 9"),
        ({"tensor_model_parallel_size": 3}, 3, "num_attention_heads=8 cannot be", "1, 2, 4 or 8"),
        ({"tensor_model_parallel_size": 3}, 3, "the padded vocabulary 128", "1, 2, 4 or 8"),
        ({"ffn_hidden_size": 6, "tensor_model_parallel_size": 4}, 4, "the MLP's width 6", "1 or 2"),
        (
            {"seq_length": 6, "sequence_parallel": True, "tensor_model_parallel_size": 4},
            4,
            "seq_length=6 cannot be divided",
            "1 or 2",
        ),
        ({"pipeline_model_parallel_size": 9}, 9, "num_layers=8 cannot be", "8 or fewer"),
        ({"seq_length": 17}, 1, "seq_length=17 exceeds", "--seq-length 16"),
        ({"tensor_model_parallel_size": 2}, 3, "3 ranks cannot be divided", "4 ranks"),
        ({"global_batch_size": 7, "micro_batch_size": 2}, 1, "global_batch_size=7", "8"),
        ({"hidden_dropout": 1.0}, 1, "hidden_dropout=1.0", "0 to 0.9"),
        ({"epochs": 1.0}, 1, "give train_iters or epochs", "--train-iters"),
        ({"train_iters": 0}, 1, "give train_iters or epochs", "--train-iters"),
        ({"lr_warmup_fraction": 0.1}, 1, "lr_warmup_iters or lr_warmup_fraction", "0.01"),
        ({"lr_warmup_fraction": 1.0, "lr_warmup_iters": 0}, 1, "lr_warmup_fraction=1.0", "0.01"),
        ({"adam_beta1": 1.5}, 1, "adam_beta1=1.5", "0.9"),
        ({"min_lr": 1.0}, 1, "min_lr=1.0 is above lr=0.01", "--min-lr"),
    ],
)
def test_what_cannot_work_is_refused_with_the_nearest_that_can(changes, ranks, what, remedy):
    with pytest.raises(ConfigError) as raised:
        validate(TINY.replace(**changes), ranks)
    [problem] = [p for p in raised.value.problems if what in p.what]
    assert remedy in problem.remedy
    assert problem.why


def test_all_problems_are_named_at_once():
    config = TINY.replace(tensor_model_parallel_size=3, seq_length=99, min_lr=5.0)
    with pytest.raises(ConfigError) as raised:
        validate(config, 3)
    assert len(raised.value.problems) >= 4
    assert str(raised.value).count("\n  try: ") == len(raised.value.problems)
