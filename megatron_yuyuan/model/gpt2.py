"""The one GPT-2: pretraining, finetuning, evaluation, generation and export all use this class.

Pre-LayerNorm, learned positions, gelu_new, tied embeddings, biases everywhere. Source: Radford et
al. 2019, and the parameter names of Hugging Face's GPT2Model. The rows of `c_attn` are ordered
(head, q|k|v, head_dim), as Megatron-LM orders them, so that any tensor degree cuts between heads.

Letters, here and in every other file:
    B samples   T tokens   C hidden_size   N heads   D head_dim   V padded vocabulary

The model does not know that it is divided: views use -1 for the heads, layers sit in a ModuleDict
under their global number, and a part that is None (embedding or head on another rank) is passed
through.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.kernels import DropoutMask, Kernels
from megatron_yuyuan.model.attention_backend import attention_weights, fused_attention
from megatron_yuyuan.model.decoding import KeyValueCache
from megatron_yuyuan.model.loss import LanguageModelHead
from megatron_yuyuan.model.recomputation import Recomputation, recomputed

ATTENTION_RESIDUAL, MLP_RESIDUAL, ATTENTION_WEIGHTS, EMBEDDING = range(4)
"""The places of dropout in a layer; the fourth word of the random counter is layer * 16 + place."""


@dataclass(frozen=True)
class BlockInputs:
    """What every layer of one forward pass needs beside the hidden states. The same on every
    pipeline stage."""

    sample_ids: Tensor
    """(B,) int64: number of each sample in the global batch."""
    step: int
    """Optimizer step; with sample_ids and the position it determines every dropout mask."""
    document_ids: Tensor | None
    """(B, T) int64 or None: tokens attend only within their document."""
    cache: KeyValueCache | None
    """Keys and values of the tokens before these, when generating."""


class Dropout(nn.Module):
    """Dropout of (B, T, C) hidden states by the counter-based generator."""

    def __init__(self, p: float, seed: int, site: int, kernels: Kernels):
        super().__init__()
        self.p, self.seed, self.site, self.kernels = p, seed, site, kernels

    def rows(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """(B, T) int64: the number of each of the rows of x in the whole batch."""
        return numbers_of_rows(inputs.sample_ids, x.shape[1])

    def mask(self, x: Tensor, inputs: BlockInputs) -> DropoutMask | None:
        """Of hidden states like x; None where nothing is dropped."""
        if not (self.training and self.p):
            return None
        return DropoutMask(self.p, self.rows(x, inputs), self.seed, inputs.step, self.site)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        return self.kernels.dropout(x, self.mask(x, inputs))


def numbers_of_rows(matrices: Tensor, length: int) -> Tensor:
    """(..., length) int64: the global number of every row of the matrices of these numbers, (...), of `length`
    rows each."""
    return matrices[..., None] * length + torch.arange(length, device=matrices.device)


class AttentionDropout(nn.Module):
    """Dropout of (B, N, T, T) attention weights; a tensor rank sets which heads it holds."""

    def __init__(self, p: float, seed: int, site: int, num_heads: int, kernels: Kernels):
        super().__init__()
        self.p, self.seed, self.site, self.kernels = p, seed, site, kernels
        self.num_heads, self.first_head = num_heads, 0

    def forward(self, weights: Tensor, inputs: BlockInputs) -> Tensor:
        heads = self.first_head + torch.arange(weights.shape[1], device=weights.device)
        numbers = inputs.sample_ids[:, None] * self.num_heads + heads
        rows = numbers_of_rows(numbers, weights.shape[2])
        mask = DropoutMask(self.p, rows, self.seed, inputs.step, self.site)
        return self.kernels.dropout(weights, mask)


class LayerNorm(nn.Module):
    """LayerNorm over C, alone or with what stands before it in the residual stream."""

    def __init__(self, size: int, epsilon: float, kernels: Kernels):
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.empty(size))
        self.bias: Tensor = nn.Parameter(torch.empty(size))
        self.epsilon, self.kernels = epsilon, kernels

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, (C,) each, as plain tensors."""
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        """norm(x). x, return (B, T, C)."""
        return self.kernels.layer_norm(x, *self.affine(), self.epsilon)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x, which goes on in the residual stream, and norm(x); all (B, T, C)."""
        return self.kernels.norm_beside(x, *self.affine(), self.epsilon)

    def of_sum(
        self, x: Tensor, bias: Tensor, residual: Tensor, mask: DropoutMask | None
    ) -> tuple[Tensor, Tensor]:
        """s = residual + dropout(x + bias), and norm(s). x, residual, s (B, T, C); bias (C,)."""
        return self.kernels.bias_dropout_add_norm(
            x, bias, residual, mask, *self.affine(), self.epsilon
        )


class LinearBeforeBias(nn.Module):
    """(x W^T, b): the bias is added by the kernel that comes next, in its own pass."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in))
        self.bias = nn.Parameter(torch.empty(c_out))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, self.weight), self.bias


