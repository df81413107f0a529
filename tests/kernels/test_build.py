"""The kernels are built once, whoever asks and however a builder ends, and what fails says why."""

import ctypes
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import build, compilers
from megatron_yuyuan.kernels.build import BINDING, built
from megatron_yuyuan.kernels.compilers import CUDA, EMULATED

needs_compiler = pytest.mark.skipif(not compilers.is_there("g++"), reason="there is no g++")


@pytest.fixture
def sources(tmp_path) -> Path:
    """Something that compiles in no time: a kernel that answers 42, and its binding."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "answer.cu").write_text('extern "C" int answer() { return 42; }\n')
    (folder / "answer.h").write_text("// nothing\n")
    binding = 'extern "C" int answer();\nextern "C" int bound() { return answer(); }\n'
    (folder / "binding.cpp").write_text(binding)
    return folder


def counting_compiler(folder: Path, more: str = "") -> str:
    """A PATH whose g++ notes every compilation in folder/compilations, then does `more`."""
    real, script = compilers.find("g++"), folder / "g++"
    script.write_text(
        f"#!/bin/sh\n[ $1 = --version ] || {{ echo $$ >> {folder}/compilations; {more} }}\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def compilations(folder: Path) -> list[str]:
    file = folder / "compilations"
    return file.read_text().split() if file.exists() else []


@needs_compiler
def test_what_was_built_is_found_again_and_answers(tmp_path, sources, monkeypatch):
    monkeypatch.setenv("PATH", counting_compiler(tmp_path))
    entry = built(EMULATED, tmp_path / "cache", sources)
    assert built(EMULATED, tmp_path / "cache", sources) == entry
    assert len(compilations(tmp_path)) == 2  # the library and the binding, once
    assert ctypes.CDLL(str(entry / BINDING)).bound() == 42


def build_here(path: str, cache: Path, sources: Path) -> None:
    os.environ["PATH"] = path
    built(EMULATED, cache, sources)


@needs_compiler
def test_ranks_that_ask_at_once_build_once(ranks, tmp_path, sources):
    path = counting_compiler(tmp_path, "sleep 0.3;")
    ranks.run(3, build_here, path, tmp_path / "cache", sources)
    assert len(compilations(tmp_path)) == 2


@needs_compiler
def test_a_killed_builder_leaves_no_lock_and_no_half_library(tmp_path, sources):
    path, cache = counting_compiler(tmp_path, "exec sleep 60;"), tmp_path / "cache"
    fork = multiprocessing.get_context("fork")
    builder = fork.Process(target=build_here, args=(path, cache, sources))
    builder.start()
    while not compilations(tmp_path):
        time.sleep(0.01)
    [lock] = cache.glob("*.lock")
    with lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    builder.kill()
    builder.join()
    os.kill(int(compilations(tmp_path)[0]), signal.SIGKILL)  # its compiler, left behind
    assert list(cache.glob("*.partial*"))

    (tmp_path / "g++").unlink()
    (tmp_path / "g++").symlink_to(compilers.find("g++"))
    entry = built(EMULATED, cache, sources)
    assert ctypes.CDLL(str(entry / BINDING)).bound() == 42
    assert sorted(cache.iterdir()) == [entry, lock]


@needs_compiler
def test_what_the_install_compiled_is_not_compiled_again(tmp_path, sources, monkeypatch):
    compilers.compile_kernels(EMULATED, tmp_path, sources)
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    monkeypatch.setenv("PATH", counting_compiler(tmp_path))
    entry = built(EMULATED, tmp_path / "cache", sources)
    assert len(compilations(tmp_path)) == 1  # the binding
    shutil.rmtree(sources)
    assert ctypes.CDLL(str(entry / BINDING)).bound() == 42


def test_every_part_has_its_share_in_the_key(tmp_path, sources, monkeypatch):
    """Sources, headers, the binding, flags and torch: another one is built anew. What is there needs no
    compiler."""

    def played(command: list[str]) -> str:
        Path(command[command.index("-o") + 1]).touch()
        return ""

    monkeypatch.setattr(compilers, "run", played)
    monkeypatch.setattr(compilers, "find", lambda compiler: compiler)
    entries = [built(EMULATED, tmp_path / "cache", sources)]
    for name in ("answer.cu", "answer.h", "binding.cpp"):
        (sources / name).write_text("// another\n")
        entries.append(built(EMULATED, tmp_path / "cache", sources))
    monkeypatch.setattr("torch.__version__", "3.0")
    entries.append(built(EMULATED, tmp_path / "cache", sources))
    monkeypatch.setattr(compilers, "BINDING_FLAGS", ("-O3",))
    entries.append(built(EMULATED, tmp_path / "cache", sources))
    entries.append(built(CUDA, tmp_path / "cache", sources))
    assert len(set(entries)) == len(entries) == 7
    monkeypatch.setattr(compilers, "run", None)
    assert built(CUDA, tmp_path / "cache", sources) == entries[-1]


@pytest.mark.parametrize(("target", "missing"), [(CUDA, "nvcc"), (EMULATED, "g++")])
def test_no_compiler(target, missing, tmp_path, sources, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name != missing and which(name))
    with pytest.raises(KernelsError, match=f"there is no {missing.replace('+', '.')}"):
        built(target, tmp_path / "cache", sources)


@needs_compiler
@pytest.mark.parametrize("name", ["answer.cu", "binding.cpp"])
def test_a_source_that_does_not_compile(name, tmp_path, sources):
    (sources / name).write_text("int nonsense = this is none;\n")
    with pytest.raises(KernelsError, match="ended with 1") as raised:
        built(EMULATED, tmp_path / "cache", sources)
    assert f"{name}:1" in raised.value.why and "error" in raised.value.why
    [lock] = (tmp_path / "cache").iterdir()
    assert lock.suffix == ".lock"


@needs_compiler
def test_a_binding_that_does_not_load(tmp_path, sources):
    (sources / "answer.cu").write_text('extern "C" int another() { return 42; }\n')
    with pytest.raises(KernelsError, match="cannot be loaded") as raised:
        build.load_binding(built(EMULATED, tmp_path / "cache", sources))
    assert "undefined symbol: answer" in raised.value.why


@needs_compiler
def test_a_cache_where_nothing_can_be_written(tmp_path, sources):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KernelsError, match="cannot be kept in") as raised:
        built(EMULATED, tmp_path / "cache", sources)
    assert "XDG_CACHE_HOME" in raised.value.remedy


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert build.cache_directory() == Path("/elsewhere/megatron_yuyuan/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert build.cache_directory() == Path("/home/someone/.cache/megatron_yuyuan/kernels")


@pytest.mark.parametrize("works", [True, False])
def test_an_install_compiles_the_kernels_and_never_fails_for_them(works, repository, tmp_path):
    """With an nvcc that is played, and a torch that must not be imported."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(repository / name, tmp_path)
    package = tmp_path / "megatron_yuyuan"
    shutil.copytree(repository / "megatron_yuyuan", package, ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; touch "$2"\n'
        if works
        else "#!/bin/sh\necho the host compiler is too new >&2; exit 1\n"
    )
    nvcc.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "installed"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    kernels = tmp_path / "installed" / "megatron_yuyuan" / "kernels"
    assert (kernels / "csrc" / "binding.cpp").exists()
    expected = {kernels / compilers.library_name(CUDA)} if works else set()
    assert set(kernels.glob("*.so")) == expected
    assert ("the host compiler is too new" in ended.stderr) == (not works)
