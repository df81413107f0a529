"""Errors as ranks send them to each other."""

import pickle

import pytest

from megatron_yuyuan.errors import (
    BrokenError,
    ConfigError,
    ConfigErrors,
    DataError,
    MachineError,
    StoppedError,
)

PROBLEM = ("what", "why", "remedy")
CULPRIT = {"rank": 1, "host": "node7"}


@pytest.mark.parametrize(
    "error",
    [
        DataError(*PROBLEM),
        ConfigErrors([ConfigError(*PROBLEM), ConfigError("other", "why", "remedy")]),
        BrokenError("what"),
        MachineError(*PROBLEM, CULPRIT),
        StoppedError(*PROBLEM, "a stop"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was_sent(error):
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error) and str(arrived) == str(error)
    assert {k: str(v) for k, v in vars(arrived).items()} == {
        k: str(v) for k, v in vars(error).items()
    }
