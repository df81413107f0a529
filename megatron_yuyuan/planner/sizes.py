"""What the things of a training step weigh on one rank, in bytes: the algebra of memory.

Letters: H = B T C w, the hidden states of a micro batch, w bytes an element (4 in float32, 2 in half
precision); t tensor ranks; h = H / t where sequence parallelism divides the residual stream, else H; F the
MLP's width; N heads; a = B N T^2 / t attention weights; n = B T tokens.

A block keeps for its backward

    LayerNorm      2 h inputs, 4 statistics of n / s each, s = H / h
    projections    their inputs, 2 h, or 2 H where the gathered input is kept (zero bubble) or t = 1
    attention      3 H / t of queries, keys and values, H / t of its result, and its core: fused n N / t
                   logarithms in float32, unfused a of each dtype that it goes through; where documents divide
                   it a mask, n T elements, added by fused attention with w bytes each, a byte else
    MLP            2 (F / C) H / t, before and after GeLU
    dropout        a byte for each element, 2 h / w; the fused kernels draw again instead

which, with F = 4 C, dropout and 16 bits, is the 34 s b h bytes of Korthikanti et al. 2022,
arXiv:2205.05198, section 4.1, less what fused attention does not keep; with tensor and sequence
parallelism the 34 / t of section 4.2.
"""

from dataclasses import dataclass

from megatron_yuyuan.config import Config
from megatron_yuyuan.model.chunks import LOGITS_AT_A_TIME, LOGITS_ON_CUDA, chunk_length


@dataclass(frozen=True)
class Unit:
    """A unit of FSDP2, a block or the embeddings with ln_f: elements of a tensor rank, of all parameters
    and of the learned ones, and a data rank's share of both."""

    whole: int
    share: int
    learned: int
    learned_share: int


