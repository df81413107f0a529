"""AdamW over divided parameters equals AdamW over whole ones."""

import pytest
import torch
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.train.optimizer import build_optimizer
from megatron_yuyuan.train.schedule import learning_rate

CONFIG = TINY.replace(weight_decay=0.5, clip_grad=0.3)


def divided_losses(config):
    trainer = build_trainer(config)
    return [trainer.step(RandomText())["lm_loss"] for _ in range(5)]


def undivided_losses(config):
    """The same five steps by torch's own pieces on the plain model."""
    model = GPT2(config.model)
    init_weights(model, config.training.seed)
    optimizer = build_optimizer([model], config.optimizer)
    losses = []
    for step in range(5):
        batch = read_batch(RandomText(), 8 * step, 8, 0, 1, "cpu")
        total, count = model(batch.tokens, **batch.model_inputs(), step=step, labels=batch.labels)
        loss = (total / count).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, config.training.train_iters, config.optimizer)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_clipped_and_decayed_steps_equal_those_of_plain_torch(ranks):
    expected = undivided_losses(CONFIG)
    for layout in (Layout(), Layout(2, 2, 2, True)):
        assert ranks.run(layout.ranks, divided_losses, layout.of(CONFIG)) == pytest.approx(
            expected, rel=1e-5
        )
    assert abs(undivided_losses(CONFIG.replace(clip_grad=0.0))[-1] / expected[-1] - 1) > 1e-3


def test_only_matrices_are_decayed():
    matrices, vectors = build_optimizer([GPT2(TINY.model)], CONFIG.optimizer).param_groups
    assert all(p.dim() == 2 for p in matrices["params"])
    assert all(p.dim() == 1 for p in vectors["params"])
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
