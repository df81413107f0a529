"""TensorBoard and Weights & Biases: the events of a run under Megatron-LM's names.

Megatron-LM's last rank writes them; here rank 0 does, which knows every figure too. Source of the
names: `training_log` and `evaluate_and_print_results` of megatron/training/training.py.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuyuan.config import Config, LoggingConfig
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.log import Sink

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

COURSE = {
    "lm loss": "lm_loss",
    "learning-rate": "learning_rate",
    "batch-size": "global_batch_size",
    "loss-scale": "loss_scale",
    "grad-norm": "grad_norm",
    "lm loss validation": "validation_loss",
    "lm loss validation ppl": "validation_perplexity",
}
"""Tag -> figure. TensorBoard has each a second time, `TAG vs samples`, over the samples read."""
SPEED = {
    "iteration-time": "seconds",
    "throughput": "tflops_per_device",
    "tokens-per-second": "tokens_per_second",
    "mfu": "mfu",
    "memory-bytes": "memory_bytes",
}
"""The same, over iterations only. The last three are ours."""


def scalars(tags: dict[str, str], values: dict) -> dict[str, float]:
    """{tag: value} of the figures that an event has."""
    return {tag: values[figure] for tag, figure in tags.items() if figure in values}


class TensorBoard(Sink):
    """Event files in --tensorboard-dir, made by the first event.

    A run that continues writes a further file there: TensorBoard joins them, and where the run goes
    back to its checkpoint the later values of a step take the place of the earlier ones.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._writer: SummaryWriter | None = None

    def event(self, event: str, values: dict) -> None:
        """Raises ConfigError where the directory cannot be written."""
        if event not in ("step", "skip", "evaluation"):
            return
        self._writer = self._writer or self._open()
        iteration, samples = values["iteration"], values["consumed_samples"]
        for tag, value in scalars(COURSE, values).items():
            self._writer.add_scalar(tag, value, iteration)
            self._writer.add_scalar(f"{tag} vs samples", value, samples)
        for tag, value in scalars(SPEED, values).items():
            self._writer.add_scalar(tag, value, iteration)

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _open(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        try:
            return SummaryWriter(self._directory)
        except OSError as error:
            raise ConfigError(
                f"cannot write to tensorboard_dir={self._directory}: {error.strerror}",
                "its event files are made there",
                "a directory that may be written to",
            ) from None


class WeightsAndBiases(Sink):
    """A run of the project --wandb-project, begun when the steps begin. Each start of a command is a
    run of its own, as with Megatron-LM: give them one --wandb-exp-name to find them together.

    wandb itself reads WANDB_MODE (`offline` needs no network), WANDB_API_KEY and WANDB_ENTITY.
    """

    def __init__(self, config: Config):
        self._config = config
        self._run: wandb.Run | None = None

    def start(self) -> None:
        """Raises ConfigError where wandb refuses: no account, no network."""
        import wandb

        logging = self._config.logging
        directory = logging.wandb_save_dir or self._config.checkpoint.save
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=logging.wandb_project,
                name=logging.wandb_exp_name,
                dir=directory,
                config=self._config.to_dict(),
            )
            # by our own count: wandb's own never goes back, and a rollback does
            self._run.define_metric("iteration")
            self._run.define_metric("*", step_metric="iteration")
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"Weights & Biases cannot be reached: {error}",
                "wandb_project asks to report there",
                "wandb login, or WANDB_MODE=offline in the environment, or leave --wandb-project out",
            ) from None

    def event(self, event: str, values: dict) -> None:
        if event not in ("step", "skip", "evaluation"):
            return
        figures = scalars(COURSE | SPEED, values)
        if event != "evaluation":
            figures["samples vs steps"] = values["consumed_samples"]
        assert self._run is not None  # started before the first step
        self._run.log(figures | {"iteration": values["iteration"]})

    def close(self) -> None:
        if self._run:
            self._run.finish()


def require_extras(logging: LoggingConfig) -> None:
    """Raise ConfigError for a writer that is asked for and not installed. Imports neither."""
    for asked, extra in (
        (logging.tensorboard_dir, "tensorboard"),
        (logging.wandb_project, "wandb"),
    ):
        found = importlib.util.find_spec(extra)
        if asked and (found is None or found.origin is None):  # a mere folder of that name
            raise ConfigError(
                f"{extra} is not installed",
                f"{'tensorboard_dir' if extra == 'tensorboard' else 'wandb_project'} asks for it",
                f"pip install 'megatron_yuyuan[{extra}]'",
            )
