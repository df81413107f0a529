"""Which lengths, batch ramps and learning rate schedules can work. `validate` asks."""

from megatron_yuyuan.config import Config, OptimizerConfig, TrainingConfig
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation.layout import Problems, divisors, one_of


def length_problems(config: Config) -> Problems:
    """Where the run ends, and how its batches grow on the way."""
    t = config.training
    if sum(map(bool, (t.train_iters, t.train_samples, t.epochs))) != 1:
        what = "give train_iters, train_samples or epochs, one of the three"
        yield ConfigError(what, "a run has one end", "--train-iters 1000")
    if not t.rampup_batch_size:
        first = t.global_batch_size
    elif len(t.rampup_batch_size) != 3 or min(t.rampup_batch_size) < 1:
        what = f"rampup_batch_size={' '.join(map(str, t.rampup_batch_size))}"
        why = "it is the first size, what is added, and the samples until global_batch_size"
        yield ConfigError(what, why, "three numbers above 0: --rampup-batch-size 16 16 100000")
        return
    else:
        yield from _ramp(config)
        first = t.rampup_batch_size[0]
    if t.train_samples and t.train_samples < first:
        yield ConfigError(
            f"train_samples={t.train_samples} are fewer than the {first} of the first batch",
            "no step would be taken",
            f"--train-samples {first}",
        )


def _ramp(config: Config) -> Problems:
    """A batch that grows, of three positive numbers."""
    t = config.training
    start, increment, _ = t.rampup_batch_size
    growth = t.global_batch_size - start
    if growth <= 0:
        yield ConfigError(
            f"rampup_batch_size starts with {start}, and global_batch_size={t.global_batch_size}",
            "the batch grows up to global_batch_size",
            "a smaller START, or leave it out",
        )
    elif growth % increment:
        yield ConfigError(
            f"rampup_batch_size grows from {start} by {increment}, and never is "
            f"global_batch_size={t.global_batch_size}",
            "the increments lead to global_batch_size exactly",
            f"INCREMENT {one_of(divisors(growth), increment)}",
        )
    if t.train_iters:
        yield ConfigError(
            "rampup_batch_size and train_iters are given",
            "with growing batches a run is counted in samples",
            "--train-samples N or --epochs N in place of --train-iters",
        )


def learning_rate_problems(config: Config) -> Problems:
    """The learning rate schedule."""
    t, o = config.training, config.optimizer
    counted, other = ("samples", "iters") if counts_samples(t) else ("iters", "samples")
    for part in ("decay", "warmup", "wsd_decay"):
        name = f"lr_{part}_{other}"
        if getattr(o, name):
            why = "the schedule is counted in samples with train_samples or rampup_batch_size, and only then"
            yield ConfigError(f"{name}={getattr(o, name)}", why, f"lr_{part}_{counted}")
    warmups = (o.lr_warmup_iters, o.lr_warmup_samples, o.lr_warmup_fraction)
    if sum(map(bool, warmups)) > 1:
        what = f"give lr_warmup_{counted} or lr_warmup_fraction, one of the two"
        yield ConfigError(what, "a warm-up has one length", "--lr-warmup-fraction 0.01")
    if o.lr_warmup_fraction >= 1:
        yield ConfigError(
            f"lr_warmup_fraction={o.lr_warmup_fraction}",
            "the warm-up is a part of the decay",
            "--lr-warmup-fraction 0.01",
        )
    if o.lr_decay_style == "inverse-square-root" and not any(warmups):
        why = "the rate falls as the root of (warm-up / position)"
        what = "lr_decay_style=inverse-square-root without a warm-up"
        yield ConfigError(what, why, "--lr-warmup-fraction 0.01")
    shaped = o.lr_wsd_decay_style != OptimizerConfig().lr_wsd_decay_style
    annealed = bool(o.lr_wsd_decay_iters or o.lr_wsd_decay_samples)
    if (o.lr_decay_style == "WSD") != annealed or (shaped and not annealed):
        what = f"give lr_decay_style WSD and lr_wsd_decay_{counted} together"
        yield ConfigError(
            what, "WSD anneals at its end, and no other style does", "both, or neither"
        )
    if 0 <= o.lr < o.min_lr:
        what = f"min_lr={o.min_lr} is above lr={o.lr}"
        yield ConfigError(what, "the rate decays from lr to min_lr", f"--min-lr {o.lr / 10}")


def counts_samples(training: TrainingConfig) -> bool:
    """Whether a run and its learning rate schedule are counted in samples, not iterations."""
    return bool(training.train_samples or training.rampup_batch_size)
