"""exit.json is written once by those who claim it, and read without torch."""

import errno
import json
import os
import platform
import threading
import time

import pytest

from megatron_yuyuan.watch import exit_file
from megatron_yuyuan.watch.exit_file import claim_exit, forget_before, read_exit, replace
from megatron_yuyuan.watch.processes import process_age


def test_of_many_claimants_one_writes(tmp_path):
    written = []

    def claim(number: int) -> None:
        if claim_exit(tmp_path, {"rank": number}):
            written.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = written
    assert read_exit(tmp_path)["rank"] == winner
    assert os.listdir(tmp_path) == ["exit.json"]


def written(save, seconds: float, **words) -> dict:
    """A report that was written so long after the start of this process (before it: less than none)."""
    report = {"rank": 1, "job": "", "by": platform.node()} | words
    path = save / "exit.json"
    path.write_text(json.dumps(report))
    moment = time.time() - process_age() + seconds
    os.utime(path, (moment, moment))
    return report


OF_BEFORE = {
    "older": (-1, {}),
    "older, elsewhere": (-exit_file.APART - 1, {"by": "node7"}),
    "of another job": (1, {"job": "4711"}),
}
OF_THIS_START = {
    "younger": (0.5, {}),
    "by a rank whose machine was faster": (-exit_file.APART + 2, {"by": "node7"}),
}


@pytest.mark.parametrize("case", OF_BEFORE)
def test_the_report_of_an_earlier_start_is_in_nobodys_way(tmp_path, case):
    seconds, words = OF_BEFORE[case]
    written(tmp_path, seconds, **words)
    assert claim_exit(tmp_path, {"rank": 2})
    assert read_exit(tmp_path)["rank"] == 2
    written(tmp_path, seconds, **words)
    forget_before(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("case", OF_THIS_START)
def test_what_a_rank_of_this_start_has_claimed_stays(tmp_path, case):
    seconds, words = OF_THIS_START[case]
    report = written(tmp_path, seconds, **words)
    forget_before(tmp_path)
    assert not claim_exit(tmp_path, {"rank": 2})
    assert read_exit(tmp_path) == report
    assert os.listdir(tmp_path) == ["exit.json"]


def test_a_report_that_comes_while_the_old_one_is_removed_is_kept(tmp_path):
    written(tmp_path, -1)
    old = (tmp_path / "exit.json").stat()
    replace(tmp_path / "exit.json", {"rank": 2})
    exit_file._remove(tmp_path / "exit.json", old)
    assert read_exit(tmp_path) == {"rank": 2}
    assert os.listdir(tmp_path) == ["exit.json"]


def test_nothing_is_claimed_where_there_is_no_run(tmp_path):
    assert not claim_exit(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_a_link_that_nfs_reports_as_failed_counts_if_it_is_there(tmp_path, monkeypatch):
    link = os.link

    def linked_and_failed(source, target):
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(exit_file.os, "link", linked_and_failed)
    assert claim_exit(tmp_path, {"rank": 1})
    assert not claim_exit(tmp_path, {"rank": 2})


@pytest.mark.parametrize("text", [None, "", "{", "[1]"])
def test_what_is_no_report_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "exit.json").write_text(text)
    assert read_exit(tmp_path) is None


def test_a_full_disk_keeps_the_old_file_and_no_half_of_a_new_one(tmp_path, monkeypatch):
    replace(tmp_path / "a.json", {"number": 1})

    def cut_off(path, content: bytes):
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exit_file.Path, "write_bytes", cut_off)
    with pytest.raises(OSError, match="No space"):
        replace(tmp_path / "a.json", {"number": 2})
    assert not claim_exit(tmp_path, {})
    assert os.listdir(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"number": 1}


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "a.json"
    for number in (1, 2):
        replace(target, {"number": number})
        assert json.loads(target.read_text()) == {"number": number}
    assert os.listdir(tmp_path) == ["a.json"]
