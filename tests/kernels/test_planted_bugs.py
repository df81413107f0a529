"""Would the kernels' tests see a bug? Each of `bugs.BUGS` is planted in a copy of the sources, and the
test that it names must fail; with the sources as they are the same test passes."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from kernels import emulated
from kernels.bugs import BUGS, Bug


def plant(bug: Bug, folder):
    """The library of a copy of the sources that has the bug."""
    copy = folder / "csrc"
    shutil.copytree(emulated.SOURCES, copy)
    text = (copy / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{bug.file} has {bug.old!r} {text.count(bug.old)} times"
    (copy / bug.file).write_text(text.replace(bug.old, bug.new))
    return emulated.compile_library([copy / bug.compiled], folder, ["-O0"])


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The libraries of all bugs, by name; two compilers at a time."""
    folders = [tmp_path_factory.mktemp("bug") for _ in BUGS]
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(plant, BUGS, folders))
    return {bug.name: library for bug, library in zip(BUGS, libraries, strict=True)}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(planted, bug):
    bug.test(*bug.arguments)
    with (
        emulated.using(planted[bug.name]),
        pytest.raises((AssertionError, emulated.LaunchError, emulated.OverrunError)),
    ):
        bug.test(*bug.arguments)