class Attention(nn.Module):
    """Causal self-attention: softmax(Q K^T / sqrt(D)) V, projected back to C. x (B, T, C); return
    (B, T, C), and the projection's bias (C,), which is not added yet."""

    def __init__(self, config: ModelConfig, layer: int, seed: int, kernels: Kernels):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.recompute_core = False
        self.backend, self.unfused = config.attention_backend, config.attention_unfused
        self.fused_dropout = config.attention_dropout_rng == "torch"
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = LinearBeforeBias(config.hidden_size, config.hidden_size)
        self.kernels = kernels
        self.attn_dropout = AttentionDropout(
            config.attention_dropout,
            seed,
            layer * 16 + ATTENTION_WEIGHTS,
            config.num_attention_heads,
            kernels,
        )

    def forward(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
        qkv = self.c_attn(x)
        qkv = qkv.view(*qkv.shape[:2], -1, 3, self.head_dim)  # (B, T, N, 3, D)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))  # (B, N, T, D)
        if inputs.cache is not None:
            k, v = inputs.cache.extend(self.layer, k, v)
        attend = recomputed(self.attend) if self.recompute_core else self.attend
        y = attend(q, k, v, inputs)
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: BlockInputs) -> Tensor:
        """q (B, N, T, D) against k, v (B, N, S, D), S >= T: the queries are the last T of S
        tokens."""
        mask = self.mask(q.shape[2], k.shape[2], inputs.document_ids, q.device)
        p = self.attn_dropout.p if self.training else 0.0
        if not self.unfused and (not p or self.fused_dropout):
            return fused_attention(q, k, v, mask, p, self.backend)
        own_mask = None if inputs.document_ids is None else mask
        weights = attention_weights(q, k, own_mask, self.kernels)
        return (self.attn_dropout(weights, inputs) if p else weights) @ v

    @staticmethod
    def mask(queries: int, keys: int, document_ids: Tensor | None, device) -> Tensor | None:
        """(1 or B, 1, T, S) bool, True where attention is allowed; None for the plain causal
        square, and for one query, which sees every key."""
        if document_ids is None:
            return None if queries in (1, keys) else causal_mask(queries, keys, device)
        same = document_ids[:, None, -queries:, None] == document_ids[:, None, None, :]
        return same & causal_mask(queries, keys, device)


