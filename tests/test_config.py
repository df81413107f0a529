"""Every knob once: documented, read by someone, and reloaded as it was."""

import ast
import dataclasses
import tomllib
from collections.abc import Iterator

import pytest
from tiny import TINY

from megatron_yuyuan.cli import field_documentation, parse_config
from megatron_yuyuan.config import Config, config_fields
from megatron_yuyuan.config_toml import from_dict, load_toml, to_toml
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.validation import validate


def test_every_field_is_documented_and_has_a_name_of_its_own():
    documented = field_documentation()
    groups = [dataclasses.fields(group.default) for group in dataclasses.fields(Config)]
    assert sum(map(len, groups)) == len(config_fields())  # no name twice
    assert set(config_fields()) <= set(documented)


GROUPS = {"config", *(group.name for group in dataclasses.fields(Config))}
"""What a group of the configuration is called where it is read: config.lr, state.config.training.lr."""


def attributes_of(code: str, owners: set[str]) -> Iterator[str]:
    """The attributes that are read from names or attributes called as one of `owners`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = getattr(node.value, "id", getattr(node.value, "attr", None))
            if owner in owners:
                yield node.attr


def test_every_field_is_read_by_someone(repository):
    read: set[str] = set()
    for path in (repository / "megatron_yuyuan").rglob("*.py"):
        if not path.name.startswith(("validation", "cli")):  # they read all, and use none
            owners = {"self"} if path.name == "config.py" else GROUPS
            read |= set(attributes_of(path.read_text(encoding="utf-8"), owners))
    assert not [name for name in config_fields() if name not in read]


def test_an_attribute_of_something_else_reads_no_field():
    others = (
        "text.split(); torch.load(a); tensor.device; self.seed; config.training.seed = 1; f().lr"
    )
    assert not set(attributes_of(others, GROUPS)) & set(config_fields())
    assert "seed" in attributes_of("lr = run.config.training.seed", GROUPS)


TOGETHER = [
    ("yuyuan_3.5b yuyuan_3.5b_32xA100", 32, {}),
    ("yuyuan_3.5b yuyuan_qa_16xA100", 16, {"save": "runs/qa"}),
    ("tiny quickstart_pretrain", 8, {"vocab_size": 1024}),
    ("tiny quickstart_finetune", 2, {"vocab_size": 1024}),
    ("small_cpu", 2, {"vocab_size": 1024, "train_iters": 1}),
    ("gpt2_124m", 1, {"train_iters": 1}),
]
"""Files that are given together, for how many ranks, and what flags, tokenizer or checkpoint add."""


@pytest.mark.parametrize(("names", "ranks", "added"), TOGETHER, ids=[t[0] for t in TOGETHER])
def test_shipped_configurations_parse_and_are_valid(repository, names, ranks, added):
    config = Config()
    for name in names.split():
        values = load_toml(repository / "examples" / "configs" / f"{name}.toml")
        assert values
        config = config.replace(**values)
    config = config.replace(**added)
    layout, training = config.parallel, config.training
    model_ranks = layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size
    whole_share = training.micro_batch_size * (ranks // model_ranks)
    validate(config.replace(global_batch_size=training.global_batch_size or whole_share), ranks)


def test_no_shipped_configuration_is_left_out(repository):
    shipped = {path.stem for path in (repository / "examples" / "configs").glob("*.toml")}
    assert shipped == {name for names, _, _ in TOGETHER for name in names.split()}


def test_a_resolved_configuration_reloads_equal():
    config = TINY.replace(
        data_path=("a b", 'c"\\d'), lr=1e-7, vocab_file="naïve\t\n.json", sequence_parallel=True
    ).replace(rampup_batch_size=(2, 2, 50))
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert from_dict(config.to_dict()) == config


def test_a_flag_of_three_numbers():
    config = parse_config("", ["--rampup-batch-size", "2", "4", "50", "--seed", "3"])
    assert (config.training.rampup_batch_size, config.training.seed) == ((2, 4, 50), 3)
    with pytest.raises(ConfigError, match="rampup-batch-size"):
        parse_config("", ["--rampup-batch-size", "2", "4"])


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
        ("[model]\nnum_layers = 2.5", "num_layers = 2.5 is not an integer", "an integer"),
        ("[training]\nbf16 = 1", "bf16 = 1 is not true or false", "true or false"),
        ('[parallel]\ndevice = "tpu"', "device = 'tpu'", "auto, cpu, cuda"),
        ("[data]\ndata_path = 3", "data_path = 3 is not a list of strings", ""),
        ("[training]\nrampup_batch_size = [2, true]", "rampup_batch_size = [2, True]", ""),
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


ZERO_BUBBLE = {"pipeline_model_parallel_size": 2, "pipeline_schedule": "ZBVZeroBubble"}


@pytest.mark.parametrize(
    ("changes", "ranks", "what", "remedy"),
    [
        ({"num_layers": 0}, 1, "num_layers is not given", "--num-layers N"),
        ({"lr": -1.0}, 1, "lr=-1.0", "0 or more"),
        ({"lr": float("nan")}, 1, "lr=nan", "0 or more"),
        ({"hidden_size": 36}, 1, "not a multiple of num_attention_heads=8", "1, 2, 3, 4, 6, 9"),
        ({"tensor_model_parallel_size": 3}, 3, "num_attention_heads=8 cannot be", "1, 2, 4 or 8"),
        ({"tensor_model_parallel_size": 3}, 3, "the padded vocabulary 128", "1, 2, 4 or 8"),
        (
            {"hidden_size": 3072, "num_attention_heads": 33},
            1,
            "num_attention_heads=33",
            "24, 32 or 48",
        ),
        ({"pipeline_model_parallel_size": 3}, 7, "7 ranks cannot be divided", "6 or 9 ranks"),
        (
            {"pipeline_model_parallel_size": 3, "pipeline_layout": (4, 4)},
            3,
            "pipeline_layout=4 4 for 8 layers on 3 stages",
            "--pipeline-layout 3 3 2",
        ),
        ({"kernels": "cuda", "device": "cpu"}, 1, "kernels=cuda with device=cpu", "--kernels auto"),
        ({"distributed_backend": "nccl", "device": "cpu"}, 1, "distributed_backend=nccl", "gloo"),
        ({"ffn_hidden_size": 6, "tensor_model_parallel_size": 4}, 4, "the MLP's width 6", "1 or 2"),
        (
            {"seq_length": 6, "sequence_parallel": True, "tensor_model_parallel_size": 4},
            4,
            "seq_length=6 cannot be divided",
            "1 or 2",
        ),
        ({"pipeline_model_parallel_size": 9}, 9, "num_layers=8 cannot be", "size 8 or less"),
        (ZERO_BUBBLE | {"pipeline_model_parallel_size": 5}, 5, "over 10 stages", "size 4 or less"),
        (
            ZERO_BUBBLE | {"num_virtual_stages_per_pipeline_rank": 3},
            2,
            "rank=3 under pipeline_schedule=ZBVZeroBubble",
            "leave it out",
        ),
        ({"num_virtual_stages_per_pipeline_rank": 2}, 1, "rank=2 under", "Interleaved1F1B"),
        (ZERO_BUBBLE | {"pipeline_layout": (4, 4)}, 2, "4 4 for 8 layers on 4 stages", "by cost"),
        (ZERO_BUBBLE | {"pipeline_layout": (4, 2, 2, 0)}, 2, "4 2 2 0 for 8 layers", "by cost"),
        (
            ZERO_BUBBLE | {"data_parallel_sharding_strategy": "optim_grads_params"},
            2,
            "ZBVZeroBubble with data_parallel_sharding_strategy",
            "strategy optim",
        ),
        (
            ZERO_BUBBLE | {"recompute_granularity": "full"},
            2,
            "ZBVZeroBubble with recompute_granularity=full",
            "selective",
        ),
        ({"seq_length": 17}, 1, "seq_length=17 exceeds", "--seq-length 16"),
        ({"tensor_model_parallel_size": 2}, 3, "3 ranks cannot be divided", "4 ranks"),
        ({"global_batch_size": 7, "micro_batch_size": 2}, 1, "global_batch_size=7", "8"),
        ({"hidden_dropout": 1.0}, 1, "hidden_dropout=1.0", "0 to 0.9"),
        ({"epochs": 1.0}, 1, "give train_iters, train_samples or epochs", "--train-iters"),
        ({"train_iters": 0}, 1, "give train_iters, train_samples or epochs", "--train-iters"),
        ({"lr_warmup_fraction": 0.1}, 1, "lr_warmup_iters or lr_warmup_fraction", "0.01"),
        ({"lr_warmup_fraction": 1.0, "lr_warmup_iters": 0}, 1, "lr_warmup_fraction=1.0", "0.01"),
        ({"adam_beta1": 1.5}, 1, "adam_beta1=1.5", "0.9"),
        ({"min_lr": 1.0}, 1, "min_lr=1.0 is above lr=0.01", "--min-lr"),
        ({"train_samples": 80}, 1, "give train_iters, train_samples or epochs", "--train-iters"),
        ({"train_iters": 0, "train_samples": 7}, 1, "train_samples=7 are fewer than the 8", "8"),
        ({"train_iters": 0, "train_samples": 80}, 1, "lr_warmup_iters=2", "lr_warmup_samples"),
        ({"lr_decay_samples": 80}, 1, "lr_decay_samples=80", "lr_decay_iters"),
        (
            {"lr_wsd_decay_iters": 2},
            1,
            "lr_decay_style WSD and lr_wsd_decay_iters together",
            "both",
        ),
        (
            {"lr_decay_style": "WSD"},
            1,
            "lr_decay_style WSD and lr_wsd_decay_iters together",
            "both",
        ),
        (
            {"lr_decay_style": "inverse-square-root", "lr_warmup_iters": 0},
            1,
            "inverse-square-root without a warm-up",
            "0.01",
        ),
        ({"lr_wsd_decay_style": "linear"}, 1, "lr_wsd_decay_iters together", "both"),
        (
            {"async_save": True, "keep_last": 2},
            1,
            "async_save and keep_last without save",
            "--save",
        ),
        (
            {"save": "runs", "save_interval": 0, "save_retain_interval": 5},
            1,
            "save_retain_interval without save_interval",
            "--save-interval",
        ),
        ({"profile_step_start": 3}, 1, "profile_step_start without profile", "--profile"),
        ({"hysteresis": 3}, 1, "hysteresis without fp16", "--fp16"),
        (
            {"fp16": True, "loss_scale": 8.0, "hysteresis": 3},
            1,
            "hysteresis with loss_scale=8.0",
            "one",
        ),
        ({"rampup_batch_size": (2, 2)}, 1, "rampup_batch_size=2 2", "three numbers"),
        ({"rampup_batch_size": (2, 2, 0)}, 1, "rampup_batch_size=2 2 0", "three numbers"),
        ({"rampup_batch_size": (8, 2, 50)}, 1, "starts with 8, and global_batch_size=8", "smaller"),
        ({"rampup_batch_size": (2, 4, 50)}, 1, "grows from 2 by 4, and never is", "1, 2, 3 or 6"),
        ({"rampup_batch_size": (2, 2, 50)}, 1, "rampup_batch_size and train_iters", "--epochs"),
        ({"rampup_batch_size": (2, 3, 50)}, 2, "INCREMENT of rampup_batch_size=3 is not", "4"),
        ({"rampup_batch_size": (3, 1, 50)}, 2, "START of rampup_batch_size=3 is not", "4"),
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


@pytest.mark.parametrize(
    ("changes", "ranks", "found"),
    [
        (
            {"num_layers": 0, "adam_beta1": 1.0, "profile": True, "keep_last": 2},
            1,
            ("num_layers", "adam_beta1", "profile,", "keep_last"),
        ),
        (
            {"pipeline_model_parallel_size": 3, "micro_batch_size": 3, "global_batch_size": 4},
            7,
            ("7 ranks", "global_batch_size=4 is not a multiple of micro_batch_size=3"),
        ),
        (
            {
                "pipeline_model_parallel_size": 3,
                "num_distributed_optimizer_instances": 2,
                "data_parallel_sharding_strategy": "no_shard",
            },
            7,
            ("7 ranks", "data_parallel_sharding_strategy=no_shard"),
        ),
    ],
)
def test_one_problem_hides_no_other(changes, ranks, found):
    with pytest.raises(ConfigErrors) as raised:
        validate(TINY.replace(**changes), ranks)
    assert len(raised.value.problems) == len(found), raised.value
    assert all(any(what in p.what for p in raised.value.problems) for what in found), raised.value
