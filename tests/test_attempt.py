"""A run that may not write where it is told to, or need not try again, is refused before its first step."""

import json
import os
import sys

import pytest
from commands import train_flags
from pretraining import pretrained

from megatron_yuyuan.errors import YuyuanError
from megatron_yuyuan.watch import lease

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who lives")


def refusal(command: tuple) -> tuple[str, str]:
    """Class and words of the error that ends a run on this rank."""
    try:
        pretrained(command)
    except YuyuanError as error:
        return error.kind, error.what
    return "", ""


def refused(ranks, prepared, save, **words) -> tuple[str, str]:
    """What is said of a run in a directory that has a lease with these words."""
    save.mkdir()
    document = lease._document("4711", 0, 0, None) | {"pid": os.getpid(), **words}
    (save / "lease.json").write_text(json.dumps(document))
    return ranks.run(2, refusal, train_flags(prepared, save))


def test_a_directory_in_use_is_left_as_it_is(ranks, prepared, tmp_path):
    kind, what = refused(ranks, prepared, tmp_path / "run")
    assert kind == "busy"
    assert what.startswith(f"{tmp_path / 'run'} is in use by job 4711 on ")
    assert os.listdir(tmp_path / "run") == ["lease.json"]


def test_a_run_that_comes_no_further_says_so_in_its_report(ranks, prepared, tmp_path):
    kind, what = refused(ranks, prepared, tmp_path / "run", ended=True, starts=3, furthest=8)
    assert (kind, what) == ("no_progress", "3 starts in a row came no further than step 8")
    report = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (report["class"], report["status"], report["cause"]) == ("no_progress", 2, what)
    assert os.listdir(tmp_path / "run") == ["exit.json"]
