"""The learning rate, the batch size and what is due, as functions of how far a run is.

A run is counted in iterations or, with --train-samples, in samples: lengths and positions below are
one or the other, never both. Nothing here has a state, so that a resumed run needs none.
"""

import math

from megatron_yuyuan.config import OptimizerConfig, TrainingConfig


def learning_rate(position: int, length: int, optimizer: OptimizerConfig) -> float:
    """The rate of the step that ends at `position` of a run of `length`, both counted from 1.

    Linear from lr_warmup_init to lr over the warm-up, then by lr_decay_style to min_lr at the end of
    the decay, and min_lr from there on. Source: `OptimizerParamScheduler.get_lr` of
    megatron/core/optimizer_param_scheduler.py, whose step n, however, is taken with the rate that
    this one gives to step n - 1, so that its first has rate lr_warmup_init.
    """
    decay = optimizer.lr_decay_iters or optimizer.lr_decay_samples or length
    warmup = warmup_length(decay, optimizer)
    if position <= warmup:
        share = position / warmup
        return optimizer.lr_warmup_init + (optimizer.lr - optimizer.lr_warmup_init) * share
    if optimizer.lr_decay_style == "constant":
        return optimizer.lr
    if position > decay:
        return optimizer.min_lr
    if optimizer.lr_decay_style == "inverse-square-root":
        return max(optimizer.min_lr, optimizer.lr * math.sqrt(warmup / position))
    if optimizer.lr_decay_style == "WSD":
        annealed = optimizer.lr_wsd_decay_iters or optimizer.lr_wsd_decay_samples
        start, shape = max(warmup, decay - annealed), optimizer.lr_wsd_decay_style
    else:
        start, shape = warmup, optimizer.lr_decay_style
    left = _left(shape, max(0.0, (position - start) / (decay - start)))
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * left


def highest_learning_rate(training: TrainingConfig, optimizer: OptimizerConfig) -> float:
    """The highest rate of a step of a run, whose length is resolved: at the end of its warm-up or next to
    it, or, if it ends before, its last."""
    length, step = training.train_iters, 1
    if training.train_samples:
        length, step = training.train_samples, training.global_batch_size
    decay = optimizer.lr_decay_iters or optimizer.lr_decay_samples or length
    steps = warmup_length(decay, optimizer) / step
    peaks = {max(1, math.floor(steps)) * step, max(1, math.ceil(steps)) * step, length}
    return max(learning_rate(p, length, optimizer) for p in peaks if p <= length)


def warmup_length(decay: int, optimizer: OptimizerConfig) -> float:
    """Iterations or samples of warm-up; a fraction is one of the decay, and not rounded."""
    given = optimizer.lr_warmup_iters or optimizer.lr_warmup_samples
    return given or optimizer.lr_warmup_fraction * decay


def _left(shape: str, done: float) -> float:
    """The share of (lr - min_lr) that is left when the share `done` of a decay is done, 0 to 1.

    Cosine: arXiv:1608.03983 without restarts. Exponential, the anneal of WSD (arXiv:2404.06395), is
    Megatron-LM's: half-lives, moved so that it ends at 0.
    """
    return {
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        "exponential": 2.0 * 0.5**done - 1.0,
        "minus_sqrt": 1.0 - math.sqrt(done),
    }[shape]


def batch_size(consumed: int, training: TrainingConfig) -> int:
    """Samples of the step that begins after `consumed` samples.

    Without rampup_batch_size always global_batch_size. With START INCREMENT SAMPLES it grows from
    START by INCREMENT at equal distances, and is global_batch_size after SAMPLES. Source:
    `RampupBatchsizeNumMicroBatchesCalculator` of megatron/core/num_microbatches_calculator.py.
    """
    if not training.rampup_batch_size:
        return training.global_batch_size
    start, increment, samples = training.rampup_batch_size
    increments = (training.global_batch_size - start) // increment
    return start + min(increments, consumed * increments // samples) * increment


def train_iterations(training: TrainingConfig) -> int:
    """Steps of a run: train_iters, or the whole batches of train_samples. What is left of
    train_samples is not read, as in Megatron-LM."""
    if not training.train_samples:
        return training.train_iters
    steps, consumed = _growing(training.train_samples, training)
    return steps + (training.train_samples - consumed) // batch_size(consumed, training)


def due(iteration: int, interval: int, last: int = 0) -> bool:
    """Whether something is done after this iteration that is done after every `interval` (0: none) and
    after the last."""
    return iteration == last or (bool(interval) and iteration % interval == 0)


def whole_batches(samples: int, training: TrainingConfig) -> int:
    """The fewest samples, `samples` at least, that a run can have read after a step."""
    _, consumed = _growing(samples, training)
    size = batch_size(consumed, training)
    return consumed + -(-(samples - consumed) // size) * size


def _growing(samples: int, training: TrainingConfig) -> tuple[int, int]:
    """(steps, samples) taken while the batch is not whole yet, `samples` at most."""
    steps = consumed = 0
    while (size := batch_size(consumed, training)) < training.global_batch_size:
        if consumed + size > samples:
            break
        steps, consumed = steps + 1, consumed + size
    return steps, consumed
