r"""Every kernel behind the seam on one GPU: microseconds, GB/s, and their share of a copy's.

    python tools/benchmark/kernels_gpu.py --out FOLDER [--seconds 420]
    python tools/benchmark/kernels_gpu.py --contenders cuda      one call at odd shapes, in every dtype, compared

At the shapes of the 3.5B model: B = 8, T = 1024, C = 3072, N = 32, V = 50304, bfloat16, dropout 0.1. Times are
medians by CUDA events with a cold L2 cache. Bytes are those that a kernel must read and write, each matrix
once a pass; a contender that moves more is not credited with it. `error` is the largest difference from the
reference in float32, over results and gradients, relative to the largest element. Rows that are in FOLDER
are not measured again. With --device cpu everything runs at a tiny size, to try it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch._functorch.config as functorch
from torch import Tensor

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.kernels import DropoutMask, Kernels, VocabularyRows
from megatron_yuyuan.kernels.choice import choose
from megatron_yuyuan.kernels.float8 import E4M3

SEAMS = ("cuda", "compile", "reference", "apex")
EPSILON = 1e-5
BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-5}
"""Largest `error` of a right kernel: a few roundings of the dtype."""


class Sizes(NamedTuple):
    """Of the model, and how many tokens it has at once."""

    B: int = 8
    T: int = 1024
    C: int = 3072
    N: int = 32
    V: int = 50304

    def shape(self, letter: str) -> tuple[int, ...]:
        """h hidden states, f the MLP's, c and d their biases, s scores, v logits."""
        b, t, c, n, v = self
        shapes = {"h": (b, t, c), "f": (b, t, 4 * c), "c": (c,), "d": (4 * c,)}
        return (shapes | {"s": (b, n, t, t), "v": (b * t, v)})[letter]


TINY = Sizes(2, 8, 16, 2, 128)
ODD = Sizes(3, 40, 3072, 2, 50304)
"""Few rows, whose number no block divides; columns as the model has them."""


@dataclass(frozen=True)
class Case:
    """One function of the seam."""

    shapes: str
    """Letters of its tensors, see `Sizes.shape`; bytes are counted in units of the first."""
    forward: float
    """Passes over the first tensor's bytes: how often as much is read or written."""
    backward: int
    """The same; 0 where the function has no backward."""
    call: Callable
    """call(kernels, sides, *tensors)."""


class Sides(NamedTuple):
    """What is no matrix of numbers."""

    mask: DropoutMask
    labels: Tensor
    rows: VocabularyRows
    scale: Tensor


CASES = {
    "layer_norm": Case("hcc", 2, 3, lambda k, _, x, w, b: k.layer_norm(x, w, b, EPSILON)),
    "norm_beside": Case("hcc", 2, 4, lambda k, _, x, w, b: k.norm_beside(x, w, b, EPSILON)),
    "bias_gelu": Case("fd", 2, 3, lambda k, _, x, b: k.bias_gelu(x, b)),
    "bias_dropout_add": Case(
        "hch", 3, 2, lambda k, s, x, b, r: k.bias_dropout_add(x, b, r, s.mask)
    ),
    "bias_dropout_add_norm": Case(
        "hchcc",
        4,
        5,
        lambda k, s, x, b, r, w, n: k.bias_dropout_add_norm(x, b, r, s.mask, w, n, EPSILON),
    ),
    "cross_entropy": Case("v", 3, 0, lambda k, s, z: k.cross_entropy(z, s.labels, s.rows)),
    "causal_softmax": Case("s", 2, 3, lambda k, _, z: k.causal_softmax(z, 0.8)),
    "largest": Case("f", 1, 0, lambda k, _, x: k.largest(x)),
    "to_float8": Case("f", 1.5, 0, lambda k, s, x: k.to_float8(x, s.scale, E4M3)),
    "transposed": Case(  # of what is rounded first, as in training
        "f", 2.5, 0, lambda k, s, x: k.transposed(k.to_float8(x.flatten(0, 1), s.scale, E4M3))
    ),
}


OWN = {
    "apex": ["layer_norm"],
    "cuda": [name for name in CASES if name not in ("largest", "to_float8", "transposed")],
}
"""Contender -> the functions that it does not leave to another. What float8 needs is torch.compile's under cuda."""


