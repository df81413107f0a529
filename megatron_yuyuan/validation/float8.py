"""Which float8 training can work. `validate` asks."""

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation.layout import Problems

MULTIPLE = 16
"""Tensor cores take float8 matrices whose sides are multiples of this."""


def float8_problems(config: Config) -> Problems:
    """A configuration with fp8_format."""
    p, asked = config.parallel, f"fp8_format={config.training.fp8_format}"
    if not config.training.bf16:
        why = "what float8 products return, and all that is not one, is bfloat16"
        yield ConfigError(f"{asked} without bf16", why, "--bf16 beside it")
    if p.splits_backward:
        yield ConfigError(
            f"{asked} with pipeline_schedule={p.pipeline_schedule}",
            "each half of a backward would compute both its products, which takes what float8 saves",
            "--pipeline-schedule Interleaved1F1B",
        )
    for what, side in _sides(config).items():
        if side % MULTIPLE:
            yield ConfigError(
                f"{asked}, but {what} {side}",
                f"tensor cores take float8 matrices with sides of a multiple of {MULTIPLE}",
                f"a multiple of {MULTIPLE}, or --fp8-format none",
            )


def _sides(config: Config) -> dict[str, int]:
    """The sides of the matrices that a tensor rank multiplies."""
    m, training, tensor = config.model, config.training, config.parallel.tensor_model_parallel_size
    return {
        "hidden_size / tensor_model_parallel_size is": m.hidden_size // tensor,
        "the MLP's width / tensor_model_parallel_size is": m.mlp_size // tensor,
        "a micro batch's tokens are": training.micro_batch_size * config.data.seq_length,
    }
