"""Perplexity: what transformers computes, by tokens and not by samples."""

import math

import numpy as np
import pytest
import torch
from tiny import TINY, RandomText

from megatron_yuyuan.checkpoint.hf_format import huggingface_config, to_huggingface
from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.perplexity import perplexity
from megatron_yuyuan.model.gpt2 import GPT2, init_weights


@pytest.fixture(scope="module")
def model() -> GPT2:
    model = GPT2(TINY.model)
    init_weights(model, seed=3)
    return model.eval()


@pytest.fixture(scope="module")
def losses(model) -> list[np.ndarray]:
    """The loss of every label of the first 11 samples, by transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(**huggingface_config(model.config, 0, "float32"))).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False)
    found = []
    for number in range(11):
        tokens, labels = (torch.from_numpy(part) for part in RandomText()[number])
        with torch.no_grad():
            logits = theirs(tokens[None]).logits[0]
        each = torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORE, reduction="none"
        )
        found.append(each[labels != IGNORE].double().numpy())
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_it_is_what_transformers_computes(model, losses, batch_size):
    found = perplexity(model, RandomText(), limit=11, batch_size=batch_size)
    expected = np.concatenate(losses).mean()
    assert found["tokens"] == sum(map(len, losses))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    mean_of_means = np.mean([each.mean() for each in losses])
    assert abs(mean_of_means - expected) > 1e-3 * expected  # the other reading would fail this test


def test_without_a_limit_every_sample_counts_once(model):
    data = RandomText(length=10)
    whole = perplexity(model, data)
    assert whole == perplexity(model, data, limit=10) == perplexity(model, data, limit=99)
    assert whole["tokens"] == sum(int((data[n][1] != IGNORE).sum()) for n in range(10))


def test_nothing_to_predict_is_refused(model):
    class Silent(RandomText):
        def __getitem__(self, number):
            tokens, labels = super().__getitem__(number)
            return tokens, np.full_like(labels, IGNORE)

    with pytest.raises(DataError, match="no label to predict"):
        perplexity(model, Silent(length=3))
