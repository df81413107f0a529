"""What share of its published peaks a GPU reaches in training.

The four numbers of RATES are the only fitted ones of the planner; each makes the prediction of one
published row exact (`tools/benchmark/published_steps.py --fit` finds them again). The others are
assumed, with their reasons, and fitted to nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Shares of an architecture's peak in bfloat16."""

    matmul: float
    """A product whose inner dimension is long."""
    flash: float
    """Fused causal attention; scores above the diagonal are not counted."""


RATES = {"ampere": Rates(matmul=0.727, flash=0.331), "hopper": Rates(matmul=0.575, flash=0.184)}
"""Fitted on MPT-3B on 8 GPUs at 1,024 tokens (matmul) and 65,536 tokens (flash), by MosaicML with the software
of 2023: llm-foundry, scripts/train/benchmarking/README.md."""

INNER_OVERHEAD = 256
"""A product over an inner dimension of k takes as long as one over k + this would at the full rate: a tile of the
result is begun and stored once, however long it is worked on. Assumed."""

MEMORY_SHARE = 0.85
"""Of the memory's peak, by kernels that read and write once. Assumed: quack reports 0.90 of hand-written kernels on
an H100 (github.com/Dao-AILab/quack, media/2025-07-10-membound-sol.md), and PyTorch's are not all as good."""

LINK_SHARE = 0.77
"""Of NVLink's peak, by the rings of NCCL: 230 of 300 GB/s on A100. Assumed; Calculon has 0.65
(github.com/calculon-ai/calculon, systems/a100_80g.json)."""

NETWORK_SHARE = 0.8
"""Of the peak of the network between nodes. Assumed; Calculon has 0.9."""

COLLECTIVE_SECONDS = 20e-6
"""Before a collective moves bytes. Assumed, as Calculon has it between nodes; inside them it has half."""
