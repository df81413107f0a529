"""Text from a model, one prompt at a time: greedy, or sampled with a seed of its own."""

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.model.gpt2 import GPT2, KeyValueCache
from megatron_yuyuan.parallel.forward import DividedModel


@torch.no_grad()
def generate(
    model: GPT2 | DividedModel,
    tokens: list[int],
    max_new_tokens: int,
    *,
    eod: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
) -> list[int]:
    """The ids that continue `tokens`: at most max_new_tokens, the last one `eod` where the model
    ends its text.

    Temperature 0 takes the likeliest token; above it tokens are drawn from the top_k likeliest (0:
    all) within the smallest set that holds top_p of the probability, by a generator seeded with
    `seed`. The whole text never exceeds max_position_embeddings. The cache changes the time, not
    the ids. `model` is in eval mode; of a divided one every rank calls alike and gets the same ids.

    Raises DataError: an empty prompt, or one that leaves no position for a token; ConfigError: a
    value out of range.
    """
    _check_sampling(max_new_tokens, temperature, top_k, top_p)
    positions = model.config.max_position_embeddings
    if not 0 < len(tokens) < positions:
        raise DataError(
            f"the prompt has {len(tokens)} tokens, the model {positions} positions",
            "a text continues a prompt of at least one token and needs a position for each of its own",
            f"a prompt of 1 to {positions - 1} tokens",
        )
    generator = torch.Generator().manual_seed(seed)
    ids, stop = list(tokens), min(len(tokens) + max_new_tokens, positions)
    cache = KeyValueCache(stop) if use_cache else None
    while len(ids) < stop:
        first = cache.length if cache else 0
        unread = torch.tensor([ids[first:]], device=model.device)
        places = torch.arange(first, len(ids), device=model.device)[None]
        logits = model(unread, positions=places, sample_ids=unread[:, 0], step=0, cache=cache)[
            0, -1
        ]
        if cache:
            cache.advance(unread.shape[1])
        ids.append(_choose(logits.float().cpu(), temperature, top_k, top_p, generator))
        if ids[-1] == eod:
            break
    return ids[len(tokens) :]


def answer(loaded: LoadedModel, question: str, max_new_tokens: int = 128, **sampling) -> str:
    """The model's answer to a question, asked through the template it was trained on, without the
    end of text.

    `sampling`: temperature, top_k, top_p, seed as in `generate`, whose errors it raises.
    """
    prompt = loaded.template.encode_prompt(loaded.tokenizer, question)
    return complete(loaded, prompt, max_new_tokens, **sampling).strip()


def complete(loaded: LoadedModel, prompt: list[int], max_new_tokens: int, **sampling) -> str:
    """The text that continues the ids of a prompt, without the end of text."""
    eod = loaded.tokenizer.eod
    ids = generate(loaded.model, prompt, max_new_tokens, eod=eod, **sampling)
    return loaded.tokenizer.decode(ids[:-1] if ids[-1] == eod else ids)


def _choose(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> int:
    """One id by logits (vocab_size,) float32. On the CPU, so that the seed means the same on every
    device."""
    if temperature == 0:
        return int(logits.argmax())
    ordered, ids = (logits / temperature).sort(descending=True, stable=True)
    probabilities = ordered[: top_k or None].softmax(0)
    before = (
        probabilities.cumsum(0) - probabilities
    )  # what the likelier ones hold: the first is always kept
    probabilities[before >= top_p] = 0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def _check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    for name, value, fits, range_ in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        (
            "temperature",
            temperature,
            0 <= temperature < float("inf"),
            "0 for the likeliest token, or 0.1 to 2",
        ),
        ("top_k", top_k, top_k >= 0, "0 for all tokens, or how many to draw from"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0, at most 1"),
    ):
        if not fits:
            raise ConfigError(f"{name}={value}", "no token can be chosen so", range_)
