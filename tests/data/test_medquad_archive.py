"""MedQuAD's archive: the git tree decides, and nothing is written outside."""

import errno
import gzip
import io
import tarfile
from pathlib import Path

import pytest

from megatron_yuyuan.data import medquad_archive
from megatron_yuyuan.data.medquad_archive import git_tree_id, is_unpacked, unpack_medquad
from megatron_yuyuan.errors import DataError, SpaceError, UnsafeError

FILES = {
    "a/x.xml": b"one",
    "a/deep/y.xml": b"two\n",
    "a.xml": b"z",
    "readme.txt": b"l",
    "a-b": b"b",
}
TREE = "32c7bae13235e25e782a47e392b135a935e85cd5"
"""What `git write-tree` says of FILES; `a-b`, `a.xml`, `a/` are sorted as git sorts them."""
COMMIT = "0123456789abcdef"


def archive_of(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        folder = tarfile.TarInfo("MedQuAD-0123")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for path, content in files.items():
            member = tarfile.TarInfo(f"MedQuAD-0123/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return stream.getvalue()


def test_the_tree_is_the_one_that_git_computes():
    assert git_tree_id(FILES) == TREE
    assert git_tree_id({"readme.txt": b"l"} | FILES) == TREE  # order does not matter
    assert git_tree_id(FILES | {"a/x.xml": b"On"}) != TREE


def test_xml_files_appear_together_with_their_commit(tmp_path):
    folder = tmp_path / "data" / "MedQuAD"
    assert not is_unpacked(folder, COMMIT)
    assert unpack_medquad(archive_of(FILES), folder, COMMIT, TREE) == 3
    assert is_unpacked(folder, COMMIT)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    wanted = {path: content for path, content in FILES.items() if path.endswith(".xml")}
    assert found == {**wanted, "COMMIT": b"0123456789abcdef\n"}
    assert list(folder.parent.iterdir()) == [folder]  # no temporary folder beside it


def test_another_content_leaves_nothing_behind(tmp_path):
    changed = archive_of(FILES | {"a/x.xml": b"One"})
    with pytest.raises(UnsafeError, match=f"git tree [0-9a-f]{{40}}, not {TREE}") as refused:
        unpack_medquad(changed, tmp_path / "MedQuAD", COMMIT, TREE)
    assert (refused.value.status, refused.value.kind) == (2, "unsafe")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "error"),
    [("ENOSPC", SpaceError), ("EDQUOT", SpaceError), ("EFBIG", SpaceError), ("EACCES", DataError)],
)
def test_a_full_disk_is_told_from_one_that_refuses(tmp_path, monkeypatch, name, error):
    def refuse(*_):
        raise OSError(getattr(errno, name), name)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DataError, match=f"cannot write .*MedQuAD: {name}") as refused:
        unpack_medquad(archive_of(FILES), tmp_path / "MedQuAD", COMMIT, TREE)
    assert type(refused.value) is error
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "file.xml").touch()
    with pytest.raises(DataError, match="is not MedQuAD at commit 0123456789ab"):
        is_unpacked(tmp_path, COMMIT)
    with pytest.raises(DataError, match="cannot write"):
        unpack_medquad(archive_of(FILES), tmp_path, COMMIT, TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["file.xml"]
    assert not list(tmp_path.parent.glob(".*.tmp"))


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("MedQuAD-0123/../../x.xml"),
        member("/etc/x.xml"),
        member("MedQuAD-0123\\..\\x.xml"),
        member("MedQuAD-0123/x.xml", tarfile.SYMTYPE, "/etc/passwd"),
        member("MedQuAD-0123/x.xml", tarfile.LNKTYPE, "../../x"),
        member("MedQuAD-0123/x.xml", tarfile.CHRTYPE),
        member("MedQuAD-0123/x.xml", tarfile.FIFOTYPE),
    ],
    ids=["traversal", "absolute", "backslash", "symlink", "hard link", "device", "pipe"],
)
def test_a_member_that_is_no_plain_file_inside_is_refused(tmp_path, hostile):
    with pytest.raises(UnsafeError, match="is a link, a device, or lies outside"):
        unpack_medquad(archive_of(FILES, hostile), tmp_path / "MedQuAD", COMMIT, TREE)
    assert not list(tmp_path.iterdir())


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(medquad_archive, "LARGEST", 1 << 20)
    bomb = archive_of({"a.xml": bytes(1 << 20)})
    assert len(bomb) < 1 << 12
    with pytest.raises(UnsafeError, match="unpacks to more than 1 MB"):
        unpack_medquad(bomb, tmp_path / "MedQuAD", COMMIT, TREE)


def test_a_damaged_archive_is_refused(tmp_path):
    whole = archive_of(FILES)
    cut_inside = gzip.compress(gzip.decompress(whole)[:700])
    page = b"<html>sign in</html>"
    for archive in (whole[:-9], whole[:20] + b"\0\0\0" + whole[23:], page, b""):
        with pytest.raises(DataError, match="archive is damaged"):
            unpack_medquad(archive, tmp_path / "MedQuAD", COMMIT, TREE)
    with pytest.raises(UnsafeError, match="git tree"):  # whole to gzip and tar: so it was made
        unpack_medquad(cut_inside, tmp_path / "MedQuAD", COMMIT, TREE)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_unpacking_left_is_removed(tmp_path):
    (tmp_path / ".MedQuAD.7.tmp" / "part").mkdir(parents=True)
    unpack_medquad(archive_of(FILES), tmp_path / "MedQuAD", COMMIT, TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["MedQuAD"]
