"""Logits of the next tokens are one function, however many texts ask for them."""

import pytest
import torch
import torch.nn.functional as F

from megatron_yuyuan.model import decoding
from megatron_yuyuan.model.decoding import FEW_TEXTS, next_logits


@pytest.mark.parametrize("texts", [1, 2, FEW_TEXTS - 1, FEW_TEXTS, 15, 16, 17, 24, 33])
@pytest.mark.parametrize("tokens", [1, 2])
def test_it_is_the_product_as_it_is_written(monkeypatch, texts, tokens):
    """The other way is taken from FEW_TEXTS on, where each asks for one token and W is large and lies by
    columns."""
    monkeypatch.setattr(decoding, "LARGE", 41 * 24)
    draw, as_written = torch.Generator().manual_seed(0), []
    x = torch.randn(texts, tokens, 24, generator=draw)
    by_columns = torch.randn(24, 50, generator=draw).t()
    weight, expected = by_columns[:41], F.linear(x, by_columns[:41])

    def watched(x, weight):
        as_written.append(weight)
        return expected

    monkeypatch.setattr(decoding.F, "linear", watched)
    found = next_logits(x, weight)
    assert found.shape == (texts, tokens, 41)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert bool(as_written) is (texts < FEW_TEXTS or tokens > 1)
    next_logits(x, weight.contiguous())
    assert len(as_written) == (2 if texts < FEW_TEXTS or tokens > 1 else 1)
    next_logits(x, by_columns[:40])
    assert as_written[-1].shape == (40, 24)
