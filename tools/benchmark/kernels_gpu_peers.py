"""What Liger-Kernel has for a kernel of ours, behind our seam, for tools/benchmark/kernels_gpu.py. (apex is
--kernels apex.)"""

from collections.abc import Callable
from dataclasses import replace

from megatron_yuyuan.kernels import Kernels


def liger_layer_norm() -> Kernels:
    """Liger-Kernel's, in Triton."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return replace(Kernels(), layer_norm=LigerLayerNormFunction.apply)


def liger_cross_entropy() -> Kernels:
    """Liger-Kernel's: loss and gradient in one pass over the logits, in their place. It knows no padding
    of the vocabulary."""
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    def cross_entropy(logits, labels, rows):
        loss, *_ = cross_entropy_forward(
            logits[:, : rows.vocab_size], labels, None, -100, 0.0, 0.0, "sum", None, False
        )
        return loss, logits

    return replace(Kernels(), cross_entropy=cross_entropy)


PEERS: dict[tuple[str, str], Callable[[], Kernels]] = {
    ("layer_norm", "liger"): liger_layer_norm,
    ("cross_entropy", "liger"): liger_cross_entropy,
}
"""(function of the seam, package) -> the seam with that function. A package that is not installed, or has
changed, makes a row that says so."""
