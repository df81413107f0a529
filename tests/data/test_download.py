"""Downloads from a site on this machine: resumed, verified, refused."""

import hashlib
import shutil
from collections import namedtuple
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from loopback_site import answer, cut, serve

from megatron_yuyuan.data import download
from megatron_yuyuan.data.download import Client, download_with_md5, parse_md5, pubmed_names
from megatron_yuyuan.errors import DataError, SpaceError, UnsafeError

NAME = "pubmed26n0001.xml.gz"
CONTENT = bytes(range(256)) * 3000  # 768,000 bytes: three chunks
HALF = 300_000


def md5_line(content: bytes = CONTENT, name: str = NAME) -> bytes:
    return f"MD5({name})= {hashlib.md5(content).hexdigest()}\n".encode()


@pytest.fixture
def site():
    with serve() as site:
        site.files[NAME] = CONTENT
        yield site


@pytest.fixture
def client(site) -> Client:
    return Client({site.netloc}, first_wait=0)


@pytest.fixture
def save(site, client, tmp_path):
    """Saves NAME; the folder is tmp_path."""
    return lambda md5=None: client.save(site.url + NAME, tmp_path / NAME, md5 or md5_line())


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WHOLE = {NAME: CONTENT, f"{NAME}.md5": md5_line()}


def test_a_file_is_fetched_once(site, save, tmp_path):
    assert save() is True and contents(tmp_path) == WHOLE
    assert save() is False and site.requests == [(NAME, None)]


def test_a_damaged_or_replaced_file_is_fetched_again(site, save, tmp_path):
    (tmp_path / NAME).write_bytes(b"damaged")
    assert save() is True and contents(tmp_path) == WHOLE
    site.files[NAME] = b"a new edition"
    assert save(md5_line(b"a new edition")) is True
    assert (tmp_path / NAME).read_bytes() == b"a new edition"


def test_a_cut_transfer_goes_on_where_it_stopped(site, save, tmp_path):
    site.faults[NAME] = [cut(HALF), answer(503)]
    assert save() and contents(tmp_path) == WHOLE
    rest = f"bytes={HALF}-"
    assert site.requests == [(NAME, None), (NAME, rest), (NAME, rest)]


def test_so_does_another_process(site, save, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:HALF])
    (tmp_path / f"{NAME}.md5").write_bytes(md5_line())
    assert save() and contents(tmp_path) == WHOLE
    assert site.requests == [(NAME, f"bytes={HALF}-")]


def test_a_part_that_is_whole_only_wants_its_name(site, save, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    (tmp_path / f"{NAME}.md5").write_bytes(md5_line())
    assert save() and contents(tmp_path) == WHOLE and not site.requests


@pytest.mark.parametrize(
    ("held", "md5", "ranges"),
    [
        (CONTENT[:HALF], md5_line(b"older"), [None]),
        (b"x" * HALF, md5_line(), [f"bytes={HALF}-", None]),
        (CONTENT + b"x", md5_line(), [f"bytes={len(CONTENT) + 1}-", None]),
    ],
    ids=["of another version", "damaged", "longer than the file"],
)
def test_a_part_that_does_not_fit_is_begun_anew(site, save, tmp_path, held, md5, ranges):
    (tmp_path / f"{NAME}.part").write_bytes(held)
    (tmp_path / f"{NAME}.md5").write_bytes(md5)
    assert save() and contents(tmp_path) == WHOLE
    assert [asked for _, asked in site.requests] == ranges


def test_a_server_without_ranges_sends_the_whole(site, save, tmp_path):
    site.faults[NAME] = [cut(HALF), answer(200)]
    assert save() and contents(tmp_path) == WHOLE


def test_what_does_not_match_is_refused_and_removed(site, save, tmp_path):
    site.files[NAME] = CONTENT[:-1] + b"x"
    with pytest.raises(UnsafeError, match=r"md5 .* its \.md5 file says") as refused:
        save()
    assert (refused.value.status, refused.value.kind) == (2, "unsafe")
    assert set(contents(tmp_path)) == {f"{NAME}.md5"} and len(site.requests) == 1


def test_a_server_that_keeps_hanging_up_is_left_with_what_it_gave(site, save, tmp_path):
    site.faults[NAME] = [cut(HALF), *[answer(500)] * 9]
    with pytest.raises(DataError, match=r"HTTP 500 .*attempt 5 of 5"):
        save()
    assert contents(tmp_path)[f"{NAME}.part"] == CONTENT[:HALF]
    assert NAME not in contents(tmp_path) and len(site.requests) == download.ATTEMPTS


def test_short_bodies_and_errors_of_a_listing(site, client):
    site.files["list"] = b"0123456789"
    site.faults["list"] = [cut(5), answer(429)]
    assert client.read(site.url + "list") == b"0123456789"
    site.faults["list"] = [cut(5)] * 5
    with pytest.raises(DataError, match="ends after 5 of 10 bytes"):
        client.read(site.url + "list")
    site.requests.clear()
    with pytest.raises(DataError, match="HTTP 404"):
        client.read(site.url + "absent")
    assert len(site.requests) == 1  # not tried again


def test_nobody_there(client, site, tmp_path):
    with serve() as other:
        pass
    with pytest.raises(DataError, match=r"refused \(attempt 5 of 5\)"):
        Client({other.netloc}, first_wait=0).read(other.url)


def test_an_endless_answer_is_cut_off(site, client, monkeypatch):
    monkeypatch.setattr(download, "LARGEST_READ", 1 << 20)
    site.files["list"] = b"x" * (1 << 20)
    assert len(client.read(site.url + "list")) == 1 << 20
    site.files["list"] += b"x"
    with pytest.raises(DataError, match="more than 1 MB"):
        client.read(site.url + "list")


def test_redirects_stay_on_the_hosts_that_were_asked_for(site, client):
    site.faults["old"] = [answer(302, Location=site.url + NAME)]
    assert client.read(site.url + "old") == CONTENT
    with serve() as other:
        other.files["file"] = b"foreign"
        for target in (other.url + "file", "https://example.org/file", "file:///etc/hostname"):
            site.faults["old"] = [answer(302, Location=target)]
            with pytest.raises(UnsafeError, match="is not fetched"):
                client.read(site.url + "old")
        assert not other.requests
        site.faults["old"] = [answer(302, Location=other.url + "file")]
        allowed = Client({site.netloc, other.netloc}, first_wait=0)
        assert allowed.read(site.url + "old") == b"foreign"  # not vacuous


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a", "ftp://example.org/a", "file:///etc/hostname", "https://b.org/a"],
)
def test_what_is_not_https_is_not_asked(url):
    with pytest.raises(UnsafeError, match="is not fetched"):
        Client({"example.org", ""}).read(url)


