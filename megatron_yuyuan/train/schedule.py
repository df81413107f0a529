"""The learning rate as a function of the step."""

import math

from megatron_yuyuan.config import OptimizerConfig


def learning_rate(step: int, train_iters: int, optimizer: OptimizerConfig) -> float:
    """The rate of optimizer step `step`, counted from 1.

    Linear from lr_warmup_init to lr over the warm-up, then by lr_decay_style to min_lr at
    lr_decay_iters, and min_lr from there on. Cosine: arXiv:1608.03983 without restarts.
    """
    decay = optimizer.lr_decay_iters or train_iters
    warmup = optimizer.lr_warmup_iters or round(optimizer.lr_warmup_fraction * decay)
    if step <= warmup:
        return optimizer.lr_warmup_init + (optimizer.lr - optimizer.lr_warmup_init) * step / warmup
    if optimizer.lr_decay_style == "constant":
        return optimizer.lr
    done = min(1.0, (step - warmup) / max(1, decay - warmup))
    left = {"linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[
        optimizer.lr_decay_style
    ]
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * left
