"""Every layout of a model on a cluster that works and fits, by predicted time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.planner.clusters import RESERVED_GIB, Cluster
from megatron_yuyuan.planner.memory import fullest_rank
from megatron_yuyuan.planner.plan import Plan, least_memory, require_plannable
from megatron_yuyuan.planner.step_time import predict_step
from megatron_yuyuan.validation import validate
from megatron_yuyuan.validation.layout import divisors

MOST_STAGES_A_RANK = 4
"""Tried under the interleaved schedules. Each further stage adds messages and activations, and saves less of a
bubble that is small by then: (p - 1) / (v m + p - 1)."""


@dataclass(frozen=True)
class Search:
    """What was found."""

    fastest: list[Plan]
    """Those that fit, the fastest first, as many as were asked for."""
    divisions: list[Plan]
    """The fastest that fits of each division of the GPUs into tensor x pipeline x data, in the same order."""
    missed: float
    """Bytes that the smallest of those which do not fit needs, or more; infinite if all were found to fit."""
    tried: int
    """Valid layouts."""


def search(
    config: Config, cluster: Cluster, reserved_gib: float = RESERVED_GIB, top: int = 10
) -> Search:
    """Predict every layout of a configuration on a cluster; the one it has is ignored.

    The time of all is predicted, and the memory of the fastest first, until enough fit. Raises
    ConfigErrors, those of the undivided model, where no layout at all is valid, and ConfigError where a
    step is not known.
    """
    require_plannable(config)
    timed = [(predict_step(valid, cluster), valid) for valid in candidates(config, cluster)]
    if not timed:
        simplest = next(layouts(config, cluster))
        validate(config.replace(**simplest, micro_batch_size=1), cluster.gpus)  # says why
    timed.sort(key=lambda pair: round(pair[0].total, 9))  # of equal ones the first, the simplest
    capacity = (cluster.gpu.memory_gib - reserved_gib) * 2**30
    fastest: list[Plan] = []
    divisions: dict[tuple[int, int], Plan] = {}
    missed = math.inf
    for time, valid in timed:
        parallel = valid.parallel
        division = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        if len(fastest) >= top and division in divisions:
            continue
        least = least_memory(valid, cluster)
        memory = fullest_rank(valid, cluster.gpus, capacity) if least <= capacity else None
        if memory is None or memory.total > capacity:
            missed = min(missed, least if memory is None else memory.total)
            continue
        plan = Plan(valid, cluster, memory, time)
        divisions.setdefault(division, plan)
        if len(fastest) < top:
            fastest.append(plan)
    return Search(fastest, list(divisions.values()), missed, len(timed))


def candidates(config: Config, cluster: Cluster) -> Iterator[Config]:
    """Every layout and micro batch that `validate` takes.

    The tensor axis stays within a node, hybrid sharding divides within a node, and selective
    recomputation is tried only where attention keeps its scores.
    """
    for layout in layouts(config, cluster):
        for micro in divisors(config.training.global_batch_size):
            candidate = config.replace(**layout, micro_batch_size=micro)
            try:
                validate(candidate, cluster.gpus)
            except ConfigErrors:
                continue
            yield candidate


def layouts(config: Config, cluster: Cluster) -> Iterator[dict]:
    """Settings of LAYOUT but the micro batch, for every division of the GPUs."""
    for tensor in divisors(cluster.gpus):
        if not cluster.holds(tensor, 1):
            continue
        for pipeline in divisors(cluster.gpus // tensor):
            data = cluster.gpus // tensor // pipeline
            for schedule in _schedules(pipeline, config.model.num_layers):
                for sharding in _shardings(data, tensor, cluster):
                    for recomputation in _recomputations(config):
                        for divided in (False, True) if tensor > 1 else (False,):
                            yield {
                                "tensor_model_parallel_size": tensor,
                                "pipeline_model_parallel_size": pipeline,
                                "sequence_parallel": divided,
                                "recompute_activations": False,
                                **schedule,
                                **sharding,
                                **recomputation,
                            }


def _schedules(pipeline: int, layers: int) -> Iterator[dict]:
    """1F1B, and with several pipeline ranks the others."""
    yield {"pipeline_schedule": "1F1B", "num_virtual_stages_per_pipeline_rank": 0}
    if pipeline == 1:
        return
    yield {"pipeline_schedule": "ZBVZeroBubble", "num_virtual_stages_per_pipeline_rank": 0}
    for schedule in ("Interleaved1F1B", "InterleavedZeroBubble"):
        for stages in range(2, min(MOST_STAGES_A_RANK, layers // pipeline) + 1):
            yield {"pipeline_schedule": schedule, "num_virtual_stages_per_pipeline_rank": stages}


def _shardings(data: int, tensor: int, cluster: Cluster) -> Iterator[dict]:
    """Every strategy, the dividing ones over all data ranks and over those of a node."""
    yield _sharding("no_shard", 1)
    in_node = max(1, cluster.gpus_per_node // tensor)
    across = data // in_node if data > in_node and data % in_node == 0 else 1
    for strategy in ("optim", "optim_grads_params") if data > 1 else ():
        for instances in sorted({1, across} - {data}):
            yield _sharding(strategy, instances)


def _sharding(strategy: str, instances: int) -> dict:
    return {
        "data_parallel_sharding_strategy": strategy,
        "num_distributed_optimizer_instances": instances,
    }


def _recomputations(config: Config) -> Iterator[dict]:
    """None, the core of attention, all blocks one at a time."""
    model = config.model
    names = ("recompute_granularity", "recompute_method", "recompute_num_layers")
    yield dict(zip(names, ("none", "none", 0), strict=True))
    if model.attention_keeps_scores:
        yield dict(zip(names, ("selective", "none", 0), strict=True))
    yield dict(zip(names, ("full", "uniform", 1), strict=True))
