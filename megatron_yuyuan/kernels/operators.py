"""torch.ops.yuyuan: the schemas of the fused kernels, the shapes of their results, and which of them is
whose derivative.

What they compute is defined in `reference`, how in csrc/*.cu; csrc/binding.cpp joins the two to the
dispatcher once `build.load` has run. Nothing here needs them built: an operator is known to the fake
tensors of torch.compile and to autograd before it has a body.

    rows, threshold, ...  a DropoutMask; rows None: nothing is dropped and the rest is not read
    mean, rstd            (...) float32, the statistics of LayerNorm that its backward needs
    piece                 yuyuan_piece of csrc/launchers.h; a table of them is (pieces, 6) int64
"""

import torch
from torch import Tensor
from torch.library import Library

DROPOUT = "Tensor? rows, int threshold, float scale, int key, SymInt step, SymInt site"
SCHEMAS = (
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon) -> (Tensor y, Tensor mean, Tensor rstd)",
    "layer_norm_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor weight, Tensor mean, Tensor rstd) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    f"bias_dropout_add(Tensor x, Tensor? bias, Tensor? residual, {DROPOUT}) -> Tensor",
    f"bias_dropout_add_backward(Tensor dsum, {DROPOUT}) -> (Tensor dx, Tensor dbias)",
    f"bias_dropout_add_norm(Tensor x, Tensor bias, Tensor residual, {DROPOUT}, Tensor weight, "
    "Tensor norm_bias, float epsilon) -> (Tensor sum, Tensor y, Tensor mean, Tensor rstd)",
    "bias_dropout_add_norm_backward(Tensor dy, Tensor? dsum, Tensor sum, Tensor weight, Tensor mean, "
    f"Tensor rstd, {DROPOUT}) "
    "-> (Tensor dresidual, Tensor dx, Tensor dbias, Tensor dweight, Tensor dnorm_bias)",
    "bias_gelu(Tensor x, Tensor bias) -> Tensor",
    "bias_gelu_backward(Tensor dy, Tensor x, Tensor bias) -> (Tensor dx, Tensor dbias)",
    "cross_entropy(Tensor logits, Tensor labels, int first, int real) "
    "-> (Tensor largest, Tensor sum, Tensor target)",
    "cross_entropy_gradient(Tensor(a!) logits, Tensor labels, Tensor log_sum, Tensor weight, int first, "
    "int real) -> ()",
    "causal_softmax(Tensor scores, float scale) -> Tensor",
    "causal_softmax_backward(Tensor dweights, Tensor weights, float scale) -> Tensor",
    # What changes is what the table points at.
    "adamw(Tensor(a!) pieces, Tensor coefficient, float rate, float beta_1, float beta_2, float epsilon, "
    "float correction_1, float correction_2) -> ()",
    "squared_norm(Tensor pieces) -> Tensor",
)

library = Library("yuyuan", "DEF")
for _schema in SCHEMAS:
    library.define(_schema, tags=torch.Tag.pt2_compliant_tag)
ops = torch.ops.yuyuan


def fake(name: str):
    """Registers the shapes of an operator's results."""
    return torch.library.register_fake(f"yuyuan::{name}", lib=library)


def differentiable(name: str, saved, backward) -> None:
    """Registers what an operator keeps, and what becomes of the gradients of its results."""
    torch.library.register_autograd(f"yuyuan::{name}", backward, setup_context=saved, lib=library)


def _like(x: Tensor) -> Tensor:
    """Contiguous, whatever the strides of x."""
    return x.new_empty(x.shape)


def _row(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[-1:])