def causal_mask(queries: int, keys: int, device) -> Tensor:
    """(1, 1, T, S) bool: the last T of S tokens, each seeing itself and what came before."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))). x (B, T, C); return (B, T, C), and the bias (C,) of c_proj, which is not
    added yet."""

    def __init__(self, config: ModelConfig, kernels: Kernels):
        super().__init__()
        self.c_fc = LinearBeforeBias(config.hidden_size, config.mlp_size)
        self.c_proj = LinearBeforeBias(config.mlp_size, config.hidden_size)
        self.kernels = kernels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.c_proj(self.kernels.bias_gelu(*self.c_fc(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x, return (B, T, C)."""

    def __init__(self, config: ModelConfig, layer: int, seed: int, kernels: Kernels):
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.layernorm_epsilon, kernels)
        self.attn = Attention(config, layer, seed, kernels)
        self.resid_1 = Dropout(
            config.hidden_dropout, seed, layer * 16 + ATTENTION_RESIDUAL, kernels
        )
        self.ln_2 = LayerNorm(config.hidden_size, config.layernorm_epsilon, kernels)
        self.mlp = MLP(config, kernels)
        self.resid_2 = Dropout(config.hidden_dropout, seed, layer * 16 + MLP_RESIDUAL, kernels)
        self.kernels = kernels

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        x, normed = self.ln_1.beside(x)
        attended, bias = self.attn(normed, inputs)
        x, normed = self.ln_2.of_sum(attended, bias, x, self.resid_1.mask(x, inputs))
        projected, bias = self.mlp(normed)
        return self.kernels.bias_dropout_add(projected, bias, x, self.resid_2.mask(x, inputs))


class GPT2(nn.Module):
    """GPT-2 with its language-modelling head, or the part of it that one pipeline stage holds.

    Weights are uninitialized until `initialization.init_weights` or a checkpoint fills them, so that the model can
    be built on the meta device at any size.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, kernels: Kernels | None = None):
        super().__init__()
        kernels = kernels or Kernels()
        self.config, self.kernels = config, kernels
        self.wte: nn.Embedding | None = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.wpe: nn.Embedding | None = nn.Embedding(
            config.max_position_embeddings, config.hidden_size
        )
        self.drop = Dropout(config.hidden_dropout, seed, EMBEDDING, kernels)
        self.h = nn.ModuleDict(
            {str(i): Block(config, i, seed, kernels) for i in range(config.num_layers)}
        )
        self.ln_f: LayerNorm | None = LayerNorm(
            config.hidden_size, config.layernorm_epsilon, kernels
        )
        self.head: LanguageModelHead | None = LanguageModelHead(config.vocab_size, kernels)
        self.recomputation = Recomputation()

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.parameters()).device

    def recompute(self, recomputation: Recomputation) -> None:
        """Choose what the backward computes again. A fresh model keeps everything."""
        self.recomputation = recomputation
        for module in self.modules():
            if isinstance(module, Attention):
                module.recompute_core = recomputation.granularity == "selective"

    def forward(
        self,
        tokens_or_hidden: Tensor,
        *,
        positions: Tensor,
        document_ids: Tensor | None = None,
        sample_ids: Tensor,
        step: int,
        labels: Tensor | None = None,
        cache: KeyValueCache | None = None,
        last_token_only: bool = False,
    ):
        """One pass through the layers this model holds.

        tokens_or_hidden  (B, T) int64 with the embedding, else (B, T, C) from the stage before
        positions         (B, T) int64, row of the position table
        document_ids      (B, T) int64 or None; with a cache (B, S) of all S tokens so far
        sample_ids, step  see `BlockInputs`
        labels            (B, T) int64 or None
        last_token_only   give the head (B, 1, C), all that the next token needs
        return            (B, T, C) without the head; else what `LanguageModelHead` returns
        """
        inputs = BlockInputs(sample_ids, step, document_ids, cache)
        x = tokens_or_hidden
        if self.wte is not None and self.wpe is not None:
            x = self.drop(self.wte(x) + self.wpe(positions), inputs)
        x = self.recomputation.through(list(self.h.values()), x, inputs)
        if self.head is None:
            return x
        assert self.ln_f is not None and self.wte is not None  # they stand on the head's stage
        if last_token_only:
            x = x[:, -1:]
        return self.head(self.ln_f(x), self.wte.weight, labels)
