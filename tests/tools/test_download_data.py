"""tools/download_data.py against a site on this machine: status, messages, what lies there."""

import hashlib
import importlib.util
import io
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from loopback_site import serve, stall

from megatron_yuyuan.data import medquad_archive

TOOL = Path(__file__).parents[2] / "tools" / "download_data.py"
NAMES = [f"pubmed26n{number:04}.xml.gz" for number in (1, 2, 3)]
SIZE = 3 << 20


@pytest.fixture
def site():
    """A site with three files in baseline/ and their checksums."""
    with serve() as site:
        listing = "".join(f'<a href="{name}">{name}</a> <a href="{name}.md5">' for name in NAMES)
        site.files["baseline/"] = listing.encode()
        for name in NAMES:
            content = name.encode() * (SIZE // len(name))
            digest = hashlib.md5(content).hexdigest()
            site.files[f"baseline/{name}"] = content
            site.files[f"baseline/{name}.md5"] = f"MD5({name})= {digest}\n".encode()
        yield site


def command(site, folder, dataset="pubmed-baseline", *flags):
    base = ["--base-url", site.url + "baseline", "--output-dir", str(folder)]
    return [sys.executable, str(TOOL), dataset, *base, *flags]


def run(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_files_arrive_verified_and_only_once(site, tmp_path):
    status, told, errors = run(site, tmp_path, "pubmed-baseline", "--files", "2-", "--jobs", "1")
    assert (status, errors) == (0, "")
    assert "pubmed26n0002.xml.gz: 3.1 MB, md5 as published, fetched (1/2)\n" in told
    assert told.endswith(f"2 files in {tmp_path}, 2 fetched now\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*NAMES[1:], *(f"{name}.md5" for name in NAMES[1:])]
    )
    status, told, _ = run(site, tmp_path, "pubmed-updates")
    assert status == 0 and "3 files" in told and "1 fetched now" in told
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == site.files[f"baseline/{name}"]


def test_what_does_not_match_ends_with_status_2_and_three_lines(site, tmp_path):
    site.files[f"baseline/{NAMES[0]}"] += b"x"
    status, _, errors = run(site, tmp_path, "pubmed-baseline", "--files", "1")
    assert status == 2 and not (tmp_path / NAMES[0]).exists()
    assert [line.split(":")[0] for line in errors.splitlines()] == ["error", "  why", "  try"]


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--jobs", "9"], "jobs=9 is not 1 to 8"),
        (["--files", "one"], "'one' is not a range such as 7, 1-3 or 1275-"),
        (["--files", "7-9"], "no PubMed file numbered 7 to 9 is listed"),
        (["--base-url", "http://example.org/"], "http://example.org/ is not fetched"),
    ],
)
def test_a_mistake_is_one_line(site, tmp_path, flags, what):
    status, _, errors = run(site, tmp_path, "pubmed-baseline", *flags)
    assert status == 2 and what in errors.splitlines()[0]


def test_an_interrupted_command_goes_on_where_it_stopped(site, tmp_path):
    reached, over = threading.Event(), threading.Event()
    site.faults[f"baseline/{NAMES[0]}"] = [stall(2 << 20, reached, over)]
    process = subprocess.Popen(command(site, tmp_path), stderr=subprocess.PIPE, text=True)
    part = tmp_path / f"{NAMES[0]}.part"
    assert reached.wait(60)
    while not (part.exists() and part.stat().st_size >= 1 << 20):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted\n" and process.returncode == 130
    over.set()
    held = part.stat().st_size
    status, told, _ = run(site, tmp_path)
    assert status == 0 and "3 files" in told
    assert (f"baseline/{NAMES[0]}", f"bytes={held}-") in site.requests
    assert (tmp_path / NAMES[0]).read_bytes() == site.files[f"baseline/{NAMES[0]}"]


@pytest.fixture
def main():
    """The tool's main, in this process."""
    spec = importlib.util.spec_from_file_location("download_data", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_medquad_is_known_by_its_content(site, tmp_path, main, monkeypatch, capsys):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("MedQuAD-577b/a/x.xml")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"one"))
    site.files[f"baseline/{medquad_archive.COMMIT}.tar.gz"] = stream.getvalue()
    status, _, errors = run(site, tmp_path, "medquad")
    assert status == 2 and f"not {medquad_archive.TREE}" in errors and not any(tmp_path.iterdir())
    tree = medquad_archive.git_tree_id({"a/x.xml": b"one"})
    monkeypatch.setattr(medquad_archive, "TREE", tree)
    words = command(site, tmp_path, "medquad")[2:]
    main(words)
    assert "1 files" in capsys.readouterr().out
    assert (tmp_path / "MedQuAD" / "a" / "x.xml").read_bytes() == b"one"
    site.requests.clear()
    main(words)
    assert "was there" in capsys.readouterr().out and not site.requests
    status, _, errors = run(site, tmp_path, "medquad", "--files", "1-3")
    assert status == 2 and "--files is given, and medquad is one archive" in errors
