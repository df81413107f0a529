"""The seam's functions by the fused kernels: one pass over the memory each. Algebra and shapes stand in
`reference`.

What the kernels do not take (columns that are no multiple of 8, rows too long, float64, no rows at all)
goes to the reference, which computes the same.
"""

import torch
from torch import Tensor

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.kernels import Kernels, reference
from megatron_yuyuan.kernels.fused_adamw import FusedAdamW
from megatron_yuyuan.kernels.mask import DropoutMask
from megatron_yuyuan.kernels.operators import ops
from megatron_yuyuan.kernels.vocabulary import VocabularyRows

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORM_COLUMNS = 8192
SOFTMAX_COLUMNS = 2048
"""The longest rows that lie in registers: YUYUAN_NORM_COLUMNS, YUYUAN_SOFTMAX_COLUMNS of csrc/launchers.h."""


def fits(x: Tensor, *others: Tensor, longest: int = 1 << 30) -> bool:
    """Whether the kernels take x (..., columns) together with tensors that must have its dtype."""
    is_whole = x.shape[-1] % 8 == 0 and x.shape[-1] <= longest and x.numel() > 0
    return is_whole and x.dtype in DTYPES and all(other.dtype == x.dtype for other in others)


def numbers(mask: DropoutMask | None) -> tuple:
    """The mask as the operators take it: rows, threshold, scale, key, step, site."""
    if mask is None:
        return None, 0, 1.0, 0, 0, 0
    signed = mask.key - (mask.key >> 63 << 64)  # the same 64 bits
    return mask.rows, mask.threshold, mask.scale, signed, mask.step, mask.site


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Forward 2 passes over x's bytes (read x, write y), backward 3 (read x, dy, write dx)."""
    if not fits(x, weight, bias, longest=NORM_COLUMNS):
        return reference.layer_norm(x, weight, bias, epsilon)
    return ops.layer_norm(x, weight, bias, epsilon)[0]


def norm_beside(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Forward 2 passes, backward 4: the gradient of x beside its norm is added in the same pass."""
    if not fits(x, weight, bias, longest=NORM_COLUMNS):
        return reference.norm_beside(x, weight, bias, epsilon)
    return _NormBeside.apply(x, weight, bias, epsilon)


class _NormBeside(torch.autograd.Function):
    """A function and not an operator, because an operator may not return its own input."""

    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        y, mean, rstd = ops.layer_norm(x, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, mean, rstd)
        return x.view_as(x), y

    @staticmethod
    def backward(ctx, dsum, dy):
        return *ops.layer_norm_backward(dy, dsum, *ctx.saved_tensors), None


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Forward 2 passes, backward 3 with the bias's gradient in the same one."""
    return ops.bias_gelu(x, bias) if fits(x, bias) else reference.bias_gelu(x, bias)


def dropout(x: Tensor, mask: DropoutMask | None) -> Tensor:
    """2 passes, forward and backward; the mask is drawn again and never stored."""
    if mask is None or not fits(x):
        return reference.dropout(x, mask)
    return ops.bias_dropout_add(x, None, None, *numbers(mask))


def bias_dropout_add(x: Tensor, bias: Tensor, residual: Tensor, mask: DropoutMask | None) -> Tensor:
    """Forward 3 passes; backward 2, the residual's gradient being the sum's."""
    if not fits(x, bias, residual):
        return reference.bias_dropout_add(x, bias, residual, mask)
    return ops.bias_dropout_add(x, bias, residual, *numbers(mask))


def bias_dropout_add_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    mask: DropoutMask | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Forward 4 passes (read x and residual, write sum and norm); backward 5 (read both gradients and
    the sum, write those of branch and residual; without dropout 4, one for both)."""
    if not fits(x, bias, residual, weight, norm_bias, longest=NORM_COLUMNS):
        return reference.bias_dropout_add_norm(x, bias, residual, mask, weight, norm_bias, epsilon)
    total, y, _, _ = ops.bias_dropout_add_norm(
        x, bias, residual, *numbers(mask), weight, norm_bias, epsilon
    )
    return total, y


def cross_entropy(logits: Tensor, labels: Tensor, rows: VocabularyRows) -> tuple[Tensor, Tensor]:
    """3 passes: read the logits; after the two exchanges read them again and write their gradient
    there, in their dtype."""
    if not (fits(logits) and logits.is_contiguous()):
        return reference.cross_entropy(logits, labels, rows)
    real = rows.real(logits.shape[-1])
    largest, sums, target = ops.cross_entropy(logits, labels, rows.first, real)
    maximum = rows.maximum(largest)
    sums, target = rows.total(torch.stack((sums * torch.exp(largest - maximum), target)))
    log_sum, learned = maximum + sums.log(), labels != IGNORE
    loss = torch.where(learned, log_sum - target, 0.0).sum()
    ops.cross_entropy_gradient(logits, labels, log_sum, learned.float(), rows.first, real)
    return loss, logits


def causal_softmax(scores: Tensor, scale: float) -> Tensor:
    """Forward 2 passes over the scores, backward 3; half of each row is zeros that are not read."""
    if not fits(scores, longest=SOFTMAX_COLUMNS):
        return reference.causal_softmax(scores, scale)
    return ops.causal_softmax(scores, scale)


KERNELS = Kernels(
    layer_norm=layer_norm,
    norm_beside=norm_beside,
    bias_gelu=bias_gelu,
    dropout=dropout,
    bias_dropout_add=bias_dropout_add,
    bias_dropout_add_norm=bias_dropout_add_norm,
    cross_entropy=cross_entropy,
    adamw=FusedAdamW,
    causal_softmax=causal_softmax,
)