def _statistic(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


@fake("layer_norm")
def _(x, weight, bias, epsilon):
    return _like(x), _statistic(x), _statistic(x)


@fake("layer_norm_backward")
def _(dy, dsum, x, weight, mean, rstd):
    return _like(x), _row(x), _row(x)


@fake("bias_dropout_add")
def _(x, bias, residual, *dropout):
    return _like(x)


@fake("bias_dropout_add_backward")
def _(dsum, *dropout):
    return _like(dsum), _row(dsum)


@fake("bias_dropout_add_norm")
def _(x, *arguments):
    return _like(x), _like(x), _statistic(x), _statistic(x)


@fake("bias_dropout_add_norm_backward")
def _(dy, dsum, x, weight, mean, rstd, rows, *dropout):
    dx = dy.new_empty(0) if rows is None else _like(dy)
    return _like(dy), dx, _row(dy), _row(dy), _row(dy)


@fake("bias_gelu")
def _(x, bias):
    return _like(x)


@fake("bias_gelu_backward")
def _(dy, x, bias):
    return _like(x), _row(x)


@fake("cross_entropy")
def _(logits, labels, first, real):
    return _statistic(logits), _statistic(logits), _statistic(logits)


@fake("cross_entropy_gradient")
def _(logits, labels, log_sum, weight, first, real):
    return None


@fake("causal_softmax")
def _(scores, scale):
    return _like(scores)


@fake("causal_softmax_backward")
def _(dweights, weights, scale):
    return _like(weights)


@fake("adamw")
def _(pieces, coefficient, *rates):
    return None


@fake("squared_norm")
def _(pieces):
    return pieces.new_empty((), dtype=torch.float64)


def _without_gradient(ctx, *statistics: Tensor) -> None:
    """Nothing flows back into statistics, and no zeros are written to say so."""
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _norm_saved(ctx, inputs, output):
    x, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    _without_gradient(ctx, mean, rstd)


def _norm_backward(ctx, dy, *_):
    return *ops.layer_norm_backward(dy, None, *ctx.saved_tensors), None


differentiable("layer_norm", _norm_saved, _norm_backward)


def _residual_saved(ctx, inputs, output):
    _, bias, residual, rows, *ctx.numbers = inputs
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    ctx.save_for_backward(rows)


def _residual_backward(ctx, dsum):
    """The sum passes its gradient on as it is; the branch's is dropped as the branch was."""
    [rows] = ctx.saved_tensors
    dropout, dbias = (rows, *ctx.numbers), None
    if ctx.has_bias and rows is not None:
        dx, dbias = ops.bias_dropout_add_backward(dsum, *dropout)
    elif ctx.has_bias:  # nothing to write but the column sums
        dx, dbias = dsum, dsum.flatten(0, -2).sum(0)
    else:
        dx = ops.bias_dropout_add(dsum, None, None, *dropout)
    return dx, dbias, dsum if ctx.has_residual else None, *_nothing_for_dropout()


def _nothing_for_dropout() -> tuple[None, ...]:
    """The gradients of rows, threshold, scale, key, step and site."""
    return (None,) * 6


differentiable("bias_dropout_add", _residual_saved, _residual_backward)


def _residual_norm_saved(ctx, inputs, output):
    _, _, _, rows, *ctx.numbers, weight, _, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total, weight, mean, rstd, rows)
    _without_gradient(ctx, mean, rstd)


def _residual_norm_backward(ctx, dsum, dy, *_):
    *saved, rows = ctx.saved_tensors
    dy = torch.zeros_like(saved[0]) if dy is None else dy  # the norm was not used
    dresidual, dx, dbias, *dnorm = ops.bias_dropout_add_norm_backward(
        dy, dsum, *saved, rows, *ctx.numbers
    )
    if rows is None:  # one gradient for both, written once
        dx = dresidual
    return dx, dbias, dresidual, *_nothing_for_dropout(), *dnorm, None


differentiable("bias_dropout_add_norm", _residual_norm_saved, _residual_norm_backward)


def _gelu_saved(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx, dy):
    return ops.bias_gelu_backward(dy, *ctx.saved_tensors)


differentiable("bias_gelu", _gelu_saved, _gelu_backward)


def _softmax_saved(ctx, inputs, output):
    _, ctx.scale = inputs
    ctx.save_for_backward(output)


def _softmax_backward(ctx, dweights):
    return ops.causal_softmax_backward(dweights, *ctx.saved_tensors, ctx.scale), None


differentiable("causal_softmax", _softmax_saved, _softmax_backward)
