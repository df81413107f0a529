"""The two ways to attention, softmax(Q K^T / sqrt(D)) V: fused, where torch's
`scaled_dot_product_attention` (SDPA) never stores a weight; and unfused, where all (B, N, T, S) of them
are stored, and masks of the counter-based generator can drop some.

On CUDA the backend of SDPA is chosen here and never left to torch. That matters with dropout: cuDNN
rounds its probability to a multiple of 1/16 (0.1 becomes 0.125), and whether a torch refuses to do so
depends on its version.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.kernels import Kernels

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
ASKED = {"flash": FLASH, "fused": CUDNN, "efficient": EFFICIENT, "unfused": MATH}
"""attention_backend -> SDPA's name for it."""
CUDNN_IS_FASTER = (9, 10)
"""Major compute capabilities (Hopper, Blackwell) where torch too tries cuDNN before flash."""
CUDNN_IS_RIGHT = 91501
"""Its first version that torch takes unasked: earlier ones read past the end of lengths that 128 does not
divide. Source: pytorch/pytorch#169849."""


def prefers_cudnn(device: torch.device) -> bool:
    """Whether cuDNN's attention is the fastest of a CUDA device and right. Its sums have no fixed order, so
    it is left out where torch is asked for one."""
    capability, _ = torch.cuda.get_device_capability(device)
    is_right = (torch.backends.cudnn.version() or 0) >= CUDNN_IS_RIGHT
    ordered = torch.are_deterministic_algorithms_enabled()
    return capability in CUDNN_IS_FASTER and is_right and not ordered


def sdpa_backends(
    asked: str, cudnn_first: bool, dtype: torch.dtype, masked: bool, dropout: float
) -> list[SDPBackend]:
    """The backends SDPA may take on a CUDA device, the first that can compute the call first.

    | call                            | auto                              | unfused | the others         |
    |---------------------------------|-----------------------------------|---------|--------------------|
    | float32, or a mask of its own   | efficient, unfused                | unfused | efficient, unfused |
    | half precision, with dropout    | flash, efficient, unfused         | unfused | that one alone     |
    | half precision, without dropout | the same; if cudnn_first cuDNN's  | unfused | that one alone     |
    |                                 | before them                       |         |                    |

    Flash and cuDNN compute in half precision, and know the plain causal mask alone; a run that asks
    for them makes other calls only where it generates text.
    """
    if masked or dtype == torch.float32:
        return [MATH] if asked == "unfused" else [EFFICIENT, MATH]
    if asked in ASKED:
        return [ASKED[asked]]
    first = [CUDNN] if cudnn_first and not dropout else []
    return [*first, FLASH, EFFICIENT, MATH]


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, asked: str
) -> Tensor:
    """SDPA. q, return (B, N, T, D); k, v (B, N, S, D).

    mask     (1 or B, 1, T, S) bool, True where attention is allowed; None: causal, and T = S or 1
    dropout  probability by torch's generator
    asked    attention_backend
    """
    causal = mask is None and q.shape[2] > 1  # SDPA would show a single query the first key alone
    with backends_chosen(asked, q.device, q.dtype, mask is not None, dropout):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)


def backends_chosen(
    asked: str, device: torch.device, dtype: torch.dtype, masked: bool, dropout: float
) -> AbstractContextManager:
    """Within it SDPA takes the chosen backends, in their order. On the CPU there is nothing to choose."""
    if device.type != "cuda":
        return nullcontext()
    chosen = sdpa_backends(asked, prefers_cudnn(device), dtype, masked, dropout)
    return sdpa_kernel(chosen, set_priority=True)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, kernels: Kernels) -> Tensor:
    """softmax(Q K^T / sqrt(D)), (B, N, T, S): Megatron-LM's classic attention, in front of its dropout.

        q, k  (B, N, T, D), (B, N, S, D): the queries are the last T of S tokens
        mask  (1 or B, 1, T, S) bool, True where attention is allowed; None: causal

    1 / sqrt(D) is applied in two factors: to q a power of two, which rounds nothing and keeps the
    scores in float16's range; the rest in float32 inside the softmax.
    """
    root = math.sqrt(q.shape[-1])
    power = 2.0 ** round(math.log2(root))
    scores, scale = (q / power) @ k.transpose(-1, -2), power / root
    if mask is None:
        return kernels.causal_softmax(scores, scale)
    return (scores.float() * scale).masked_fill(~mask, -math.inf).softmax(-1).to(q.dtype)


def describe_attention(
    model: ModelConfig, dtype: torch.dtype, device: torch.device, masked: bool = False
) -> str:
    """What computes attention in the steps of a run, for a person: `flash, else efficient, else
    unfused`. masked: samples have masks of their own, by which tokens attend only within their
    document."""
    if model.attention_keeps_scores:
        return f"unfused: scores, {'masked' if masked else 'causal'} softmax, values"
    beside = ", masked at the borders of documents" if masked else ""
    if device.type != "cuda":
        return f"scaled_dot_product_attention as torch has it on the CPU{beside}"
    names = {backend: name for name, backend in ASKED.items()}
    asked, dropout = model.attention_backend, model.attention_dropout
    chosen = sdpa_backends(asked, prefers_cudnn(device), dtype, masked, dropout)
    return ", else ".join(names[backend] for backend in chosen) + beside
