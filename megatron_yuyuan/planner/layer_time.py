"""Seconds that the blocks and the head take for one micro batch on one rank, from FLOPs and bytes.

All work is of two kinds. A matrix product takes its FLOPs / (peak x share), anything else the bytes
that it reads and writes / (memory's peak x share); the shares stand in `rates.py`. Letters: n = B T tokens
of a micro batch, C hidden_size, F the MLP's width, V the padded vocabulary, N heads, t tensor ranks; s = t
where sequence parallelism divides the residual stream, else 1. An activation has 2 bytes.
"""

from dataclasses import dataclass
from functools import cached_property

from megatron_yuyuan.config import Config
from megatron_yuyuan.planner.clusters import Cluster
from megatron_yuyuan.planner.rates import (
    COLLECTIVE_SECONDS,
    INNER_OVERHEAD,
    LINK_SHARE,
    MEMORY_SHARE,
    RATES,
)


@dataclass(frozen=True)
class Work:
    """Seconds of one rank, by kind."""

    matmul: float = 0.0
    """Products with weights."""
    attention: float = 0.0
    """Scores, softmax, and the weighted sum of values."""
    pointwise: float = 0.0
    """What lies between: LayerNorm, GeLU, dropout, residual, the softmax of the loss, sums of gradients."""
    tensor: float = 0.0
    """Exchanges of the tensor axis that no product hides."""

    def __add__(self, other: "Work") -> "Work":
        mine, others = vars(self).values(), vars(other).values()
        return Work(*(a + b for a, b in zip(mine, others, strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * seconds for seconds in vars(self).values()))

    @property
    def total(self) -> float:
        return sum(vars(self).values())


class LayerTime:
    """The parts of a micro batch on one rank of a configuration's layout on a cluster."""

    def __init__(self, config: Config, cluster: Cluster):
        parallel, gpu, rates = config.parallel, cluster.gpu, RATES[cluster.gpu.architecture]
        self.config, self.model, self.length = config, config.model, config.data.seq_length
        self.samples = config.training.micro_batch_size
        self.tokens = self.samples * self.length
        self.tensor = parallel.tensor_model_parallel_size
        self.residual_parts = self.tensor if parallel.sequence_parallel else 1
        self._matmul_rate = 1e12 * gpu.peak_tflops * rates.matmul
        self._flash_rate = 1e12 * gpu.peak_tflops * rates.flash
        self._memory_rate = 1e9 * gpu.memory_gb_per_second * MEMORY_SHARE
        self._tensor_rate = cluster.bandwidth(self.tensor, 1) * LINK_SHARE

    @cached_property
    def embedding(self) -> Work:
        """Forward: two rows of a table and their sum, then what `sum_over_ranks` sends."""
        elements = 3 * self.tokens * self.model.hidden_size / self.residual_parts
        exchanges = 1 if self.residual_parts > 1 else 2
        return Work(pointwise=self.moved(2 * elements), tensor=exchanges * self._exchange())

    @cached_property
    def block_forward(self) -> Work:
        """A block, with two all-reduces of the hidden states, or two gathers and two scatters."""
        scores, _ = self._attention()
        elements, _ = self._elements()
        return Work(
            sum(self._forward_products()), scores, self.moved(2 * elements), 4 * self._exchange()
        )

    @cached_property
    def last_recomputed(self) -> Work:
        """The last of the blocks that the backward computes again together.

        torch's checkpoint stops when all that was kept is there again. Without dropout nothing after
        the last product is kept, nor needed: the product, its exchange and the residual are left out.
        """
        forward = self.block_forward
        if self.model.hidden_dropout:
            return forward
        residual = 3 * self.tokens * self.model.hidden_size / self.residual_parts
        left_out = Work(
            matmul=self._forward_products()[-1],
            pointwise=self.moved(2 * residual),
            tensor=2 * self._exchange(),
        )
        return forward + left_out * -1.0

    @cached_property
    def block_backward(self) -> Work:
        """A block's backward, selective recomputation included.

        The all-reduce or scatter of a column-parallel layer's dx goes on beside its product for dW, and
        under sequence parallelism the second gather of x beside that for dx; the gathers of a
        row-parallel layer's dy are waited for. Zero-bubble schedules overlap nothing, and keep x.
        """
        forward_scores, scores = self._attention()
        if self.config.parallel.recomputed == "selective":
            scores += forward_scores
        _, elements = self._elements()
        return Work(
            self._backward_products(), scores, self.moved(2 * elements), self._backward_exposed()
        )

    @cached_property
    def head(self) -> Work:
        """Forward and backward of the head and the loss, which computes both in its forward.

        Of each logit 36 bytes are moved: written and read by the products (4), widened to float32 (6),
        maximum (4), exponential (8), sum (4), gradient, rounded again (10).
        """
        n, c, v = self.tokens, self.model.hidden_size, self.model.padded_vocab_size / self.tensor
        products = self._product(n, v, c) + self._product(n, c, v) + self._product(v, c, n)
        return Work(products, 0.0, self.moved(36 * n * v), 2 * self._exchange())

    def moved(self, number: float) -> float:
        """Seconds for so many bytes read and written."""
        return number / self._memory_rate

    def _product(self, rows: float, columns: float, inner: float) -> float:
        """(rows, inner) times (inner, columns)."""
        return 2 * rows * columns * (inner + INNER_OVERHEAD) / self._matmul_rate

    def _shapes(self) -> list[tuple[float, float]]:
        """(inputs, outputs) of attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj on a tensor rank."""
        c, f, t = self.model.hidden_size, self.model.mlp_size, self.tensor
        return [(c, 3 * c / t), (c / t, c), (c, f / t), (f / t, c)]

    def _forward_products(self) -> list[float]:
        return [self._product(self.tokens, out, into) for into, out in self._shapes()]

    def _backward_products(self) -> float:
        """dx = dy W and dW = dy^T x of each matrix."""
        return sum(
            self._product(self.tokens, into, out) + self._product(out, into, self.tokens)
            for into, out in self._shapes()
        )

    def _attention(self) -> tuple[float, float]:
        """Forward and backward of the core of attention.

        Fused: 2 B T^2 C FLOPs below the diagonal, and 2.5 times as many in the backward, which computes
        the scores again. Unfused: twice as many each way, the backward twice the forward, and every score
        goes through memory with 2 bytes: written, through softmax, read: 8 bytes forward, 14 backward; with
        dropout and its mask of a byte 5 more each way.
        """
        squares, model = self.samples * self.length**2 / self.tensor, self.model
        if not model.attention_keeps_scores:
            forward = 2 * squares * model.hidden_size / self._flash_rate
            return forward, 2.5 * forward
        products = 4 * squares * model.hidden_size / self._matmul_rate
        scores, dropped = squares * model.num_attention_heads, 5 if model.attention_dropout else 0
        forward = products + self.moved((8 + dropped) * scores)
        return forward, 2 * products + self.moved((14 + dropped) * scores)

    def _elements(self) -> tuple[float, float]:
        """Activations that a block's forward and backward read and write between the products.

        Forward: two LayerNorms 2 C each, two sums of bias, dropout and residual 3 C each and half a C
        for a mask, bias and GeLU 2 F. Backward: of each LayerNorm 3 C for dx, 2 C for its weight and
        bias, 3 C to add the residual's gradient; 2.5 C for each dropout; C for the bias of each
        row-parallel layer; 3 F for GeLU, 3 C + F for the biases of the column-parallel ones.
        """
        c, f, n = self.model.hidden_size, self.model.mlp_size, self.tokens
        dropped = 1 if self.model.hidden_dropout else 0
        forward = (10 + dropped) * c / self.residual_parts + 2 * f / self.tensor
        backward = (18 + 5 * dropped) * c / self.residual_parts + (3 * c + 4 * f) / self.tensor
        return n * forward, n * backward

    def _exchange(self) -> float:
        """A gather or a scatter of the hidden states, half of an all-reduce."""
        if self.tensor == 1:
            return 0.0
        sent = 2 * self.tokens * self.model.hidden_size * (self.tensor - 1) / self.tensor
        return sent / self._tensor_rate + COLLECTIVE_SECONDS

    def _backward_exposed(self) -> float:
        """See `block_backward`."""
        exchange = self._exchange()
        if self.config.parallel.splits_backward:
            return 4 * exchange
        (into, qkv), _, (_, wide), _ = self._shapes()
        beside = self._product(qkv, into, self.tokens) + self._product(wide, into, self.tokens)
        if self.residual_parts > 1:
            return 2 * exchange + max(0.0, 4 * exchange - 2 * beside)
        return max(0.0, 4 * exchange - beside)
