"""The floating-point operations that a rank executes in a training step, by formula: what
`megatron_yuyuan/planner/flops.py` counts.

`model/flops.py` is the model's forward, and its backward is twice that. What is executed is more: fused
attention multiplies five times in its backward, the scores once more (Dao et al. 2022, arXiv:2205.14135),
and recomputation takes forwards again.
"""

from megatron_yuyuan.config import Config
from megatron_yuyuan.model.flops import block_flops, head_flops
from megatron_yuyuan.parallel.stages import plan_stages
from megatron_yuyuan.planner.memory import recomputed_runs
from megatron_yuyuan.planner.sizes import Sizes


def executed_flops(config: Config, ranks: int, pipeline_rank: int = 0) -> int:
    """Of a rank of the pipeline rank in one step, all weights learned (no LoRA)."""
    sizes, plan, model = Sizes(config, ranks), plan_stages(config), config.model
    length = config.data.seq_length
    per_sample = sum(
        _stage(config, len(plan.layers[stage]), sizes.attention_weights == 0)
        + (3 * head_flops(model, length) if stage == len(plan) - 1 else 0)
        for stage in plan.of_rank(pipeline_rank)
    )
    samples = sizes.micro_batches * config.training.micro_batch_size
    return samples * per_sample // sizes.tensor


def _stage(config: Config, layers: int, fused: bool) -> int:
    """Of the blocks of a stage on one sample."""
    model, parallel, length = config.model, config.parallel, config.data.seq_length
    forward = block_flops(model, length)
    attention = 4 * length * length * model.hidden_size
    backward = 2 * forward + (attention // 2 if fused else 0)
    again = 0
    if parallel.recomputed == "selective":  # unfused, it ends before the product with the values
        again = layers * (attention if fused else attention // 2)
    elif parallel.recomputed == "full":
        runs = [run for run, recomputed in recomputed_runs(layers, parallel) if recomputed]
        again = sum(runs) * forward
        if not model.hidden_dropout:  # a run ends where all is there again: before its last product
            again -= len(runs) * 2 * length * model.mlp_size * model.hidden_size
    return layers * (forward + backward) + again
