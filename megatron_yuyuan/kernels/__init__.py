"""The seam between the model and its kernels: one signature, several bodies, an explicit choice."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, dtype

from megatron_yuyuan.kernels import reference
from megatron_yuyuan.kernels.adamw import AdamW
from megatron_yuyuan.kernels.mask import DropoutMask
from megatron_yuyuan.kernels.vocabulary import VocabularyRows


@dataclass(frozen=True)
class Kernels:
    """What the model asks for; shapes, algebra and arguments stand in `reference`, which defines each
    result."""

    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor] = reference.layer_norm
    norm_beside: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = (
        reference.norm_beside
    )
    bias_gelu: Callable[[Tensor, Tensor], Tensor] = reference.bias_gelu
    dropout: Callable[[Tensor, DropoutMask | None], Tensor] = reference.dropout
    bias_dropout_add: Callable[[Tensor, Tensor, Tensor, DropoutMask | None], Tensor] = (
        reference.bias_dropout_add
    )
    bias_dropout_add_norm: Callable[..., tuple[Tensor, Tensor]] = reference.bias_dropout_add_norm
    cross_entropy: Callable[[Tensor, Tensor, VocabularyRows], tuple[Tensor, Tensor]] = (
        reference.cross_entropy
    )
    adamw: type[AdamW] = AdamW
    causal_softmax: Callable[[Tensor, float], Tensor] = reference.causal_softmax
    largest: Callable[[Tensor], Tensor] = reference.largest
    to_float8: Callable[[Tensor, Tensor, dtype], Tensor] = reference.to_float8
    transposed: Callable[[Tensor], Tensor] = reference.transposed
    float8_product: Callable[..., Tensor] = reference.float8_product
