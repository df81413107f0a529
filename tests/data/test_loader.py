"""Batches at the borders of documents, as Megatron-LM makes them."""

import numpy as np
import pytest
import torch

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.loader import Borders, read_batch

EOD = 0


class Samples:
    """Windows of random tokens, one in five an end of text: also at both ends, and next to another."""

    def __len__(self):
        return 64

    def __getitem__(self, number):
        text = np.random.default_rng(number).integers(0, 5, 17)
        return text[:-1], text[1:]


def megatron(tokens, borders):
    reference = pytest.importorskip(
        "megatron.core.datasets.gpt_dataset", reason="needs megatron-core, the reference"
    )
    flags = borders.reset_position_ids, borders.reset_attention_mask, borders.eod_mask_loss
    return reference._get_ltor_masks_and_position_ids(tokens, borders.eod, *flags, True)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("loss", [False, True])
def test_masks_and_positions_are_megatrons(positions, attention, loss):
    from megatron_yuyuan.model.gpt2 import Attention, causal_mask

    borders = Borders(EOD, positions, attention, loss)
    plain = read_batch(Samples(), 0, 64, 0, 1, "cpu")
    batch = read_batch(Samples(), 0, 64, 0, 1, "cpu", borders=borders)
    assert torch.equal(batch.tokens, plain.tokens)
    mask = Attention.mask(16, 16, batch.document_ids, "cpu")
    assert (mask is None) == (not attention)
    mask = (causal_mask(16, 16, "cpu") if mask is None else mask).expand(64, 1, 16, 16)
    for i in range(64):
        hidden, learned, places = megatron(batch.tokens[i], borders)
        assert torch.equal(mask[i], ~hidden)
        assert torch.equal(batch.positions[i], places)
        expected = plain.labels[i].masked_fill(learned == 0, IGNORE)
        assert torch.equal(batch.labels[i], expected)
    changed = (batch.positions != plain.positions).any(), (batch.labels != plain.labels).any()
    assert [bool(c) for c in changed] == [positions, loss]  # not vacuous


def test_micro_batches_and_data_ranks_keep_their_documents():
    borders = Borders(EOD, True, True, True)
    whole = read_batch(Samples(), 8, 8, 0, 1, "cpu", borders=borders)
    parts = [read_batch(Samples(), 8, 8, rank, 2, "cpu", borders=borders) for rank in (0, 1)]
    for cut in (parts, whole.split(4)):
        for name, tensor in vars(whole).items():
            assert torch.equal(torch.cat([getattr(part, name) for part in cut]), tensor), name
    assert "document_ids" in whole.model_inputs()
    plain = read_batch(Samples(), 8, 8, 0, 1, "cpu")
    assert "document_ids" not in plain.model_inputs() and plain.split(2)[1].document_ids is None
