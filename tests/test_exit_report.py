"""exit.json says how a run ended, and only of the run that ended."""

import json
from types import SimpleNamespace

import pytest

from megatron_yuyuan import exit_report
from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.config import CheckpointConfig
from megatron_yuyuan.errors import ConfigError, DataError, StoppedError
from megatron_yuyuan.exit_report import EXIT_FILE, exit_reported, forget_exit, stopped
from megatron_yuyuan.train.stopping import Stop

SIGNAL = Stop("signal", "SIGUSR1", 3, "node7")


def state(is_main: bool = True):
    return SimpleNamespace(iteration=812, mesh=SimpleNamespace(is_main=is_main))


def report_of(directory, error=None, is_main: bool = True) -> dict | None:
    """What a run that ends so leaves in a directory with one checkpoint."""
    (directory / "iter_0000812").mkdir(exist_ok=True)
    (directory / "iter_0000812" / "manifest.json").touch()
    checkpoint = CheckpointConfig(save=str(directory))
    try:
        with exit_reported(checkpoint, state(is_main)):
            if error:
                raise error
    except type(error):
        pass
    path = directory / EXIT_FILE
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("error", "kind", "status", "cause"),
    [
        (None, "done", 0, "every iteration is taken"),
        (DataError("a", "b", "c"), "data", 2, "a"),
        (ConfigError("a", "b", "c"), "usage", 2, "a"),
        (StoppedError("a", "b", "c", SIGNAL), "signal", 75, "SIGUSR1"),
    ],
)
def test_every_end_is_reported(tmp_path, error, kind, status, cause):
    report = report_of(tmp_path, error)
    assert (report["class"], report["status"], report["cause"]) == (kind, status, cause)
    assert (report["step"], report["resume_from"]) == (812, str(tmp_path / "iter_0000812"))
    assert (report["rank"], report["host"] == "node7") == (
        (3, True) if status == 75 else (0, False)
    )


@pytest.mark.parametrize(
    "error",
    [StoppedError("a", "b", "c", SIGNAL), ConfigError("a", "b", "c")],
    ids=["stopped", "refused"],
)
def test_a_report_that_cannot_be_written_takes_no_errors_place(tmp_path, error):
    (tmp_path / "file").write_text("")
    checkpoint = CheckpointConfig(save=str(tmp_path / "file" / "run"))
    with pytest.raises(type(error)) as raised, exit_reported(checkpoint, state()):
        raise error
    assert raised.value is error
    cannot_write = pytest.raises(DataError, match=r"cannot write .*exit\.json")
    with cannot_write, exit_reported(checkpoint, state()):
        pass


def test_other_ranks_report_only_an_error_that_rank_0_does_not_see(tmp_path):
    stop = StoppedError("a", "b", "c", SIGNAL)
    assert [report_of(tmp_path, error, is_main=False) for error in (None, stop)] == [None, None]
    assert report_of(tmp_path, DataError("only here", "b", "c"), is_main=False)["class"] == "data"
    second = report_of(tmp_path, DataError("here too", "b", "c"), is_main=False)
    assert second["cause"] == "only here"
    assert report_of(tmp_path, DataError("everywhere", "b", "c"))["cause"] == "everywhere"


def test_a_bug_is_reported_by_the_witness_alone(tmp_path):
    assert report_of(tmp_path, ZeroDivisionError()) is None


def test_a_run_that_starts_forgets_how_the_one_before_ended(tmp_path):
    assert report_of(tmp_path) is not None
    forget_exit(CheckpointConfig(save=str(tmp_path)))
    assert not (tmp_path / EXIT_FILE).exists()
    for place in (tmp_path, tmp_path / "nowhere"):
        forget_exit(CheckpointConfig(save=str(place)))  # nothing is there, and none is made
    assert not (tmp_path / "nowhere").exists()


def test_who_stopped_the_run_and_what_is_left_of_it(tmp_path):
    error = stopped(SIGNAL, CheckpointConfig(), state())
    assert error.what == "stopped after iteration 812: SIGUSR1 on rank 3 (node7)"
    assert error.why == "its state is lost: there is no --save"
    report_of(tmp_path)
    saved = stopped(SIGNAL, CheckpointConfig(save=str(tmp_path)), state())
    assert saved.why == f"its state is saved in {tmp_path / 'iter_0000812'}"


@pytest.mark.parametrize(
    ("flags", "goes_on"),
    [
        ({}, True),
        ({"load": "elsewhere"}, False),
        ({"load": "elsewhere", "finetune": True}, True),
        ({"load": "hf:elsewhere"}, True),
        ({"ckpt_step": 3}, False),
    ],
    ids=str,
)
def test_the_same_command_again_is_advised_where_it_goes_on(tmp_path, flags, goes_on):
    report_of(tmp_path)
    error = stopped(SIGNAL, CheckpointConfig(save=str(tmp_path), **flags), state())
    assert error.remedy.startswith(
        "the same command again" if goes_on else "the same command without --load"
    )


def reasons_where_rank_1_sees_the_past(directory):
    """Why the run ended, by rank; the file system shows rank 1 no checkpoint yet."""
    if Ranks().rank == 1:
        exit_report.find_checkpoint = lambda directory: None
    return Ranks().all_gather_object(
        stopped(SIGNAL, CheckpointConfig(save=str(directory)), state()).why
    )


def test_every_rank_says_what_rank_0_sees(ranks, tmp_path):
    report_of(tmp_path)
    reasons = ranks.run(2, reasons_where_rank_1_sees_the_past, tmp_path)
    assert reasons == [f"its state is saved in {tmp_path / 'iter_0000812'}"] * 2
