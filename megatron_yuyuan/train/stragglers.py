"""A rank that computes more slowly than the others makes all of them wait, whatever the layout, and no time of
a step shows which one it is: whoever waits in a collective looks as busy as whoever is waited for. So every
rank times the same products by itself, all at the same moment.

It finds a GPU that is hot, throttled or shared, and cores that others use; not a slow disk or network, which
the doctor measures.
"""

import platform
import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_yuyuan.config import Config
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel.data import compute_dtype
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.parallel.mesh import Mesh

SLOW = 1.5
"""Times the median from which a rank is named."""
ROUNDS = 5
"""The best of them counts: what passes by is no straggler."""
FLOPS = {"cpu": 2e9, "cuda": 5e12}
"""Of a round, by kind of device: about 10 to 100 ms."""
MOST = 2000
"""Products of a round: small ones take less time than their launch."""


class Stragglers:
    """--log-straggler. Does nothing without it."""

    def __init__(self, config: Config, mesh: Mesh, log: Log):
        self._is_asked, self._mesh, self._log = config.logging.log_straggler, mesh, log
        self._tokens = config.training.micro_batch_size * config.data.seq_length
        self._width, self._dtype = config.model.hidden_size, compute_dtype(config.training)

    def name_them(self, iteration: int) -> None:
        """Measure, after so many steps, and name who is slow, in the log and as an event. A collective."""
        if not self._is_asked:
            return
        dist.barrier()  # ranks that share a machine are to be in each other's way alike
        everyone = all_gather_object((platform.node(), self.seconds()))
        for rank, ratio in slow_ranks([seconds for _, seconds in everyone]).items():
            host = everyone[rank][0]
            self._log.line(
                f"warning: rank {rank} ({host}) takes {ratio:.1f} times as long as the median rank"
            )
            self._log.event("straggler", iteration=iteration, rank=rank, host=host, slower=ratio)

    def seconds(self) -> float:
        """Of the fastest round of products (tokens, width) x (width, width) in the dtype of the run."""
        device = self._mesh.device
        x = torch.full((self._tokens, self._width), 0.5, dtype=self._dtype, device=device)
        weight = torch.full(
            (self._width, self._width), 1 / self._width, dtype=x.dtype, device=device
        )
        wanted = round(FLOPS[device.type] / (2 * self._tokens * self._width**2))
        products = min(MOST, max(1, wanted))
        return min(self._round(x, weight, products) for _ in range(ROUNDS))

    def _round(self, x: torch.Tensor, weight: torch.Tensor, products: int) -> float:
        begun = time.perf_counter()
        for _ in range(products):
            x = x @ weight
        x.sum().item()  # the device has computed it
        return time.perf_counter() - begun


def slow_ranks(seconds: Sequence[float]) -> dict[int, float]:
    """{rank: times the median} of those that need SLOW times as long or more."""
    median = statistics.median_low(seconds)
    return {rank: own / median for rank, own in enumerate(seconds) if own >= SLOW * median}
