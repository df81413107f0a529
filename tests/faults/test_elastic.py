"""The samples of a run, and their order, do not depend on how many data ranks read them."""

import itertools

import numpy as np
import pytest
import torch.distributed as dist
from tiny import TINY, Layout, build_trainer

from megatron_yuyuan.data.gpt_dataset import GPTDataset
from megatron_yuyuan.train.schedule import batch_size
from megatron_yuyuan.train.spikes import Remaining

STEPS = 1000
CONFIG = TINY.replace(num_layers=1, train_iters=STEPS)
RAMP = CONFIG.replace(
    train_iters=0,
    train_samples=7800,
    rampup_batch_size=(4, 4, 1600),
    lr_warmup_iters=0,
    lr_warmup_samples=80,
)


class Tokens:
    """A stream of numbered tokens instead of a shard: what is read says where it stood."""

    prefix, num_documents, length = "numbered", 1, 9001

    def document_start(self, document: int) -> int:
        return document * self.length

    def tokens(self, first: int, last: int) -> np.ndarray:
        return np.arange(first, last)


def read(config, first: int, last: int, left_out) -> list[list[int]]:
    """Of the steps from `first` to `last` the first token of each sample, in the order of the data ranks:
    windows of a token stream, of which there are 14 epochs, each shuffled anew."""
    trainer = build_trainer(config)
    windows = Remaining(GPTDataset(Tokens(), 16, config.training.seed), left_out)
    consumed, steps = 0, []
    for step in range(last):
        trainer.batch_size = batch_size(consumed, config.training)
        if step >= first:
            steps.append(trainer.batch(windows, consumed).tokens[:, 0].tolist())
        consumed += trainer.batch_size
    shares: list = [None] * dist.get_world_size()
    dist.all_gather_object(shares, (trainer.mesh.rank("data"), steps))
    by_rank = [mine for _, mine in sorted(shares, key=lambda share: share[0])]
    return [list(itertools.chain(*parts)) for parts in zip(*by_rank, strict=True)]


@pytest.mark.parametrize(
    ("config", "left_out"),
    [(CONFIG, []), pytest.param(RAMP, [[1000, 1499]], marks=pytest.mark.slow)],
    ids=["plain", "ramp_and_rollback"],
)
def test_a_thousand_steps_read_the_same_samples_at_every_size_and_after_a_change(
    ranks, config, left_out
):
    expected = ranks.run(1, read, config, 0, STEPS, left_out)
    assert len(expected) == STEPS
    assert len(set(map(tuple, expected))) == STEPS  # not the same again and again
    middle = STEPS // 2 + 1
    for before, after in ((2, 4), (4, 2)):
        first = ranks.run(before, read, Layout(data=before).of(config), 0, middle, left_out)
        second = ranks.run(after, read, Layout(data=after).of(config), middle, STEPS, left_out)
        assert first + second == expected
