"""Flags that every command which asks a model something shares. Imports no torch: --help answers at
once."""

import argparse

from megatron_yuyuan.config import ParallelConfig


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model is opened, and where."""
    parser.add_argument(
        "--load", required=True, metavar="DIR", help="run directory, or a Hugging Face GPT-2"
    )
    parser.add_argument(
        "--ckpt-step", type=int, default=0, metavar="N", help="iteration of the run; 0 the latest"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="where the model lives (default: cpu)",
    )


def add_sampling_arguments(
    parser: argparse.ArgumentParser, temperature: float = 0.0, top_p: float = 1.0
) -> None:
    """How tokens are chosen, and by what temperature and top_p where nothing is said."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="most tokens of an answer (default: 128)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="X",
        help=f"0: the likeliest token (default: {temperature:g})",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="draw from the N likeliest; 0: all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=top_p,
        metavar="X",
        help=f"draw from the likeliest tokens that together have this probability (default: {top_p:g})",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1: makes tokens that are already in the text less likely (default: 1)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random draws (default: 0)"
    )


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """How the model is divided over the ranks of a job."""
    for axis, what in (("tensor", "each matrix"), ("pipeline", "the layers")):
        parser.add_argument(
            f"--{axis}-model-parallel-size",
            type=int,
            default=1,
            metavar="N",
            help=f"ranks that share {what} (default: 1)",
        )


def layout_of(options: argparse.Namespace) -> ParallelConfig:
    """The layout that the flags name."""
    tensor, pipeline = options.tensor_model_parallel_size, options.pipeline_model_parallel_size
    return ParallelConfig(tensor, pipeline, device=options.device)


def sampling(options: argparse.Namespace) -> dict:
    """The keyword arguments of `generate` that the flags name."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    return {name: getattr(options, name) for name in names}


def describe_sampling(options: argparse.Namespace) -> str:
    """One phrase for a report: how the answers were decoded."""
    if not options.temperature:
        penalty = options.repetition_penalty
        penalised = f", repetition_penalty {penalty:g}" if penalty != 1 else ""
        return f"greedy, max_new_tokens {options.max_new_tokens}{penalised}"
    named = sampling(options).items()
    return ", ".join(f"{n} {v if isinstance(v, int) else format(v, 'g')}" for n, v in named)
