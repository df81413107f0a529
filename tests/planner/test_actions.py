"""The order of a rank's work is the one that torch's schedules execute."""

import pytest
from parallel.test_stages import actions as of_torch

from megatron_yuyuan.planner.actions import actions

CASES = [
    ("1F1B", 4, 1, 6),
    ("GPipe", 4, 1, 3),
    ("LoopedBFS", 3, 2, 7),
    ("Interleaved1F1B", 2, 2, 4),
    ("Interleaved1F1B", 4, 3, 10),
    ("InterleavedZeroBubble", 4, 2, 8),
    ("InterleavedZeroBubble", 3, 3, 3),
    ("ZBVZeroBubble", 4, 2, 9),
    ("ZBVZeroBubble", 3, 2, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rank_takes_the_actions_of_torchs_table(case):
    schedule, ranks, virtual, micro_batches = case
    for rank, table in of_torch(schedule, ranks, virtual, micro_batches).items():
        own = sorted({stage for _, stage, _ in table})
        expected = [(kind, own.index(stage), micro) for kind, stage, micro in table]
        assert actions(schedule, ranks, virtual, micro_batches, rank) == expected
        assert len(expected) >= 2 * virtual * micro_batches
