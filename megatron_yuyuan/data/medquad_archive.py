"""MedQuAD's archive as GitHub makes it, known by its content, and its XML files unpacked.

The bytes of such an archive may change from one day to the next. What does not is the id that git
gives to the tree of files in it: the SHA-1 over their names and contents.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from megatron_yuyuan.errors import DataError, UnsafeError, refused_by_disk

COMMIT = "577bd37b96c02d1833b2c9eed2de9f96964e96cb"
"""Of https://github.com/abachaa/MedQuAD, 17 October 2023: 11,274 XML files."""
TREE = "0e51034956585e1c9f66338dcb990529bff55607"
"""The tree of that commit."""
LARGEST = 256 << 20
"""Bytes that an archive may unpack to; MedQuAD's are 50 MB."""
MARK = "COMMIT"
"""The file in an unpacked folder that says of which commit it is."""


def is_unpacked(folder: Path, commit: str) -> bool:
    """Whether `folder` holds the files of this commit. Raises DataError: something else is there."""
    mark = folder / MARK
    if mark.is_file() and mark.read_text(encoding="ascii", errors="replace").strip() == commit:
        return True
    if folder.exists():
        raise DataError(
            f"{folder} exists and is not MedQuAD at commit {commit[:12]}",
            "files of two versions would mix",
            "move it away, or another --output-dir",
        )
    return False


def unpack_medquad(archive: bytes, folder: Path, commit: str, tree: str) -> int:
    """Unpack the .xml files of a .tar.gz, whose tree is `tree`, into `folder`; their number. The
    folder appears whole.

    Raises DataError (damaged), of these SpaceError (no room), and UnsafeError (not this tree, a member
    that is a link or would lie elsewhere, more than LARGEST).
    """
    files = read_archive(archive)
    if (found := git_tree_id(files)) != tree:
        raise UnsafeError(
            f"the archive holds git tree {found}, not {tree}",
            f"it is not MedQuAD at commit {commit}",
            "the same command again; --base-url names another copy",
        )
    unpacked = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    wanted = {path: content for path, content in files.items() if path.endswith(".xml")}
    try:
        for path, content in {**wanted, MARK: f"{commit}\n".encode()}.items():
            (unpacked / path).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / path).write_bytes(content)
        os.sync()  # once, where an fsync for each file would take minutes
        os.rename(unpacked, folder)
    except OSError as error:
        raise refused_by_disk(error)(
            f"cannot write {folder}: {error.strerror}",
            "MedQuAD is not whole without it",
            "a folder with room that may be written to",
        ) from None
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return len(wanted)


def read_archive(archive: bytes) -> dict[str, bytes]:
    """Path below the one folder of a .tar.gz -> content, read in memory. Raises DataError,
    UnsafeError: see `unpack_medquad`."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(archive)) as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UnsafeError(
                f"the archive unpacks to more than {LARGEST >> 20} MB",
                "it could fill memory and disk",
                "the archive of MedQuAD itself",
            )
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
            paths = [(member, _path_below(member)) for member in members]
            return {
                path: file.read()
                for member, path in paths
                if member.isfile() and (file := members.extractfile(member)) is not None
            }
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"the archive is damaged: {error}", "files are missing", "the same command again"
        ) from None


def _path_below(member: tarfile.TarInfo) -> str:
    """The name of a member less the folder that holds all. Raises UnsafeError."""
    path = PurePosixPath(member.name)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in member.name
    if not inside or not (member.isfile() or member.isdir()):
        raise UnsafeError(
            f"the archive holds {member.name!r}, which is a link, a device, or lies outside",
            "unpacked, it would be written somewhere else",
            "the archive of MedQuAD itself",
        )
    return "/".join(path.parts[1:])


def git_tree_id(files: Mapping[str, bytes]) -> str:
    """The id, 40 hexadecimal digits, of a git tree of plain files: path -> content.

    `git rev-parse COMMIT^{tree}` says the same of a commit. Source: Chacon and Straub, Pro Git,
    2nd edition, section 10.2, Git Objects.
    """
    return _tree(files).hex()


def _tree(files: Mapping[str, bytes]) -> bytes:
    entries: list[tuple[str, str, bytes]] = []
    folders: dict[str, dict[str, bytes]] = {}
    for path, content in files.items():
        name, slash, below = path.partition("/")
        if slash:
            folders.setdefault(f"{name}/", {})[below] = content
        else:
            entries.append((name, "100644", _object("blob", content)))
    entries += [(name, "40000", _tree(below)) for name, below in folders.items()]
    lines = (
        f"{mode} {name.removesuffix('/')}\0".encode() + digest
        for name, mode, digest in sorted(entries, key=lambda entry: entry[0].encode())
    )
    return _object("tree", b"".join(lines))


def _object(kind: str, content: bytes) -> bytes:
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).digest()
