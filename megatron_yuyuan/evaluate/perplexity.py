"""Perplexity: how many tokens the model hesitates between, on average, before each that is
learned."""

import torch

from megatron_yuyuan.data.loader import Dataset, read_batch
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.model.gpt2 import GPT2


@torch.inference_mode()
def perplexity(model: GPT2, dataset: Dataset, limit: int = 0, batch_size: int = 8) -> dict:
    """{"loss": nats a token, "perplexity": exp(loss), "tokens": labels} over the first `limit`
    samples (0: all).

    The sum of all losses over the number of all labels, never a mean of means: samples of any
    length weigh by their tokens, and batch_size changes the time alone. `model` is in eval mode.
    Raises DataError: nothing is learned there.
    """
    samples = min(limit or len(dataset), len(dataset))
    loss, tokens = 0.0, 0.0
    for consumed in range(0, samples, batch_size):
        batch = read_batch(
            dataset, consumed, batch_size, 0, 1, model.wte.weight.device, limit=samples
        )
        losses, count = model(batch.tokens, labels=batch.labels, step=0, **batch.sides())
        loss, tokens = loss + losses.item(), tokens + count.item()
    if not tokens:
        raise DataError(
            f"no label to predict in {samples} samples",
            "a mean of nothing is not a number",
            "data with at least one token after a prompt",
        )
    mean = torch.tensor(loss / tokens, dtype=torch.float64)
    return {"loss": mean.item(), "perplexity": mean.exp().item(), "tokens": int(tokens)}
