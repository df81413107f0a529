"""How likely a model finds a text, token by token, alone or after a context."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.errors import DataError

LOGITS_IN_A_BATCH = 1 << 26
"""256 MiB in float32: a batch holds as many rows as stay below, and one at least."""


@dataclass(frozen=True)
class Surprise:
    """One text as a model reads it."""

    tokens: tuple[str, ...]
    """The text in the tokenizer's pieces."""
    log_probabilities: tuple[float, ...]
    """Of each token after all that stands before it, in nats."""
    context_cut: int = 0
    """Tokens at the beginning of the context for which there was no position."""

    @property
    def mean(self) -> float:
        """Log-likelihood normalised by length; exp(-mean) is the perplexity of the text."""
        return sum(self.log_probabilities) / len(self.log_probabilities)


class LikelihoodScorer:
    """Scores texts with one model, in batches of similar length.

    Row: end of text, context, text. The end of text is what a document begins after. Padding stands
    on the right, where a causal model does not see it, so that the batch does not change a score
    but for the order of float32 sums.
    """

    def __init__(self, loaded: LoadedModel):
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.positions = loaded.model.config.max_position_embeddings
        self.vocab_size = loaded.model.config.vocab_size

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Mean log-likelihood of each text, as `statements.Scorer`."""
        return [surprise.mean for surprise in self.surprises(texts)]

    def surprises(self, texts: Sequence[str], contexts: Sequence[str] = ()) -> list[Surprise]:
        """What the model makes of each text, after the context at its place ("" for none).

        A context that does not fit loses its beginning: what is concluded stands at the end. Raises
        DataError: an empty text, or one longer than the model's positions.
        """
        rows = [
            self._row(text, context)
            for text, context in zip(texts, contexts or [""] * len(texts), strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        found: dict[int, list[float]] = {}
        while order:
            longest = len(rows[order[-1]][0])
            size = max(1, LOGITS_IN_A_BATCH // (longest * self.vocab_size))
            batch, order = order[-size:], order[:-size]
            scored = self._log_probabilities([rows[i][0] for i in batch])
            found |= dict(zip(batch, scored, strict=True))
        return [self._surprise(row, found[i]) for i, row in enumerate(rows)]

    def text_ids(self, text: str, context: str = "") -> list[int]:
        """The tokens of a text behind its context. Raises DataError: none, or more than fit."""
        ids = self.tokenizer.encode(f" {text}" if context.strip() else text)
        if not 0 < len(ids) < self.positions:
            raise DataError(
                f"a text of {len(ids)} tokens: {text[:60]!r}",
                f"it has {len(ids)} tokens, and the model scores 1 to {self.positions - 1} at once",
                "a shorter statement that is not empty",
            )
        return ids

    def _row(self, text: str, context: str) -> tuple[list[int], int, int]:
        """(ids of the row, how many of them are the text, how many of the context are left out)."""
        ids, context = self.text_ids(text, context), context.strip()
        before = self.tokenizer.encode(context) if context else []
        cut = max(0, len(before) + len(ids) - (self.positions - 1))
        return [self.tokenizer.eod, *before[cut:], *ids], len(ids), cut

    @torch.inference_mode()
    def _log_probabilities(self, rows: list[list[int]]) -> list[list[float]]:
        """Of every token of every row but the first, given those before it."""
        length = max(map(len, rows))
        tokens = torch.full((len(rows), length), self.tokenizer.eod)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        tokens = tokens.to(self.model.device)
        positions = torch.arange(length, device=tokens.device).expand_as(tokens)
        logits = self.model(tokens, positions=positions, sample_ids=tokens[:, 0], step=0)
        chosen = logits[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2).float()
        logp = (chosen - logits[:, :-1].float().logsumexp(2)).cpu()
        return [logp[i, : len(row) - 1].tolist() for i, row in enumerate(rows)]

    def _surprise(self, row: tuple[list[int], int, int], logp: list[float]) -> Surprise:
        ids, size, cut = row
        tokens = tuple(self.tokenizer.decode([token]) for token in ids[-size:])
        return Surprise(tokens, tuple(logp[-size:]), cut)
