r"""What a GPU can do, and what torch does on it, before anything of ours is timed.

    python tools/benchmark/machine_gpu.py --out FOLDER [--seconds 240]

    copy, matmul       the ceilings: bandwidth of a copy, bfloat16 products of 8192 and of the 3.5B model
    attention          SDPA at the model's shape, every body, forward and backward, and the share of weights
                       that it really drops when asked for 0.1
    five steps         a small model's losses in float32 with --kernels cuda, beside the CPU's reference
    synchronisations   how often the CPU waits for the GPU inside one training step, and where

Rows that are in FOLDER are not measured again. With --device cpu everything runs at a tiny size, to try it.
"""

import collections
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command

DROPOUT, TOLERANCE = 0.1, 0.004
"""Flash attention keeps what lies at or below 229 of 256: it drops 0.1016. cuDNN drops 0.125."""
LOSSES_AGREE = 1e-4
"""Relative difference of float32 losses, on the CPU and on a GPU."""
READ_AT_ONCE = 1
"""Waits of a step: for its loss and gradient norm, together."""


def main(args: Sequence[str] | None = None) -> None:
    """Measure what is not yet in FOLDER."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=240, help="begin no row after so many")
    options = parser.parse_args(args)
    import torch
    from gpu_measure import Results, ceilings, describe_machine

    from megatron_yuyuan.model.attention_backend import ASKED

    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "machine.json", device, options.seconds)
    if not results.about:
        results.describe(describe_machine(device) | ceilings(device))
    for backend in ASKED:
        for dropout in (DROPOUT, 0.0):
            name = f"attention, {backend}, dropout {dropout}"
            results.measure(name, partial(attention, backend, dropout, device))
    results.measure("attention, torch's own choice", partial(torchs_choice, device))
    results.measure("five steps", partial(five_steps, device))
    results.measure("synchronisations", partial(synchronisations, device))
    for name, sizes in products(device).items():
        results.measure(f"matmul, {name}", partial(product, device, *sizes))
        if sizes[-1] == "NT" and not name.startswith("head"):
            results.measure(f"matmul, float8 {name}", partial(float8_product, device, *sizes[:3]))
    results.finish()


def products(device) -> dict[str, tuple]:
    """The matrix products of a training step of the 3.5B model on 8 and 16 samples: name -> arguments of
    `matmul_rate`. y = x W^T, dx = dy W, dW = dy^T x, each tensor stored by its rows."""
    cuda = device.type == "cuda"
    c, vocabulary, batches = (3072, 50304, (8192, 16384)) if cuda else (16, 128, (16,))
    layers = {"c_attn": (c, 3 * c), "attn.c_proj": (c, c), "c_fc": (c, 4 * c)}
    layers |= {"mlp.c_proj": (4 * c, c), "head": (c, vocabulary)}
    found = {}
    for tokens in batches:
        for name, (inner, outer) in layers.items():
            found[f"{name} forward, {tokens} tokens"] = (tokens, inner, outer, "NT")
            found[f"{name} input gradient, {tokens} tokens"] = (tokens, outer, inner, "NN")
            found[f"{name} weight gradient, {tokens} tokens"] = (outer, tokens, inner, "TN")
    return found


def product(device, *arguments) -> dict:
    """The rate of one of them."""
    from gpu_measure import matmul_rate

    return {"flops_per_second": matmul_rate(device, *arguments)}


def float8_product(device, m: int, k: int, n: int) -> dict:
    """The rate of a product of e4m3 numbers with its bfloat16 result, without the rounding of its factors.
    All three of a layer are stored for it as the forward's is."""
    import torch
    from gpu_measure import median_seconds

    from megatron_yuyuan.kernels.float8 import E4M3, scaled_product

    a, b = (torch.randn(rows, k, device=device).to(E4M3) for rows in (m, n))
    scales = (torch.ones((), device=device),) * 2
    seconds = median_seconds(lambda: scaled_product(a, b, scales, torch.bfloat16), device)
    return {"flops_per_second": 2 * m * k * n / seconds}


