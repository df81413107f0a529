"""Flags that make a job fit into its memory."""

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.planner.memory import fullest_rank
from megatron_yuyuan.validation import validate


def fitting(config: Config, ranks: int, capacity: float) -> list[str]:
    """Flags, each of which alone would make the job fit, by prediction. The job itself may be predicted to fit:
    what was measured is more than that."""
    parallel, training = config.parallel, config.training
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    recompute = {"recompute_activations": False, "recompute_granularity": "full"}
    recompute |= {"recompute_method": "uniform", "recompute_num_layers": 1}
    off = "--no-recompute-activations " if parallel.recompute_activations else ""
    whole = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    tried: dict[str, dict] = {
        "--sequence-parallel": {"sequence_parallel": True},
        **{
            f"--micro-batch-size {size}": {"micro_batch_size": size}
            for size in (training.micro_batch_size // 2, training.micro_batch_size // 4, 1)
            if 0 < size < training.micro_batch_size
        },
        off + whole: recompute,
        "--data-parallel-sharding-strategy optim_grads_params": {
            "data_parallel_sharding_strategy": "optim_grads_params"
        },
        f"--tensor-model-parallel-size {2 * tensor}": {"tensor_model_parallel_size": 2 * tensor},
        f"--pipeline-model-parallel-size {2 * pipeline}": {
            "pipeline_model_parallel_size": 2 * pipeline
        },
    }
    now = fullest_rank(config, ranks).total
    less = min(capacity, now - 1)  # what changes nothing does not help
    return [flags for flags, changes in tried.items() if fits(config, changes, ranks, less)]


def fits(config: Config, changes: dict, ranks: int, capacity: float) -> bool:
    """Whether a changed configuration is valid and predicted to fit into so many bytes."""
    changed = config.replace(**changes)
    try:
        validate(changed, ranks)
    except ConfigErrors:
        return False
    return fullest_rank(changed, ranks, capacity).total <= capacity
