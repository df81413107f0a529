"""The generator of everything random."""

import pytest
import torch

from megatron_yuyuan.kernels.philox import WORD, name_key, normal, philox4x32, random_words

KNOWN_ANSWERS = [  # Random123, tests/kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox4x32(tuple(map(torch.tensor, counter)), key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("columns", [1, 4, 7, 8])
def test_a_slice_of_rows_draws_what_the_whole_draws_there(columns):
    rows = torch.arange(30).view(5, 6) + 2**33  # beyond one word
    whole = random_words(rows, columns, 5, 3, 2)
    assert whole.shape == (5, 6, columns)
    assert torch.equal(random_words(rows[2:4, 1:], columns, 5, 3, 2), whole[2:4, 1:])
    assert whole.unique().numel() == whole.numel()


def test_every_part_of_the_counter_and_the_key_matters():
    rows = torch.arange(50)
    draws = [
        random_words(rows, 4, key, step, site)
        for key in (1, 1 << 32)
        for step in (0, 1)
        for site in (0, 1)
    ]
    for i, one in enumerate(draws):
        assert all(not (one == other).any() for other in draws[:i])


def test_normal_numbers_are_a_sequence_of_which_any_part_can_be_drawn():
    key = name_key(1234, "wte.weight")
    whole = normal(0, (1 << 20) + 40, key)
    for start, stop in [(0, 1), (3, 9), (5, 5), ((1 << 20) - 3, (1 << 20) + 11)]:
        assert torch.equal(normal(start, stop, key), whole[start:stop])
    assert abs(whole.mean()) < 5e-3
    assert abs(whole.std() - 1) < 5e-3
    assert abs((whole**4).mean() - 3) < 5e-2
    assert not torch.equal(normal(0, 9, name_key(1234, "wpe.weight")), whole[:9])
