"""Bugs for test_planted_bugs.py to plant. To add one: what it is, the file, a text that occurs in it
once, what replaces it, and a test with its arguments that must fail."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernels import (
    test_adamw,
    test_causal_softmax,
    test_cross_entropy,
    test_gelu,
    test_layer_norm,
    test_residual,
)

FLOAT, BFLOAT = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Bug:
    """One planted bug."""

    name: str
    file: str
    """Of csrc, in which `old` occurs once."""
    old: str
    new: str
    test: Callable
    arguments: tuple

    @property
    def compiled(self) -> str:
        """The kernel file that the test is about: test_gelu.py, gelu.cu."""
        return self.test.__module__.rpartition("test_")[2] + ".cu"


norm = test_layer_norm.test_forward_and_backward_are_those_of_float64
branch = test_layer_norm.test_with_a_branch_in_front_the_same_pass_returns_its_gradient
norm_of_sum = test_layer_norm.test_norm_of_a_sum_is_the_norm_of_the_sum_as_it_was_stored
blocks = test_layer_norm.test_the_number_of_blocks_changes_no_bit_of_dx_and_little_of_the_sums
far = test_layer_norm.test_a_row_far_from_zero_keeps_its_variance
residual = test_residual.test_sum_has_the_bits_of_the_reference
device = test_residual.test_the_size_of_the_device_changes_no_bit
gelu = test_gelu.test_forward_and_backward_are_those_of_float64
cross_entropy = test_cross_entropy.check
adamw = test_adamw.check_steps
squared_norm = test_adamw.check_squared_norm
softmax = test_causal_softmax.check

SHAPE = (3, 264)
RANKS = ((24, 16), 37)  # columns of two ranks, of a vocabulary of 37
LAST = (1, 5, 16)  # one matrix, the last five queries of sixteen

BUGS = [
    Bug(
        "no barrier between writing and reading the sums of the warps",
        "reduce.cuh",
        "    }\n    __syncthreads();\n#pragma unroll",
        "    }\n#pragma unroll",
        norm,
        ((2, 1024), FLOAT, "forward"),
    ),
    Bug(
        "a fast warp overwrites sums that a slow one has yet to read",
        "reduce.cuh",
        "    __syncthreads();  // the last call's results may still be being read\n",
        "",
        norm,
        ((2, 3072), FLOAT, "warp_greedy"),
    ),
    Bug(
        "a barrier that only one warp reaches",
        "reduce.cuh",
        "    }\n    __syncthreads();\n#pragma unroll",
        "    }\n    if (warp == 0) __syncthreads();\n#pragma unroll",
        norm,
        ((2, 1024), FLOAT, "forward"),
    ),
    Bug(
        "threads beyond the row return before the barrier",
        "layer_norm.cu",
        "    int64_t row = blockIdx.x;\n",
        "    int64_t row = blockIdx.x;\n    if (int(threadIdx.x) >= columns / 8) return;\n",
        norm,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "the last step of the warp's sum is lost",
        "reduce.cuh",
        "lanes > 0; lanes /= 2",
        "lanes > 1; lanes /= 2",
        norm,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "a block's partial sum is lost",
        "reduce.cuh",
        "block < blocks; block += kSumWarps",
        "block < blocks - 1; block += kSumWarps",
        gelu,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "every column sum is the first",
        "reduce.cuh",
        "    partial += int64_t(blockIdx.y) * blocks * columns;\n",
        "",
        norm,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "the warps' column sums are read before they are written",
        "reduce.cuh",
        "    sums[warp][lane] = sum;\n    __syncthreads();\n",
        "    sums[warp][lane] = sum;\n",
        gelu,
        ((7, 1032), FLOAT, "forward"),
    ),
    Bug(
        "a thread writes a vector beyond its row",
        "layer_norm.cu",
        "if (column < columns) body(q, column);",
        "if (column <= columns) body(q, column);",
        norm,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "the sum of a row is kept in bfloat16",
        "layer_norm.cu",
        "sum += x.values[q][i];",
        "sum = to_float(round_to<T>(sum + x.values[q][i]));",
        norm,
        ((5, 1024), BFLOAT, "forward"),
    ),
    Bug(
        "the variance is a difference of two large numbers",
        "layer_norm.cu",
        "            x.values[q][i] -= mean;\n"
        "            squares += x.values[q][i] * x.values[q][i];\n",
        "            squares += x.values[q][i] * x.values[q][i] - mean * mean;\n"
        "            x.values[q][i] -= mean;\n",
        far,
        (FLOAT,),
    ),
    Bug(
        "dx without its term in the normalised row",
        "layer_norm.cu",
        " - r.normalised.values[q][i] * mean_gn)",
        " - 0 * r.normalised.values[q][i] * mean_gn)",
        norm,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "a block takes every row of the first round only",
        "layer_norm.cu",
        "row < rows; row += gridDim.x",
        "row < gridDim.x && row < rows; row += gridDim.x",
        blocks,
        (FLOAT,),
    ),
    Bug(
        "the branch's gradient is not dropped again",
        "layer_norm.cu",
        "        drop<size>(dx, b.dropout, row, column, columns);\n",
        "",
        branch,
        (SHAPE, BFLOAT, "forward"),
    ),
    Bug(
        "the norm is of the sum before it was rounded",
        "layer_norm.cu",
        "values[i] = to_float(round_to<T>(values[i]));",
        "values[i] = values[i];",
        norm_of_sum,
        ((2, 3080), BFLOAT, "forward"),
    ),
    Bug(
        "the mask counts the rows of this rank",
        "dropout.cuh",
        "uint64_t(dropout.rows[row]) *",
        "uint64_t(row) *",
        residual,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "the mask depends on the grid",
        "dropout.cuh",
        "uint64_t(dropout.rows[row]) *",
        "uint64_t(dropout.rows[row] + gridDim.y) *",
        device,
        (FLOAT,),
    ),
    Bug(
        "the mask repeats itself after 2^32 counters",
        "dropout.cuh",
        "uint32_t(index >> 32), dropout.step",
        "0u, dropout.step",
        residual,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "the kept elements are divided by 1 - p, not multiplied by 1 / (1 - p)",
        "dropout.cuh",
        "__fmul_rn(value, dropout.scale)",
        "value / (1.0f / dropout.scale)",
        residual,
        ((5, 1024), FLOAT, "forward"),
    ),
    Bug(
        "the tail of the columns is left out",
        "columns.cuh",
        "unsigned(ceil_divide(vectors, kColumnThreads))",
        "unsigned(vectors / kColumnThreads)",
        gelu,
        ((7, 1032), BFLOAT, "forward"),
    ),
    Bug(
        "a derivative without the 3 of the cube",
        "gelu.cu",
        "(1.0f + 3.0f * kCubic * u * u)",
        "(1.0f + kCubic * u * u)",
        gelu,
        (SHAPE, BFLOAT, "forward"),
    ),
    Bug(
        "a constant of four digits",
        "gelu.cu",
        "kSqrt2OverPi = 0.7978845608028654f",
        "kSqrt2OverPi = 0.7979f",
        gelu,
        (SHAPE, FLOAT, "forward"),
    ),
    Bug(
        "exponentials of whole logits",
        "cross_entropy.cu",
        "float shift = next == -INFINITY ? 0.0f : next;",
        "float shift = 0.0f;",
        cross_entropy,
        (*RANKS, FLOAT),
    ),
    Bug(
        "every rank takes its first column for token 0",
        "cross_entropy.cu",
        "first <= label && label - first < real ? int(label - first) : -1",
        "first * 0 <= label && label < real ? int(label) : -1",
        cross_entropy,
        (*RANKS, BFLOAT),
    ),
    Bug(
        "the padding counts as tokens",
        "cross_entropy.cu",
        "x[i] = start + i < real ? x[i] : -INFINITY;",
        "",
        cross_entropy,
        (*RANKS, FLOAT),
    ),
    Bug(
        "the exponential of a row that is not read, times a weight of 0",
        "cross_entropy.cu",
        "&& row_weight != 0.0f ? slope",
        "? slope",
        cross_entropy,
        (*RANKS, FLOAT),
    ),
    Bug(
        "the first moment as if it had been averaged for ever",
        "adamw.cu",
        "step_size * m",
        "rate * m",
        adamw,
        (),
    ),
    Bug(
        "the decay goes through the moments",
        "adamw.cu",
        "p *= 1.0f - rate * decay;",
        "g += decay * p;",
        adamw,
        (),
    ),
    Bug(
        "the tail of a gradient is not counted",
        "adamw.cu",
        "for (int64_t i = whole * size + threadIdx.x; i < count; i += blockDim.x)",
        "for (int64_t i = whole * size + threadIdx.x; i < count / size * size; i += blockDim.x)",
        squared_norm,
        (),
    ),
    Bug(
        "the threads add in the order in which they come",
        "adamw.cu",
        "    sum = block_reduce<Sum>(sum);\n    if (threadIdx.x == 0) partial[blockIdx.x] = sum;\n",
        "    if (threadIdx.x == 0) partial[blockIdx.x] = 0.0;\n    __syncthreads();\n"
        "    partial[blockIdx.x] += sum;\n",
        squared_norm,
        (),
    ),
    Bug(
        "a query sees the next token",
        "causal_softmax.cu",
        "visible(columns - queries + 1 +",
        "visible(columns - queries + 2 +",
        softmax,
        (*LAST, BFLOAT),
    ),
]
