"""Who holds the logits of which tokens."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VocabularyRows:
    """Which rows of the vocabulary a head's weight holds, and how what they say is put together.

    This is the head that holds all rows. The one of a tensor rank stands in
    `parallel/cross_entropy.py`.
    """

    vocab_size: int
    """Tokens of the whole vocabulary; rows of larger numbers are padding."""
    first: int = 0
    """The token of the weight's first row."""

    def real(self, held: int) -> int:
        """How many of the `held` rows here are tokens and not padding."""
        return min(max(self.vocab_size - self.first, 0), held)

    def maximum(self, x: Tensor) -> Tensor:
        """The elementwise maximum of x over all who hold rows."""
        return x

    def total(self, x: Tensor) -> Tensor:
        """The elementwise sum of x over all who hold rows."""
        return x
