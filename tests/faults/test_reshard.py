"""Every layout continues what every other has saved: the same tensors to the bit, the same next loss.

All ordered pairs on 2 ranks; on 4 and 8 each layout with its next neighbours in the list, which is 27 and
32 pairs. A job of one layout lays its ranks out again for each other one.
"""

import hashlib
import math

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, all_layouts, build_trainer

from megatron_yuyuan.checkpoint.dcp import load_tensors, save_checkpoint
from megatron_yuyuan.train.trainer import Trainer
from megatron_yuyuan.watch.saved import checkpoint_path

CONFIG = TINY.replace(num_layers=8, hidden_dropout=0.1)
STEPS = 2


def whole_tensors(trainer: Trainer) -> dict[str, str]:
    """sha256 of every tensor of the checkpoint, gathered from all ranks; on all of them."""
    mine = {}
    for name, tensor in trainer.state.tensors().items():
        whole = tensor.full_tensor().contiguous()
        mine[name] = hashlib.sha256(whole.view(torch.uint8).numpy()).hexdigest()
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    found: dict[str, str] = {}
    for part in parts:
        for name, digest in part.items():
            assert found.setdefault(name, digest) == digest, f"copies of {name} differ"
    return found


def saved(layout: Layout, directory) -> tuple[dict[str, str], float]:
    """Train, save, and take one more step: the tensors that were saved, and its loss."""
    trainer = build_trainer(layout.of(CONFIG))
    for _ in range(STEPS):
        trainer.step(RandomText())
    save_checkpoint(directory / str(layout), STEPS, trainer.state.tensors(), {})
    return whole_tensors(trainer), trainer.step(RandomText())["lm_loss"]


def loaded(layout: Layout, directory) -> tuple[dict[str, str], float]:
    """The same of a state that another layout has saved."""
    trainer = build_trainer(layout.of(CONFIG))
    fresh = whole_tensors(trainer)
    path = checkpoint_path(directory, STEPS)
    trainer.state.fill(lambda tensors: load_tensors(path, tensors))
    batch = CONFIG.training.global_batch_size
    trainer.state.continue_after(STEPS, STEPS * batch, STEPS)
    tensors = whole_tensors(trainer)
    assert all(tensors[name] != fresh[name] for name in tensors), "the test would see nothing"
    return tensors, trainer.step(RandomText())["lm_loss"]


def resharded(pairs: list[tuple[Layout, Layout]], directory) -> list[str]:
    """What is wrong with each pair (saved by, loaded by); empty if nothing is."""
    expected = {layout: saved(layout, directory) for layout in dict.fromkeys(a for a, _ in pairs)}
    faults = []
    for before, after in pairs:
        tensors, loss = loaded(after, directory / str(before))
        there, next_loss = expected[before]
        unequal = sorted(name for name in there if tensors.get(name) != there[name])
        if unequal or tensors.keys() != there.keys():
            faults.append(f"{before} -> {after}: {len(unequal)} tensors differ: {unequal[:3]}")
        if not math.isclose(loss, next_loss, rel_tol=1e-6):
            faults.append(f"{before} -> {after}: next loss {loss!r} for {next_loss!r}")
    return faults


def pairs_of(before: Layout, neighbours: int) -> list[tuple[Layout, Layout]]:
    """A layout, with each of so many that follow it in the list of its size, round and round."""
    layouts = all_layouts(before.ranks)
    at = layouts.index(before)
    return [(before, layouts[(at + k) % len(layouts)]) for k in range(1, neighbours + 1)]


def test_all_pairs_of_layouts_on_two_ranks(ranks, tmp_path):
    pairs = [pair for before in all_layouts(2) for pair in pairs_of(before, 3)]
    assert len(set(pairs)) == 12  # pipeline, data, tensor, tensor with sequence parallelism
    assert ranks.run(2, resharded, pairs, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("before", all_layouts(4), ids=str)
def test_pairs_of_layouts_on_four_ranks(ranks, tmp_path, before):
    assert ranks.run(4, resharded, pairs_of(before, 3), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("before", all_layouts(8), ids=str)
def test_pairs_of_layouts_on_eight_ranks(ranks, tmp_path, before):
    assert ranks.run(8, resharded, pairs_of(before, 2), tmp_path) == []
