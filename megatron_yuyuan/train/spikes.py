"""Steps whose loss jumps: what the last steps say of the next one's loss.

Source: `SkipStepOptimizer` of OLMo-core, which watches the gradient norm in the same way too.
"""

import math
import statistics
from collections.abc import Sequence

WINDOW = 128
"""Losses that are remembered, those of steps that were passed over included: a lasting change of
level is accepted after a while."""
SIGMAS = 6.0


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """True for a loss above mean + 6 standard deviations of the recent ones; never before half a
    window of them is known."""
    if len(recent) < WINDOW // 2:
        return False
    mean = statistics.fmean(recent)
    variance = math.fsum((past - mean) ** 2 for past in recent) / (len(recent) - 1)
    return loss > mean + SIGMAS * math.sqrt(variance)
