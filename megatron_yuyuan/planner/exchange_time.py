"""Seconds that ranks wait for bytes from the pipeline and data axes."""

from megatron_yuyuan.config import Config
from megatron_yuyuan.planner.clusters import Cluster
from megatron_yuyuan.planner.rates import COLLECTIVE_SECONDS, LINK_SHARE, NETWORK_SHARE
from megatron_yuyuan.planner.sizes import Sizes


class ExchangeTime:
    """The pipeline and data axes of a configuration's layout on a cluster. Tensor ranks are neighbours,
    data ranks t apart, pipeline ranks t d apart (parallel/mesh.py)."""

    def __init__(self, config: Config, cluster: Cluster):
        self.config, self.cluster, sizes = config, cluster, Sizes(config, cluster.gpus)
        self.pipeline = config.parallel.pipeline_model_parallel_size
        self.tensor, self.data, self.shards = sizes.tensor, sizes.data, sizes.shards
        self.replicas, self.micro_batches = self.data // self.shards, sizes.micro_batches

    def between_stages(self) -> float:
        """Of a step: hidden states and their gradients, sent and received once per micro batch and stage
        of a rank, and the sum of the embedding's two gradients. All of it is waited for."""
        if self.pipeline == 1:
            return 0.0
        parallel, model = self.config.parallel, self.config.model
        tokens = self.config.training.micro_batch_size * self.config.data.seq_length
        holders = self.tensor if parallel.sequence_parallel else 1
        hidden = 2 * tokens * model.hidden_size / holders
        stride = self.tensor * self.data
        rate = self._rate(self.pipeline, stride)
        messages = 2 * self.micro_batches * parallel.stages_per_rank
        tied = 4 * model.padded_vocab_size * model.hidden_size / self.tensor / self.shards
        if parallel.pipeline_schedule == "ZBVZeroBubble":  # both ends of the model on one rank
            tied = 0.0
        return messages * (hidden / rate + COLLECTIVE_SECONDS) + tied / rate

    def between_data_ranks(
        self, parameters: float, units: int, forward: float, backward: float
    ) -> float:
        """Of a step, what neither a forward nor a backward hides.

        A rank of the stage gathers its weights with 2 bytes and reduces its gradients with 4, unit by unit
        beside the computation of the unit before or after it. So the longer of both counts, but the first
        unit is always waited for. `optim_grads_params` gathers for every forward and every backward, the
        others for the first forward of a step; all reduce beside the last backward. parameters: of the
        tensor rank and its stages; units: FSDP2's; forward, backward: seconds of a micro batch.
        """
        if self.data == 1:
            return 0.0

        def exposed(exchange: float, compute: float) -> float:
            return max(exchange / units, exchange - compute)

        gather = self._ring(2 * parameters, self.shards, self.tensor, units)
        reduce = self._ring(4 * parameters, self.shards, self.tensor, units)
        between = self.tensor * self.shards
        reduce += 2 * self._ring(4 * parameters / self.shards, self.replicas, between, units)
        if self.config.parallel.data_parallel_sharding_strategy == "optim_grads_params":
            waits = exposed(gather, forward) + exposed(gather, backward)
            return self.micro_batches * waits + exposed(reduce, max(0.0, backward - gather))
        return exposed(gather, forward) + exposed(reduce, backward)

    def _ring(self, size: float, ranks: int, stride: int, units: int) -> float:
        """A gather or a scatter of so many bytes, in so many collectives, over a group."""
        if ranks == 1:
            return 0.0
        sent = size * (ranks - 1) / ranks
        return sent / self._rate(ranks, stride) + COLLECTIVE_SECONDS * units

    def _rate(self, ranks: int, stride: int) -> float:
        """Bytes per second of each rank of such a group."""
        share = LINK_SHARE if self.cluster.holds(ranks, stride) else NETWORK_SHARE
        return self.cluster.bandwidth(ranks, stride) * share