def main(args: Sequence[str] | None = None) -> None:
    """Measure what is not yet in FOLDER, or compare and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="without it: compare, measure nothing"
    )
    parser.add_argument("--contenders", nargs="+", choices=SEAMS, default=SEAMS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=420, help="begin no row after so many")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    if options.out is None:
        compare_all(options.contenders, device)
        return
    from gpu_measure import Results, ceilings, describe_machine
    from kernels_gpu_peers import PEERS

    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "kernels.json", device, options.seconds)
    if not results.about:
        results.describe(describe_machine(device) | ceilings(device))
    copy = results.about["copy_bytes_per_second"]
    functorch.donated_buffer = False  # a compiled backward that is to run more than once
    for contender in options.contenders:
        chosen = partial(seam, contender, device)
        for name in OWN.get(contender, CASES):
            work = partial(measured, CASES[name], chosen, device, copy)
            results.measure(f"{name}, {contender}", work)
        if contender != "compile":  # its optimizer is the reference's
            work = partial(measured_adamw, chosen, device, copy)
            results.measure(f"adamw, {contender}", work)
    for (name, contender), peer in PEERS.items():
        work = partial(measured, CASES[name], peer, device, copy)
        results.measure(f"{name}, {contender}", work)
    results.finish()


def seam(name: str, device: torch.device) -> Kernels:
    """The kernels that --kernels NAME gives on this device. Raises what says why there are none."""
    kernels, _ = choose(name, device)
    return kernels


def measured(case: Case, seam: Callable[[], Kernels], device: torch.device, copy: float) -> dict:
    """One function by one contender at the model's shapes."""
    from gpu_measure import median_seconds

    kernels, sizes = seam(), Sizes() if device.type == "cuda" else TINY
    tensors, sides = inputs(case, sizes, torch.bfloat16, device)
    error = difference(case, kernels, tensors, sides)
    unit = tensors[0].numel() * tensors[0].element_size()
    passes = {"forward": case.forward, "backward": case.backward}
    work = {"forward": lambda: case.call(kernels, sides, *tensors)}
    if case.backward:
        results, gradients = with_gradients(case.call(kernels, sides, *tensors))
        work["backward"] = lambda: torch.autograd.grad(
            results, tensors, gradients, retain_graph=True
        )
    row: dict = {"error": error, "agrees": error <= BOUNDS[torch.bfloat16]}
    for direction, call in work.items():
        seconds = median_seconds(call, device)
        row[direction] = speed(unit * passes[direction], seconds, copy)
    return row


def speed(moved: float, seconds: float, copy: float) -> dict:
    """Of a pass over the memory."""
    rate = moved / seconds
    return {"seconds": seconds, "bytes_per_second": rate, "share_of_copy": rate / copy}


def measured_adamw(seam: Callable[[], Kernels], device: torch.device, copy: float) -> dict:
    """The optimizer on the matrices of four layers. The gradient's norm reads 4 bytes an element; norm and
    step with a clipped gradient, as a trainer takes them, 28 more: weight, gradient and both moments
    read, weight and moments written."""
    from gpu_measure import median_seconds

    c = 3072 if device.type == "cuda" else 16
    shapes = [(3 * c, c), (c, c), (4 * c, c), (c, 4 * c)] * 4
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    groups = [{"params": parameters, "weight_decay": 0.01}]
    optimizer = seam().adamw(groups, lr=1e-6, betas=(0.9, 0.95), eps=1e-8)
    elements = sum(parameter.numel() for parameter in parameters)

    def norm_and_step():
        optimizer.squared_norm(parameters)
        optimizer.update(0.999)

    norm = median_seconds(lambda: optimizer.squared_norm(parameters), device)
    both = median_seconds(norm_and_step, device)
    return {"norm": speed(4 * elements, norm, copy), "norm+step": speed(32 * elements, both, copy)}


def inputs(
    case: Case, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Sides]:
    """Random tensors, differentiable where the case has a backward, and the rest."""
    draw = torch.Generator(device).manual_seed(0)
    tensors = [
        torch.randn(sizes.shape(letter), generator=draw, device=device, dtype=dtype)
        for letter in case.shapes
    ]
    for tensor in tensors:
        tensor.requires_grad_(case.backward > 0)
    numbers = torch.arange(sizes.B * sizes.T, device=device)
    rows = VocabularyRows(sizes.V - 47)  # GPT-2's 50257
    mask = DropoutMask(0.1, numbers.view(sizes.B, sizes.T), 1234, 7, 16)
    scale = torch.full((), 5.0 / 448, device=device)
    return tensors, Sides(mask, numbers * 7919 % rows.vocab_size, rows, scale)


def with_gradients(results) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The results of a call, and a gradient for each."""
    results = (results,) if isinstance(results, Tensor) else tuple(results)
    draw = torch.Generator(results[0].device).manual_seed(1)
    return results, [
        torch.randn(r.shape, generator=draw, device=r.device, dtype=torch.float32).to(r.dtype)
        for r in results
    ]


def difference(case: Case, kernels: Kernels, tensors: list[Tensor], sides: Sides) -> float:
    """Over results and gradients, the largest max|a - b| / max|b| from the reference in float32."""
    exact = [t.detach().float().requires_grad_(t.requires_grad) for t in tensors]
    ours, theirs = (
        everything(case, kernels, tensors, sides),
        everything(case, Kernels(), exact, sides),
    )
    return max(
        ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30)).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def everything(case: Case, kernels: Kernels, tensors: list[Tensor], sides: Sides) -> list[Tensor]:
    """Results and gradients of one call. It works on copies: the cross entropy overwrites its logits."""
    own = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    results, gradients = with_gradients(case.call(kernels, sides, *own))
    found = [result.detach() for result in results]
    if case.backward:
        found += torch.autograd.grad(results, own, gradients)
    return found


def compare_all(contenders: Sequence[str], device: torch.device) -> None:
    """Every case in every dtype at odd shapes, once. Ends with status 1 where one is wrong."""
    wrong = []
    for contender, (name, case) in itertools.product(contenders, CASES.items()):
        for dtype, bound in BOUNDS.items():
            tensors, sides = inputs(case, ODD if device.type == "cuda" else TINY, dtype, device)
            error = difference(case, seam(contender, device), tensors, sides)
            line = f"{name}, {contender}, {dtype}: error {error:.1e}, bound {bound:.0e}"
            print(line, flush=True)
            if not error <= bound:
                wrong.append(line)
    if wrong:
        raise SystemExit("wrong:\n" + "\n".join(wrong))


if __name__ == "__main__":
    run_command(main)
