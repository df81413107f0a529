"""bias + dropout + residual under the emulator: the bits of the reference, on every geometry."""

import pytest
import torch
from kernels import emulated, parity
from kernels.emulated import DTYPES, SCHEDULES, launch, poisoned

from megatron_yuyuan.kernels import reference
from megatron_yuyuan.kernels.mask import DropoutMask

SHAPES = [(1, 8), (5, 1024), (3, 3072), (7, 1032)]  # (rows, columns)
"""One vector, whole blocks, the 3.5B model, one vector more than whole blocks."""

CASES = [
    pytest.param(shape, dtype, schedule, id=f"{shape[0]}x{shape[1]}-{str(dtype)[6:]}-{schedule}")
    for shape in SHAPES
    for dtype in DTYPES
    for schedule in SCHEDULES
]


FLOAT32, BFLOAT16 = 0, 2  # as launchers.h numbers them


def random(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dropout_mask(rows, p=0.1, key=2**63 + 12345):
    """Of rows that are not the first of the batch: an index beyond 32 bits, and in no order."""
    return DropoutMask(p, (torch.arange(rows) * 977 + 2**33) % (2**33 + 1000), key, step=5, site=9)


def bias_dropout_add(x, bias, residual, mask):
    total = poisoned(*x.shape, dtype=x.dtype)
    dropout = emulated.dropout(mask)
    arguments = (x.dtype, x, bias, residual, total, dropout, *x.shape)
    launch("yuyuan_bias_dropout_add", *arguments)
    return total


def backward(dsum, mask, blocks=2):
    """(dx, dbias)"""
    rows, columns = dsum.shape
    dx, dbias = poisoned(rows, columns, dtype=dsum.dtype), poisoned(columns, dtype=dsum.dtype)
    partial, dropout = poisoned(blocks, columns), emulated.dropout(mask)
    arguments = (dsum.dtype, dsum, dx, dbias, dropout, partial, blocks, rows, columns)
    launch("yuyuan_bias_dropout_add_backward", *arguments)
    return dx, dbias


@pytest.mark.parametrize(("shape", "dtype", "schedule"), CASES)
def test_sum_has_the_bits_of_the_reference(shape, dtype, schedule):
    x, residual = (random(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    bias, mask = random(shape[1], dtype=dtype, seed=2), dropout_mask(shape[0])
    with emulated.schedule(schedule):
        total = bias_dropout_add(x, bias, residual, mask)
    assert torch.equal(total, reference.bias_dropout_add(x, bias, residual, mask))
    assert not torch.equal(total, reference.bias_dropout_add(x, bias, residual, None))


@pytest.mark.parametrize(("shape", "dtype", "schedule"), CASES)
def test_backward_drops_the_same_elements_and_sums_the_columns(shape, dtype, schedule):
    dsum, mask = random(*shape, dtype=dtype, seed=3), dropout_mask(shape[0])
    with emulated.schedule(schedule):
        dx, dbias = backward(dsum, mask)
    assert torch.equal(dx, reference.dropout(dsum, mask))
    exact = dsum.double() * mask.kept(shape[1]) / (1 - mask.p)
    parity.assert_near(dx, exact, "dx")
    parity.assert_near(dbias, exact.sum(0), "dbias")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_part_can_be_left_out(dtype):
    x, residual = (random(3, 40, dtype=dtype, seed=seed) for seed in (0, 1))
    bias, mask = random(40, dtype=dtype, seed=2), dropout_mask(3)
    none = torch.zeros(40, dtype=dtype)
    expected = reference.bias_dropout_add(x, none, residual, mask)
    assert torch.equal(bias_dropout_add(x, None, residual, mask), expected)
    assert torch.equal(bias_dropout_add(x, None, None, mask), reference.dropout(x, mask))
    expected = reference.bias_dropout_add(x, bias, residual, None)
    assert torch.equal(bias_dropout_add(x, bias, residual, None), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_is_read_and_rounded_as_torch_does(dtype):
    """All 65,536 bit patterns, as they are and moved by less than a unit: subnormal, half way
    between two, infinite, not a number."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(64, 1024)
    assert_same(bias_dropout_add(patterns, None, None, None), patterns)
    moved = random(64, 1024, dtype=dtype, seed=0) * patterns.float().nan_to_num(0, 0, 0) / 256
    moved = moved.to(dtype)
    assert_same(
        bias_dropout_add(patterns, None, moved, None), (patterns.float() + moved.float()).to(dtype)
    )


def assert_same(actual, expected):
    """The same bits, but one NaN is as good as another."""
    number = ~expected.isnan()
    assert torch.equal(number, ~actual.isnan())
    assert torch.equal(actual[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_size_of_the_device_changes_no_bit(dtype):
    x, residual = (random(40, 3072, dtype=dtype, seed=seed) for seed in (0, 1))
    bias, mask = random(3072, dtype=dtype, seed=2), dropout_mask(40)
    totals = []
    for multiprocessors in (1, 2, 132):
        with emulated.schedule("random", multiprocessors=multiprocessors):
            totals.append(bias_dropout_add(x, bias, residual, mask))
    assert torch.equal(totals[0], totals[1])
    assert torch.equal(totals[0], totals[2])


def test_the_number_of_blocks_changes_no_bit_of_dx_and_little_of_dbias():
    dsum, mask = random(9, 264, dtype=torch.float32, seed=3), dropout_mask(9)
    exact = (dsum.double() * mask.kept(264) / (1 - mask.p)).sum(0)
    for blocks in (1, 2, 4, 20):  # 20: more than there are rows
        dx, dbias = backward(dsum, mask, blocks)
        assert torch.equal(dx, reference.dropout(dsum, mask))
        parity.assert_near(dbias, exact, "dbias")


def test_backwards_of_columns_get_1536_threads_a_multiprocessor_and_not_more_blocks_than_rows():
    """12 blocks of 128 threads, shared by the groups of columns: 128 of 4 float32 or 8 bfloat16."""
    count, wide = emulated.kernels().yuyuan_column_blocks, (8, 768, 1024, 3072, 12288, 99 * 1024)
    with emulated.schedule("forward", multiprocessors=5):
        assert [count(FLOAT32, 9999, columns) for columns in wide] == [60, 30, 30, 10, 2, 1]
        assert [count(BFLOAT16, 9999, columns) for columns in wide] == [60, 60, 60, 20, 5, 1]
        assert [count(BFLOAT16, rows, 768) for rows in (0, 3)] == [0, 3]


KNOWN_ANSWERS = [  # Random123, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, words
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_known_answers_of_the_generator(counter, key, words, dtype):
    """An element is kept where its word is at least the threshold: kept at the word itself, dropped
    one above it. A row of 8 has 2 counters, so that row i // 2 has counter i."""
    index = counter[0] | counter[1] << 32
    ones, first = torch.ones(1, 8, dtype=dtype), index % 2 * 4
    for place, word in enumerate(words):
        for threshold, kept in [(word, True), (word + 1, False)]:
            dropout = emulated.dropout(
                DropoutMask(0.5, torch.tensor([index // 2]), key, *counter[2:])
            )
            dropout.threshold = threshold
            total = poisoned(1, 8, dtype=dtype)
            launch("yuyuan_bias_dropout_add", dtype, ones, None, None, total, dropout, 1, 8)
            assert bool(total[0, first + place]) == kept
