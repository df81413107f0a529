"""The options of a layout of 8 ranks, and how a test names a combination of them."""

from tiny import TINY, all_layouts

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.validation import validate

DROPOUT = TINY.replace(hidden_dropout=0.1)
LAYOUTS = {str(layout): layout for layout in all_layouts(8) if not layout.sequence_parallel}
FULL = {"recompute_granularity": "full", "recompute_num_layers": 1}
OPTIONS: dict[str, dict[str, dict]] = {
    "sequence": {"whole": {}, "sp": {"sequence_parallel": True}},
    "schedule": {
        name: {"pipeline_schedule": name}
        for name in ("1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")
    },
    "recomputation": {
        "none": {},
        "selective": {"recompute_granularity": "selective"},
        "uniform": {**FULL, "recompute_method": "uniform"},
        "block": {**FULL, "recompute_method": "block"},
    },
    "sharding": {
        "optim": {},
        "no_shard": {"data_parallel_sharding_strategy": "no_shard"},
        "optim_grads_params": {"data_parallel_sharding_strategy": "optim_grads_params"},
        "hybrid": {"num_distributed_optimizer_instances": 2},
    },
    "precision": {"float32": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}},
}
"""Option -> value -> settings. The first value of each is the default."""
DEFAULTS = {option: next(iter(values)) for option, values in OPTIONS.items()}


def configured(choice: dict[str, str]) -> Config:
    """The configuration of {"layout": name, option: value, ...}; what is left out is the default.

    The model is the smallest that has two layers, and a layer for each stage.
    """
    settings: dict = {}
    for option, value in (DEFAULTS | choice).items():
        settings |= OPTIONS[option][value] if option in OPTIONS else {}
    config = LAYOUTS[choice["layout"]].of(DROPOUT).replace(**settings)
    parallel = config.parallel
    stages = parallel.pipeline_model_parallel_size * parallel.stages_per_rank
    return config.replace(num_layers=max(2, stages))


AXES = {"sequence": "tensor", "schedule": "pipeline", "sharding": "data"}
"""Options that do nothing on an axis of size 1."""


def works(choice: dict[str, str]) -> bool:
    """Whether it can be computed, and every value but the defaults does something."""
    layout = LAYOUTS[choice["layout"]]
    for option, axis in AXES.items():
        if choice.get(option, DEFAULTS[option]) != DEFAULTS[option] and getattr(layout, axis) == 1:
            return False
    try:
        validate(configured(choice), 8)
    except ConfigErrors:
        return False
    return True


def singles(layout: str) -> list[dict[str, str]]:
    """The layout alone, and with each other value of each option that works and matters there."""
    choices = [
        {"layout": layout, option: value}
        for option, values in OPTIONS.items()
        for value in list(values)[1:]
    ]
    return [{"layout": layout}, *filter(works, choices)]