def attention(backend: str, dropout: float, device) -> dict:
    """Times of SDPA in one body at the shape of the 3.5B model, and the share that it drops."""
    import torch
    import torch.nn.functional as F
    from gpu_measure import median_seconds
    from torch.nn.attention import sdpa_kernel

    from megatron_yuyuan.model.attention_backend import ASKED

    shape = (8, 32, 1024, 96) if device.type == "cuda" else (1, 2, 16, 8)
    q, k, v, dy = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(4))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    with sdpa_kernel([ASKED[backend]]):
        y = F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True)

        def forward():
            return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True)

        def backward():
            return torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)

        row = {"forward": median_seconds(forward, device)}
        row["backward"] = median_seconds(backward, device)
        if dropout:
            rate = drop_rate(dropout, device)
            row |= {"drop_rate": rate, "drops_as_asked": abs(rate - dropout) <= TOLERANCE}
    return row


def drop_rate(dropout: float, device) -> float:
    """The share of the attention weights that SDPA zeroes. With q = 0 all that a query sees weigh the
    same, and with v the identity its output is its row of weights, so zeros can be counted."""
    import torch
    import torch.nn.functional as F

    length = 96
    q = torch.zeros(8, 32, length, length, device=device, dtype=torch.bfloat16)
    v = torch.eye(length, device=device, dtype=torch.bfloat16).expand_as(q).contiguous()
    y = F.scaled_dot_product_attention(q, q, v, None, dropout, is_causal=True)
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return ((y == 0) & seen).sum().item() / (seen.sum().item() * 8 * 32)


def torchs_choice(device) -> dict:
    """Which body SDPA would take by itself at the model's shape."""
    import torch
    from torch.nn.attention import SDPBackend

    q = torch.zeros(8, 32, 1024, 96, device=device, dtype=torch.bfloat16)
    names = {backend.value: name for name, backend in SDPBackend.__members__.items()}
    choose = torch._fused_sdp_choice
    return {f"dropout {p}": names[choose(q, q, q, None, p, True)] for p in (0.0, DROPOUT)}


def five_steps(device) -> dict:
    """Losses of a small model with dropout by the counter, whose masks no device changes."""
    from training_cpu import build_trainer
    from training_gpu import Row, ours_on, random_text

    from megatron_yuyuan.parallel import mesh

    config = Row("tiny", "auto", 2, 0.0).config.replace(
        hidden_dropout=0.1, bf16=False, init_method_std=0.2, lr=1e-2
    )
    losses = {}
    for name, where, kernels in (
        ("reference", "cpu", "reference"),
        ("ours", device.type, ours_on(device)),
    ):
        mesh.stop()  # gloo carries the CPU's collectives, nccl the GPU's
        trainer = build_trainer(config.replace(device=where, kernels=kernels))
        losses[name] = [trainer.step(random_text(config))["lm_loss"] for _ in range(5)]
    mesh.stop()
    pairs = zip(losses["ours"], losses["reference"], strict=True)
    largest = max(abs(a / b - 1) for a, b in pairs)
    return {**losses, "largest_difference": largest, "agrees": largest <= LOSSES_AGREE}


def synchronisations(device) -> dict:
    """Waits of the CPU in a step of 8 micro batches, after those that do not count."""
    import torch
    from training_gpu import WARM_UP, Row, build, ours_on

    from megatron_yuyuan.parallel import mesh

    size, samples = ("124m", 8) if device.type == "cuda" else ("tiny", 1)
    row = Row(size, ours_on(device), samples)
    step = build(row, device)
    for number in range(WARM_UP):
        step(number)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            step(WARM_UP)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            mesh.stop()  # what is measured, or tested, next starts its own
    found = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    places = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found)
    return {"count": len(found), "places": dict(places), "agrees": len(found) <= READ_AT_ONCE}


if __name__ == "__main__":
    run_command(main)