def test_a_full_disk_is_said_before_the_transfer(site, save, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 700_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SpaceError, match=r"700\.0 kB free, and pubmed26n0001\.xml\.gz needs"):
        save()
    assert f"{NAME}.part" not in contents(tmp_path)


def test_a_disk_that_fills_meanwhile(save, tmp_path, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs Linux's /dev/full")
    (tmp_path / f"{NAME}.part").symlink_to(full)
    (tmp_path / f"{NAME}.md5").write_bytes(md5_line())
    monkeypatch.setattr(download, "_md5_of", lambda path: hashlib.md5())  # /dev/full never ends
    with pytest.raises(SpaceError, match="No space left"):
        save()


def test_a_place_that_cannot_be_written(save, tmp_path):
    (tmp_path / f"{NAME}.part").mkdir()
    (tmp_path / f"{NAME}.md5").write_bytes(md5_line())
    with pytest.raises(DataError, match="cannot write") as refused:
        save()
    assert not isinstance(refused.value, SpaceError)


def test_several_at_a_time_and_an_end_before_time(site, client, tmp_path):
    names = [f"pubmed26n{number:04}.xml.gz" for number in range(1, 6)]
    for name in names:
        site.files[name] = name.encode() * 1000
        site.files[f"{name}.md5"] = md5_line(site.files[name], name)
    done = list(download_with_md5(client, site.url, names, tmp_path / "new", 2))
    assert sorted(done) == [(name, True) for name in names]
    assert all((tmp_path / "new" / name).read_bytes() == site.files[name] for name in names)
    again = Client({site.netloc})
    assert sorted(download_with_md5(again, site.url, names[1:], tmp_path / "new", 2)) == [
        (name, False) for name in names[1:]
    ]
    del site.files[f"{names[2]}.md5"]
    with pytest.raises(DataError, match=r"n0003\.xml\.gz\.md5: HTTP 404"):
        list(download_with_md5(Client({site.netloc}), site.url, names, tmp_path / "more", 1))
    assert not (tmp_path / "more" / names[2]).exists()


def test_a_stopped_transfer_leaves_its_part(site, client, save, tmp_path):
    client.stop()
    with pytest.raises(CancelledError):
        save()
    part = contents(tmp_path)[f"{NAME}.part"]
    assert part and CONTENT.startswith(part) and len(part) < len(CONTENT)
    assert Client({site.netloc}).save(site.url + NAME, tmp_path / NAME, md5_line())
    assert contents(tmp_path) == WHOLE and site.requests[-1] == (NAME, f"bytes={len(part)}-")


@pytest.mark.parametrize("form", ["MD5({})= {}\n", "MD5 ({}) = {}", "{1}  {0}\n", "{1} *{0}"])
def test_both_forms_of_checksum(form):
    digest = hashlib.md5(b"a").hexdigest()
    assert parse_md5(form.format(NAME, digest.upper()).encode(), NAME) == digest


@pytest.mark.parametrize(
    "md5_file", [b"", b"<html>404</html>", md5_line(name="other.gz"), md5_line()[:-5], b"\xff" * 40]
)
def test_a_file_without_its_checksum_is_not_taken(md5_file):
    with pytest.raises(DataError, match="holds no md5"):
        parse_md5(md5_file, NAME)


def test_names_in_a_listing():
    line = '<a href="{0}">{0}</a> 2026-01-05 19M\n<a href="{0}.md5">{0}.md5</a> 60\n'
    numbers = (1275, 3, 1, 2)
    page = "".join(line.format(f"pubmed26n{number:04}.xml.gz") for number in numbers).encode()
    everything = [f"pubmed26n{number:04}.xml.gz" for number in (1, 2, 3, 1275)]
    assert pubmed_names(page) == everything
    assert pubmed_names(page, 2, 3) == everything[1:3]
    with pytest.raises(DataError, match="numbered 4 to 9") as error:
        pubmed_names(page, 4, 9)
    assert "1 to 1275" in error.value.why
    with pytest.raises(DataError, match="is listed"):
        pubmed_names(b"<html>Welcome</html>")
