"""Text from a model: many prompts of any lengths at once, greedy, or sampled with a seed.

The prompts of a batch end in the same column, padded on their left:

    column       0  1  2  3  4 | 5  6
    text 0       a  b  c  d  e | f  g        position = column
    text 1       x  x  x  x  y | z  .        position = column - 3; the pads are a document of their own

So every step reads one column, and the keys and values of all texts lie side by side. A text that
has ended leaves the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.evaluate.sampling import Sampling
from megatron_yuyuan.model.decoding import KeyValueCache
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.parallel.forward import DividedModel

BATCH = 16
"""Texts that are generated at once where a caller does not say."""


def generate(
    model: GPT2 | DividedModel, tokens: Sequence[int], max_new_tokens: int, **options
) -> list[int]:
    """The ids that continue one prompt. Options and errors as `generate_batch`."""
    [new] = generate_batch(model, [tokens], max_new_tokens, **options)
    return new


@torch.no_grad()
def generate_batch(
    model: GPT2 | DividedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eod: int,
    use_cache: bool = True,
    **sampling,
) -> list[list[int]]:
    """The ids that continue each prompt: at most max_new_tokens, the last one `eod` where the model
    ends its text.

    sampling: the fields of `Sampling`. A whole text never exceeds max_position_embeddings. Neither
    the prompts beside it nor the cache change a text. `model` is in eval mode; of a divided one
    every rank calls alike and gets the same ids.

    Raises DataError: a prompt that is empty or leaves no position for a token; ConfigError: a value
    out of range.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}", "no text is that short", "1 or more")
    require_positions(prompts, model.config.max_position_embeddings)
    if not prompts:
        return []
    batch = _Batch(model, prompts, max_new_tokens, use_cache)
    return batch.run(Sampling(**sampling), eod)


def require_positions(prompts: Sequence[Sequence[int]], positions: int) -> None:
    """Raise DataError for a prompt that is empty or leaves no position for a token."""
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < positions:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens, the model {positions} positions",
                "a text continues a prompt of at least one token and needs a position for each of its own",
                f"a prompt of 1 to {positions - 1} tokens",
            )


class _Batch:
    """Texts on their way. B of them are not at their end yet; `ids`, `pads` and the cache hold these."""

    def __init__(self, model, prompts: Sequence[Sequence[int]], max_new_tokens: int, cached: bool):
        lengths = [len(prompt) for prompt in prompts]
        longest, positions = max(lengths), model.config.max_position_embeddings
        self.model = model
        # A pad is a token that its text has anyway: the penalty of repetitions must see no other.
        rows = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.ids = torch.tensor(rows)  # (B, columns), on the CPU
        self.pads = torch.tensor([longest - length for length in lengths])  # (B,)
        self.padded = len(set(lengths)) > 1
        self.rows = list(range(len(prompts)))  # (B,): which prompt each text continues
        self.room = [min(max_new_tokens, positions - length) for length in lengths]
        self.cache = KeyValueCache(longest + max(self.room)) if cached else None
        self.new: list[list[int]] = [[] for _ in prompts]

    def run(self, sampling: Sampling, eod: int) -> list[list[int]]:
        """Token after token, until every text has ended."""
        generators = sampling.generators(len(self.rows))
        while self.rows:
            chosen = sampling.choose(self._logits(), self.ids, generators)
            self.ids = torch.cat([self.ids, chosen[:, None]], 1)
            going = []
            for place, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True)):
                self.new[row].append(token)
                if token != eod and len(self.new[row]) < self.room[row]:
                    going.append(place)
            if len(going) < len(self.rows):
                generators = [generators[place] for place in going]
                self._keep(going)
        return self.new

    def _logits(self) -> Tensor:
        """(B, vocab_size) of the token after the last column, on the CPU, from the columns that the
        model has not read yet."""
        columns, first = self.ids.shape[1], self.cache.length if self.cache else 0
        unread = self.ids[:, first:].to(self.model.device)
        positions = torch.arange(first, columns, device=self.model.device).expand_as(unread)
        documents = None
        if self.padded:
            positions = (positions - self.pads[:, None].to(self.model.device)).clamp(min=0)
            documents = (torch.arange(columns) < self.pads[:, None]).long().to(self.model.device)
        logits = self.model(
            unread,
            positions=positions,
            document_ids=documents,
            sample_ids=unread[:, 0],
            step=0,
            cache=self.cache,
            last_token_only=True,
        )
        if self.cache:
            self.cache.advance(columns - first)
        return logits[:, -1].float().cpu()

    def _keep(self, places: list[int]) -> None:
        """Go on with these texts alone."""
        self.rows = [self.rows[place] for place in places]
        self.ids, self.pads = self.ids[places], self.pads[places]
        self.padded = bool(self.pads.any())
        if self.cache and places:
            self.cache.keep(places)


def answer(loaded: LoadedModel, question: str, max_new_tokens: int = 128, **sampling) -> str:
    """The model's answer to a question. As `answer_all`, of one."""
    [text] = answer_all(loaded, [question], max_new_tokens, **sampling)
    return text


def answer_all(
    loaded: LoadedModel,
    questions: Sequence[str],
    max_new_tokens: int = 128,
    batch_size: int = BATCH,
    **sampling,
) -> list[str]:
    """The model's answers to questions, asked through the template it was trained on, without the
    end of text.

    batch_size: how many are asked at once; sampling: the fields of `Sampling`. Raises as
    `generate_batch`.
    """
    prompts = [loaded.template.encode_prompt(loaded.tokenizer, q) for q in questions]
    texts = complete_all(loaded, prompts, max_new_tokens, batch_size, **sampling)
    return [text.strip() for text in texts]


def complete(
    loaded: LoadedModel, prompt: Sequence[int], max_new_tokens: int = 128, **sampling
) -> str:
    """The text that continues the ids of a prompt, without the end of text."""
    [text] = complete_all(loaded, [prompt], max_new_tokens, **sampling)
    return text


def complete_all(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    batch_size: int = BATCH,
    **sampling,
) -> list[str]:
    """The texts that continue the ids of prompts. Arguments as `answer_all`.

    Prompts of like length are asked together, so that little is padded.
    """
    require_positions(
        prompts, loaded.model.config.max_position_embeddings
    )  # all, before any is asked
    eod, texts = loaded.tokenizer.eod, [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        together = [prompts[number] for number in numbers]
        found = generate_batch(loaded.model, together, max_new_tokens, eod=eod, **sampling)
        for number, ids in zip(numbers, found, strict=True):
            texts[number] = loaded.tokenizer.decode(ids[:-1] if ids[-1] == eod else ids)
    return texts
