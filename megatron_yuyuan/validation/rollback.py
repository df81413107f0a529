"""Which answers to a loss spike can work."""

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation.layout import Problems


def rollback_problems(config: Config) -> Problems:
    """What happens at a spike, and whether there is a checkpoint to go back to."""
    t, c = config.training, config.checkpoint
    if not t.rollback_iters:
        return
    if t.skip_loss_spikes:
        what = f"rollback_iters={t.rollback_iters} and skip_loss_spikes"
        yield ConfigError(what, "a spike is taken back, or its step passed over", "one of the two")
    for name in ("rollback_skip_batches", "max_rollbacks"):
        if getattr(t, name) == 0:
            what, why = (
                f"{name}=0 with rollback_iters={t.rollback_iters}",
                "no spike would be mended",
            )
            yield ConfigError(what, why, "a number above 0, or leave it out")
    if (c.keep_last or c.keep_best) and c.save_interval and not c.save_retain_interval:
        needed = 1 + -(-t.rollback_iters // c.save_interval)
        if max(1, c.keep_last) < needed:
            kept = f"keep_last={c.keep_last}" if c.keep_last else f"keep_best={c.keep_best}"
            yield ConfigError(
                f"{kept} with save_interval={c.save_interval}, and "
                f"rollback_iters={t.rollback_iters}",
                "a checkpoint that is old enough would be gone",
                f"--keep-last {needed}",
            )