class Sizes:
    """Bytes of what a rank holds, for a configuration on so many ranks."""

    def __init__(self, config: Config, ranks: int):
        self.config, self.model, parallel = config, config.model, config.parallel
        training, self.tensor = config.training, parallel.tensor_model_parallel_size
        self.data = parallel.data_ranks(ranks)
        self.strategy = parallel.data_parallel_sharding_strategy
        instances = parallel.num_distributed_optimizer_instances
        self.shards = 1 if self.strategy == "no_shard" else self.data // instances
        self.micro_batches = training.global_batch_size // self.data // training.micro_batch_size
        self.on_gpu = parallel.means_fused_kernels
        self.width = 2 if training.bf16 or training.fp16 else 4
        self.tokens = training.micro_batch_size * config.data.seq_length
        self.hidden = self.tokens * self.model.hidden_size * self.width
        self.cuts = self.tensor if parallel.sequence_parallel else 1
        self.stream = self.hidden // self.cuts
        self.mlp = self.hidden * self.model.mlp_size // self.model.hidden_size // self.tensor
        self.rows = self.model.padded_vocab_size // self.tensor
        """Of the embedding, on this rank."""
        self.embedding = self.rows * self.model.hidden_size
        """Elements of it."""

    @property
    def attention_weights(self) -> int:
        """Elements of unfused attention's weights; 0 where attention is fused."""
        if not self.model.attention_keeps_scores:
            return 0
        return (
            self.tokens
            * self.config.data.seq_length
            * self.model.num_attention_heads
            // self.tensor
        )

    @property
    def mask(self) -> int:
        """Elements of a mask of the documents in a micro batch, (B, 1, T, T); 0 where nothing divides them."""
        data = self.config.data
        return self.tokens * data.seq_length if data.divides_attention else 0

    @property
    def attention_core(self) -> int:
        """What lies between queries, keys, values and the result: the mask, the weights in each dtype that
        they go through, after dropout once more, and which of them were dropped."""
        weights, dropped = self.attention_weights, self.model.attention_dropout > 0
        if not weights:
            logarithms = 4 * self.tokens * self.model.num_attention_heads // self.tensor
            return logarithms + self.width * self.mask
        if self.on_gpu:
            return weights * self.width * (1 + dropped) + self.mask
        rounded = dropped or self.width < 4
        causal = self.config.data.seq_length**2
        return weights * (4 + self.width * rounded + dropped) + max(self.mask, causal)

    @property
    def attending(self) -> int:
        """What the core of attention holds in a forward, for a moment: the weights, and the draws of their
        dropout."""
        return 4 * self.attention_weights + self.drawn(
            self.model.attention_dropout_counted * self.attention_weights
        )

    @property
    def attention_gradients(self) -> int:
        """What the core of attention holds in a backward beside what it kept: the gradients of the weights
        before and after each of its steps."""
        return 3 * (self.width if self.on_gpu else 4) * self.attention_weights

    def drawn(self, elements: int) -> int:
        """What the reference's generator holds while it draws a mask of so many elements: 16 tensors of
        64-bit words, one for four elements. The fused kernels hold nothing."""
        return 0 if self.on_gpu else 16 * 8 * elements // 4

    @property
    def dropping(self) -> int:
        """The draws of a dropout of the residual stream."""
        return self.drawn(self.stream // self.width) if self.model.hidden_dropout else 0

    @property
    def dropout(self) -> int:
        """What one dropout of the residual stream keeps."""
        if not self.model.hidden_dropout:
            return 0
        return self.tokens // self.cuts * 8 if self.on_gpu else self.stream // self.width

    @property
    def norm(self) -> int:
        """Input and statistics of a LayerNorm."""
        return self.stream + 8 * self.tokens // self.cuts

    @property
    def core_kept(self) -> int:
        """What is kept of the core of attention."""
        return 0 if self.config.parallel.recomputed == "selective" else self.attention_core

    @property
    def after_attention(self) -> int:
        """What a block keeps of what follows the core of attention, that core's result included."""
        entered = self.hidden if self.config.parallel.splits_backward else self.stream
        return self.norm + entered + 2 * (self.dropout + self.mlp) + self.hidden // self.tensor

    @property
    def block(self) -> int:
        """What a block keeps."""
        entered = self.hidden if self.config.parallel.splits_backward else self.stream
        projected = 3 * self.hidden // self.tensor
        return self.norm + entered + projected + self.core_kept + self.after_attention

    @property
    def embedded(self) -> int:
        """What the embeddings keep: where their tokens stand, and their dropout."""
        return 16 * self.tokens + self.dropout

    @property
    def head(self) -> int:
        """What the head keeps: the gradients of the hidden states and, in float32, of its weight."""
        return self.hidden + 4 * self.embedding

    @property
    def logits(self) -> int:
        """Of the loss's longest chunk, with everything between them and their gradient."""
        limit = LOGITS_ON_CUDA if self.on_gpu else LOGITS_AT_A_TIME
        length = chunk_length(self.tokens, self.rows, limit)
        chunk = length * self.rows
        if self.on_gpu:
            return chunk * self.width + 4 * self.embedding
        if self.width == 4:
            return 4 * chunk
        again = chunk * 10 if length < self.tokens else 0  # the chunk before still has its gradient
        return max(again, chunk * 8 + 2 * self.embedding)

    @property
    def loss(self) -> int:
        """What the head holds while it computes: its input, whole, what it will keep, and a chunk."""
        gathered = self.hidden if self.cuts > 1 else 0
        return self.stream + gathered + self.head + self.logits

    @property
    def head_backward(self) -> int:
        """What the head's backward computes from what it kept: the same, times the weight of the loss."""
        return self.head + (self.head_gradient if self.width == 2 else 0)

    @property
    def block_backward(self) -> int:
        """What the backward of a block needs at most, at its beginning: the gradient that comes, gathered
        where it is divided, those of the MLP's values and of its largest matrix."""
        gathered = self.hidden if self.cuts > 1 else 0
        matrix = self.model.hidden_size * self.model.mlp_size // self.tensor * self.width
        return self.stream + gathered + self.mlp + matrix

    @property
    def block_halved(self) -> int:
        """The gradients that the first half of a block's backward leaves for the second: one beside the
        input of each product and of each LayerNorm."""
        return 3 * self.hidden // self.tensor + self.mlp + 2 * self.stream + 2 * self.hidden

    @property
    def head_gradient(self) -> int:
        """The gradient of the head's weight as it comes from a backward."""
        return self.width * self.embedding

    def block_unit(self) -> Unit:
        c, f, t = self.model.hidden_size, self.model.mlp_size, self.tensor
        shapes = [
            (3 * c // t, c),
            (3 * c // t, 1),
            (c, c // t),
            (f // t, c),
            (f // t, 1),
            (c, f // t),
        ]
        return self._unit(shapes + [(c, 1)] * 6, self._factors())

    def ends_unit(self, first: bool, last: bool) -> Unit:
        """Embeddings and ln_f of a stage."""
        c = self.model.hidden_size
        shapes = [(self.rows, c)] if first or last else []
        shapes += [(self.model.max_position_embeddings, c)] if first else []
        return self._unit(shapes + ([(c, 1)] * 2 if last else []), [])

    def _factors(self) -> list[tuple[int, int]]:
        """Of LoRA, of one block: A of a row-parallel layer and B of a column-parallel one are divided."""
        if not self.model.lora_rank:
            return []
        from megatron_yuyuan.model.lora import factor_shapes  # which imports torch

        local, t = [], self.tensor
        for name, (rows, columns) in factor_shapes(self.model).items():
            if name.startswith("h.0."):
                divided_rows = name.endswith(("c_attn.lora_B", "c_fc.lora_B"))
                divided_columns = name.endswith("c_proj.lora_A")
                local.append(
                    (
                        rows // t if divided_rows else rows,
                        columns // t if divided_columns else columns,
                    )
                )
        return local

    def _unit(self, shapes: list[tuple[int, int]], factors: list[tuple[int, int]]) -> Unit:
        def elements(matrices, shards: int) -> int:
            return sum(-(-rows // shards) * columns for rows, columns in matrices)

        learned = factors if self.model.lora_rank else shapes
        sizes = (elements(m, n) for m in (shapes + factors, learned) for n in (1, self.shards))
        return Unit(*sizes)
