"""A layout of a model on a cluster, and what it is predicted to take."""

from dataclasses import dataclass

from megatron_yuyuan.config import Config
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.planner.clusters import Cluster
from megatron_yuyuan.planner.exchange_time import ExchangeTime
from megatron_yuyuan.planner.memory import Memory, fullest_rank
from megatron_yuyuan.planner.step_time import StepTime, predict_step
from megatron_yuyuan.train.throughput import training_flops
from megatron_yuyuan.validation import validate

LAYOUT = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "pipeline_schedule"),
    *("num_virtual_stages_per_pipeline_rank", "sequence_parallel"),
    *("data_parallel_sharding_strategy", "num_distributed_optimizer_instances"),
    *("recompute_activations", "recompute_granularity", "recompute_method"),
    *("recompute_num_layers", "micro_batch_size"),
)
"""The settings that are searched, named as in `config.py`."""


@dataclass(frozen=True)
class Plan:
    """A layout, and what it is predicted to take."""

    config: Config
    cluster: Cluster
    memory: Memory
    """Of the fullest rank."""
    time: StepTime

    @property
    def name(self) -> str:
        """What tells it from other plans."""
        return division(self.config, self.cluster.gpus)

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self._samples * self.config.data.seq_length / self.time.total

    @property
    def mfu(self) -> float:
        """The model's FLOPs, `train/throughput.py`'s, over the peak of all GPUs."""
        flops = self._samples * training_flops(self.config.model, self.config.data.seq_length)
        return flops / self.time.total / (1e12 * self.cluster.gpu.peak_tflops * self.cluster.gpus)

    def hours(self, tokens: float) -> float:
        """For so many tokens, without evaluations, checkpoints and interruptions."""
        return tokens / self.tokens_per_second / 3600

    def kilowatt_hours(self, tokens: float) -> float:
        """Of all GPUs at their thermal design power, for so many tokens; hosts and cooling come on top."""
        return self.hours(tokens) * self.cluster.gpus * self.cluster.gpu.watts / 1000

    @property
    def _samples(self) -> int:
        return self.config.training.global_batch_size

    @property
    def settings(self) -> dict:
        """Name -> value of each setting of LAYOUT."""
        return layout_settings(self.config)


def predict(config: Config, cluster: Cluster) -> Plan:
    """What one configuration takes. Raises ConfigErrors where it is not valid."""
    validate(config, cluster.gpus)
    return Plan(config, cluster, fullest_rank(config, cluster.gpus), predict_step(config, cluster))


def least_memory(config: Config, cluster: Cluster) -> float:
    """Bytes that the fullest rank holds at the least, whatever its activations, at once.

    Of the average rank's parameters: weights and moments at rest, 12 bytes; gathered weights, 2, where
    they stay for the step; gradients, 4. Several micro batches accumulate gradients whole, beside the
    gathered weights; of a single one they are reduced while weights are given back.
    """
    exchange = ExchangeTime(config, cluster)
    parameters = config.model.num_parameters / exchange.tensor / exchange.pipeline
    briefly = config.parallel.data_parallel_sharding_strategy == "optim_grads_params"
    gathered = 0 if briefly else 2
    accumulates = exchange.micro_batches > 1
    step = gathered + 4 if accumulates else max(gathered, 4 / exchange.shards)
    return parameters * (12 / exchange.shards + step)


def require_plannable(config: Config) -> None:
    """Raises ConfigError for a configuration whose step is not known."""
    training, model = config.training, config.model
    if not (training.bf16 or training.fp16):
        raise ConfigError(
            "neither bf16 nor fp16", "the planner knows the rates of half precision alone", "--bf16"
        )
    if model.lora_rank:
        raise ConfigError(
            f"lora_rank={model.lora_rank}",
            "the planner counts the training of all weights",
            "leave it out, for an upper bound",
        )
    if config.parallel.pipeline_layout:
        raise ConfigError(
            f"pipeline_layout={' '.join(map(str, config.parallel.pipeline_layout))}",
            "the planner looks for the number of stages, and balances them",
            "leave it out",
        )
    if not training.global_batch_size:
        raise ConfigError(
            "global_batch_size is not given",
            "layouts are compared by the time of the same step",
            "--global-batch-size 512",
        )


def division(config: Config, gpus: int) -> str:
    """`tensor 2 sp x pipeline 4 Interleaved1F1B 2 x data 4 optim, recompute full, micro 8`; `optim/4` is
    hybrid sharding with four instances."""
    parallel = config.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    data = parallel.data_ranks(gpus)
    axes = [f"tensor {tensor}{' sp' * parallel.sequence_parallel}", f"pipeline {pipeline}"]
    if pipeline > 1:
        axes[-1] += f" {parallel.pipeline_schedule}"
        axes[-1] += (
            f" {parallel.stages_per_rank}" if "Interleaved" in parallel.pipeline_schedule else ""
        )
    axes.append(f"data {data}")
    if data > 1:
        instances = parallel.num_distributed_optimizer_instances
        axes[-1] += f" {parallel.data_parallel_sharding_strategy}"
        axes[-1] += f"/{instances}" if instances > 1 else ""
    again = f"recompute {parallel.recomputed}, " if parallel.recomputed != "none" else ""
    return f"{' x '.join(axes)}, {again}micro {config.training.micro_batch_size}"


def layout_settings(config: Config) -> dict:
    """Name -> value of each setting of LAYOUT, in a configuration."""
    values = config.values()
    return {name: values[name] for name in LAYOUT}
