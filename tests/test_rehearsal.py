"""`--dry-run` says what a job would take, starts nothing, and refuses what will not fit."""

import pytest
import torch.distributed as dist
from commands import run, train_flags

from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.errors import ConfigError, ConfigErrors, DataError
from megatron_yuyuan.run import finetune, pretrain

SHAPE = (
    *("--num-layers", 4, "--hidden-size", 64, "--num-attention-heads", 4, "--seq-length", 32),
    *("--vocab-size", 300, "--micro-batch-size", 1, "--global-batch-size", 8, "--train-iters", 3),
)
DIVIDED = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
DRY = ("--dry-run", "--dry-run-ranks", 8)


def configured(*words: object):
    return parse_config("", [str(word) for word in words])


def test_a_job_of_eight_ranks_without_any_file(capsys):
    pretrain(configured(*SHAPE, *DIVIDED, *DRY, "--gpu-memory-gib", 10))
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "tokenizer: none is named, none is checked",
        "data: none is named, none is checked",
    ]
    assert "layout: pipeline 2 x data 2 x tensor 2 on cpu over fake" in said
    assert [line.split()[:2] for line in said if line.startswith("  pipeline ")][:2] == [
        ["pipeline", "0"],
        ["pipeline", "1"],
    ]
    assert any(line.split()[:2] == ["tensor", "all-reduce"] for line in said)
    assert said[-1] == (
        "fits: 0.0 GiB (with the loss in a GPU's chunks, by the planner) and 4 assumed beside tensors, of 10"
    )
    assert not dist.is_initialized()


def test_what_does_not_fit_is_refused_with_flags_that_do():
    words = (*SHAPE[:4], "--num-attention-heads", 4, "--seq-length", 512, "--vocab-size", 300)
    words += ("--micro-batch-size", 64, "--global-batch-size", 64, "--train-iters", 3)
    with pytest.raises(ConfigError) as raised:
        pretrain(configured(*words, *DRY[:1], "--gpu-memory-gib", 4.5))
    assert raised.value.what.startswith("a rank of pipeline rank 0 holds ")
    assert "more than gpu_memory_gib=4.5" in raised.value.what
    assert "--micro-batch-size 16" in raised.value.remedy
    with pytest.raises(ConfigError) as raised:
        pretrain(configured(*words, *DRY[:1], "--gpu-memory-gib", 4.001))
    assert raised.value.remedy == "more ranks, or a smaller model"


def test_what_a_run_would_refuse_a_dry_run_refuses(prepared, tmp_path):
    with pytest.raises(ConfigErrors, match="9 ranks cannot be divided"):
        pretrain(configured(*SHAPE, *DIVIDED, "--dry-run", "--dry-run-ranks", 9))
    _, *flags = train_flags(prepared, tmp_path / "run")
    with pytest.raises(DataError, match="missing"):
        pretrain(configured(*flags, "--data-path", tmp_path / "missing", "--dry-run"))
    with pytest.raises(ConfigErrors, match="dry_run_ranks without dry_run"):
        pretrain(configured(*flags, "--dry-run-ranks", 8))


def test_a_finetuning_needs_no_checkpoint_to_be_planned(capsys):
    finetune(configured(*SHAPE, "--dry-run"))
    assert capsys.readouterr().out.startswith("load: no checkpoint is named, none is checked\n")


def test_the_command_itself_starts_nothing(prepared, tmp_path):
    save = tmp_path / "run"
    ended = run(*train_flags(prepared, save), "--dry-run", "--gpu-memory-gib", 4, status=2)
    assert "data: " in ended.stdout
    assert "most on a rank, GiB" in ended.stdout
    assert ended.stderr.startswith("error: a rank of pipeline rank 0 holds 0.00 GiB of tensors")
    assert not save.exists()
