"""Which LoRA can work. `validate` asks."""

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.config_toml import nearest
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation.layout import Problems


def lora_problems(model: ModelConfig) -> Problems:
    """The factors beside the matrices, if there are to be any."""
    if not model.lora_rank:
        return
    if model.lora_rank > model.hidden_size:
        yield ConfigError(
            f"lora_rank={model.lora_rank} is above hidden_size={model.hidden_size}",
            "a product of two such matrices has no more rank than theirs",
            f"--lora-rank {min(16, model.hidden_size)}, or 0 to learn all weights",
        )
    if not model.lora_alpha:
        why = "the product would be multiplied by 0, and nothing learned"
        yield ConfigError("lora_alpha=0.0", why, f"--lora-alpha {2 * model.lora_rank}")
    known, given = ModelConfig.lora_target_modules, model.lora_target_modules
    for name in given:
        if name not in known:
            what = f"lora_target_modules has {name}"
            yield ConfigError(what, "a block has no such matrix", nearest(name, known))
    if not given or len(set(given)) < len(given):
        yield ConfigError(
            f"lora_target_modules={' '.join(given)}",
            "each names a matrix of its own, one at least",
            f"--lora-target-modules {' '.join(known)}",
        )
