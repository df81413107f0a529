"""Which settings may change when a run goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY

from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.origin import Origin
from megatron_yuyuan.resolve import compare_with_checkpoint, resolve

OWN_MASKS = {"attention_dropout": 0.1, "attention_dropout_rng": "torch"}


def continued(config) -> Origin:
    """A checkpoint of a run with these settings."""
    return Origin(Path("runs/iter_0000001"), False, {"config": config.to_dict()}, None, print)


@pytest.mark.parametrize(
    "change",
    [{"micro_batch_size": 2}, {"tensor_model_parallel_size": 2}, {"pipeline_layout": (3, 5)}],
    ids=str,
)
def test_the_layout_may_change_unless_ranks_draw_their_own_masks(change):
    assert compare_with_checkpoint(TINY.replace(**change), continued(TINY)) == []
    own = TINY.replace(**OWN_MASKS)
    with pytest.raises(ConfigError, match=f"{next(iter(change))} was"):
        compare_with_checkpoint(own.replace(**change), continued(own))


def test_a_longer_run_is_another_course_of_the_learning_rate():
    with pytest.raises(ConfigError, match="lr_decay_iters was 5, is 6") as refused:
        compare_with_checkpoint(TINY.replace(train_iters=6), continued(TINY))
    assert "--lr-decay-iters 5 to train longer" in refused.value.remedy
    assert "--finetune to begin a new run" in refused.value.remedy
    with pytest.raises(ConfigError) as refused:
        compare_with_checkpoint(TINY.replace(seed=8, save="runs"), continued(TINY))
    assert "another --save to begin a new run: runs holds this one" in refused.value.remedy
    assert "--lr-decay-iters" not in refused.value.remedy
    longer = TINY.replace(train_iters=6, lr_decay_iters=5)
    assert compare_with_checkpoint(longer, continued(TINY)) == []


def test_a_warm_up_by_a_fraction_depends_on_the_length_whatever_the_course():
    constant = TINY.replace(lr_decay_style="constant")
    assert compare_with_checkpoint(constant.replace(train_iters=9), continued(constant)) == []
    share = constant.replace(lr_warmup_iters=0, lr_warmup_fraction=0.4)
    with pytest.raises(ConfigError, match="lr_decay_iters was 5, is 9"):
        compare_with_checkpoint(share.replace(train_iters=9), continued(share))


def test_another_number_of_ranks_is_refused_where_they_draw_their_own_masks():
    own = TINY.replace(**OWN_MASKS)
    for config in (TINY, own):
        origin = continued(config)
        assert compare_with_checkpoint(config, origin, 4) == []  # one that does not know its number
        origin.state["ranks"] = 2
        assert compare_with_checkpoint(config, origin, 2) == []
    with pytest.raises(ConfigError, match="number of ranks was 2, is 4"):
        compare_with_checkpoint(own, origin, 4)


def test_what_is_validated_may_change_unless_it_decides_what_is_kept():
    change = {"eval_iters": 7}
    assert compare_with_checkpoint(TINY.replace(**change), continued(TINY)) == []
    with pytest.raises(ConfigError, match="eval_iters was 100, is 7"):
        compare_with_checkpoint(TINY.replace(keep_best=2, **change), continued(TINY))
    assert compare_with_checkpoint(TINY.replace(keep_best=2), continued(TINY)) == []


def test_folders_of_shards_may_change_but_not_their_names():
    moved = TINY.replace(keep_best=1, valid_data_path=("new/valid",), data_path=("new/text",))
    saved = TINY.replace(valid_data_path=("old/valid",), data_path=("old/text.idx",))
    assert compare_with_checkpoint(moved, continued(saved)) == []
    with pytest.raises(ConfigError, match="data_path was text, is other"):
        compare_with_checkpoint(moved.replace(data_path=("new/other",)), continued(saved))


def test_a_continued_run_keeps_its_global_batch_on_every_layout():
    """Without --global-batch-size: the default of another number of data ranks would be another training."""
    asked = TINY.replace(global_batch_size=0)
    assert resolve(asked, 1, None, 2).training.global_batch_size == 2
    for ranks in (1, 4):
        assert resolve(asked, 1, continued(TINY), ranks).training.global_batch_size == 8
    with_weights = replace(continued(TINY), weights_only=True)
    assert resolve(asked, 1, with_weights, 2).training.global_batch_size == 2
