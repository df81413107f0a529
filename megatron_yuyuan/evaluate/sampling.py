"""The choice of the next token, for every text of a batch: the likeliest, or drawn with a seed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_yuyuan.errors import ConfigError, ConfigErrors

LOWEST_TEMPERATURE = 1e-30
"""Of drawn tokens: below, a float32 cannot divide by it."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises ConfigErrors, naming every value that is out of range."""

    temperature: float = 0.0
    """0: the likeliest token. Above 0 the logits are divided by it, and tokens are drawn."""
    top_k: int = 0
    """Tokens are drawn from so many of the likeliest; 0: from all."""
    top_p: float = 1.0
    """Of these, from the smallest set that holds so much of the probability. Holtzman et al. 2019,
    arXiv:1904.09751, section 3.1."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the text has already, prompt included, are divided by it where they are
    positive and multiplied where negative. Keskar et al. 2019, arXiv:1909.05858, section 4.1."""
    seed: int = 0
    """Every text has a generator of its own with this seed, so that it does not depend on the texts
    beside it."""

    def __post_init__(self):
        finite, drawn = math.inf, self.temperature
        fits = {
            "temperature": (
                drawn == 0 or LOWEST_TEMPERATURE <= drawn < finite,
                "0 for the likeliest token, or 0.1 to 2",
            ),
            "top_k": (self.top_k >= 0, "0 for all tokens, or how many to draw from"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "repetition_penalty": (
                0 < self.repetition_penalty < finite,
                "1 for none, or 1.05 to 1.3",
            ),
            "seed": (-(2**63) <= self.seed < 2**64, "a whole number of 64 bits"),
        }
        problems = [
            ConfigError(f"{name}={getattr(self, name)}", "no token can be chosen so", range_)
            for name, (good, range_) in fits.items()
            if not good
        ]
        if problems:
            raise ConfigErrors(problems)

    def generators(self, texts: int) -> list[torch.Generator]:
        """One for each text. On the CPU, so that the seed means the same on every device."""
        return [torch.Generator().manual_seed(self.seed) for _ in range(texts)]

    def choose(self, logits: Tensor, texts: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The next token of every text.

        logits      (B, vocab_size) on the CPU; lost
        texts       (B, T) int64: every token that a text has, in any order and number
        generators  of the B texts
        return      (B,) int64
        """
        if self.repetition_penalty != 1:
            seen = logits.gather(1, texts)
            penalty = self.repetition_penalty
            logits.scatter_(1, texts, torch.where(seen > 0, seen / penalty, seen * penalty))
        if not self.temperature:
            return logits.argmax(1)
        logits = logits.float()
        logits -= logits.amax(1, keepdim=True)  # a tiny temperature would give inf, and inf - inf
        return self._draw(logits / self.temperature, generators)

    def _draw(self, scores: Tensor, generators: list[torch.Generator]) -> Tensor:
        """One token of each row of (B, vocab_size)."""
        kept = min(self.top_k, scores.shape[1]) or scores.shape[1]
        if kept < scores.shape[1]:
            scores, ids = scores.topk(kept)
        else:
            scores, ids = scores.sort(descending=True, stable=True)
        probabilities = scores.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # 0 at the likeliest: it is always kept
        probabilities[before >= self.top_p] = 0
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, generators, strict=True)
        ]
        return ids.gather(1, torch.stack(drawn)).squeeze(1)
