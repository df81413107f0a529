"""Tokens a second of greedy generation on this machine's CPU, ours beside transformers' `generate`.

    python tools/benchmark/generation.py --config examples/configs/tiny.toml --batches 1 16
    python tools/benchmark/generation.py --config examples/configs/gpt2_124m.toml --rounds 3 --new-tokens 32

Both hold the same random weights in float32, and must give the same tokens. Rounds alternate between
the two, so that whatever else the machine does meets both; printed are medians and extremes, and the
median over the rounds of ours to theirs.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial

import torch

from megatron_yuyuan.checkpoint.hf_format import huggingface_config, to_huggingface
from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import Config, ModelConfig
from megatron_yuyuan.config_toml import load_toml
from megatron_yuyuan.evaluate.generate import generate_batch
from megatron_yuyuan.model.decoding import store_by_columns
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

NEVER = -1
"""No token ends a text: both generate as many."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print one row of a table for each batch. Raises ConfigError."""
    options = _parse(args)
    torch.set_num_threads(options.threads)
    config = Config().replace(**load_toml(options.config)).replace(vocab_size=options.vocab_size)
    shape = config.replace(max_position_embeddings=1024).model
    ours, theirs = build(shape)
    print(
        f"{options.config}: {options.prompt_tokens} prompt tokens, {options.new_tokens} new, "
        f"{options.threads} threads, {options.rounds} rounds; tokens/s, median (least to most)"
    )
    print("\n| batch | megatron_yuyuan | transformers | ratio |\n|---|---|---|---|")
    for size in options.batches:
        prompts = torch.arange(size * options.prompt_tokens).view(size, -1) % shape.vocab_size
        ways = {
            "ours": partial(by_us, ours, prompts, options.new_tokens),
            "theirs": partial(by_transformers, theirs, prompts, options.new_tokens),
        }
        rates = compare(ways, options.rounds, size * options.new_tokens)
        ratio = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        print(f"| {size} | {show(rates['ours'])} | {show(rates['theirs'])} | {show(ratio, 2)} |")


def build(shape: ModelConfig):
    """The same weights, as GPT2 and as GPT2LMHeadModel."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = GPT2(shape).eval()
    init_weights(ours, seed=1)
    theirs = GPT2LMHeadModel(GPT2Config(**huggingface_config(shape, 0, "float32"))).eval()
    theirs.load_state_dict(to_huggingface(ours.state_dict(), shape), strict=False)
    theirs.tie_weights()
    theirs.generation_config.eos_token_id = None
    store_by_columns(ours)  # as load_model does on a CPU
    return ours, theirs


def by_us(model: GPT2, prompts: torch.Tensor, new_tokens: int) -> list[list[int]]:
    return generate_batch(model, prompts.tolist(), new_tokens, eod=NEVER)


def by_transformers(model, prompts: torch.Tensor, new_tokens: int) -> list[list[int]]:
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return ids[:, prompts.shape[1] :].tolist()


def compare(ways: dict, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Tokens a second of each way, a number a round; the first, not counted, also compares them."""
    first, second = (way() for way in ways.values())
    if first != second:
        raise RuntimeError("the two generate other tokens: there is nothing to compare")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            rates[name].append(tokens / (time.perf_counter() - begun))
    return rates


def show(values: list[float], digits: int = 1) -> str:
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.toml", help="the model's shape")
    parser.add_argument("--vocab-size", type=int, default=50257, metavar="N")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], metavar="N")
    parser.add_argument("--prompt-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    return parser.parse_args(args)


if __name__ == "__main__":
    run_command(main)
