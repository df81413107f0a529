"""Dockerfile and tools/install_apex.sh, looked at without a container engine, and their install lines run."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from commands import ROOT
from dockerfile import Copy, Stage, is_ignored, read_copy, read_ignored, read_stages

INSTALL_APEX = ROOT / "tools" / "install_apex.sh"
COMMIT = re.compile(r"[0-9a-f]{40}")


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return read_stages((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def patterns() -> list[str]:
    return read_ignored((ROOT / ".dockerignore").read_text())


def faults_of(stages: list[Stage], patterns: list[str], root: Path) -> list[str]:
    """What would make a build fail, or make another image tomorrow."""
    faults, names = [], []
    for stage in stages:
        _, colon, tag = stage.image.partition(":")
        if stage.image not in names and not (colon and re.match(r"\d+\.\d+\.\d+-cuda", tag)):
            faults.append(f"FROM {stage.image} names no version")
        copies = [read_copy(text) for text in stage.of("COPY")]
        for copy in copies:
            if copy.stage and copy.stage not in names:
                faults.append(f"COPY --from={copy.stage}: no stage above has that name")
            for source in () if copy.stage else copy.sources:
                if not (root / source).exists():
                    faults.append(f"COPY {source}: not there")
                elif is_ignored(source, patterns):
                    faults.append(f"COPY {source}: left out by .dockerignore")
        faults += [f"RUN: {fault}" for text in stage.of("RUN") for fault in shell_faults(text)]
        names.append(stage.name)
    return faults


def shell_faults(text: str) -> list[str]:
    """What `sh -n` finds in a command, and a package apex of PyPI."""
    said = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    by_name = re.search(r"pip install[^&]*\sapex(?![/\w])", text)
    return said.stderr.splitlines() + (["pip install apex"] if by_name else [])


def test_a_build_finds_all_it_copies_and_is_pinned(stages, patterns):
    assert faults_of(stages, patterns, ROOT) == []
    assert [stage.name for stage in stages] == ["build", "apex", "plain", "with-apex", ""]


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("ARG TORCH=2.13.0-cuda13.0-cudnn9", "ARG TORCH=latest", "latest-devel names no version"),
        ("pytorch/pytorch:${TORCH}-runtime", "pytorch/pytorch", "names no version"),
        ("setup.py ./", "setup.cfg ./", "COPY setup.cfg: not there"),
        ("COPY tools ./tools", "COPY tests ./tests", "COPY tests: left out by .dockerignore"),
        ("--from=build /src", "--from=builder /src", "COPY --from=builder: no stage above"),
        ("&& rm -r pins.txt", "&& (rm -r pins.txt", "RUN: "),
        ("apex/apex-*.whl", "apex", "RUN: pip install apex"),
    ],
)  # fmt: skip
def test_the_lint_finds_what_is_planted(patterns, right, wrong, fault):
    text = (ROOT / "Dockerfile").read_text()
    assert right in text
    [found, *_] = faults_of(read_stages(text.replace(right, wrong)), patterns, ROOT)
    assert fault in found


def test_the_image_does_not_run_as_root(stages):
    users = {stage.name: stage.of("USER")[-1:] for stage in stages}
    assert users["plain"] == users["with-apex"] == ["yuyuan"]
    assert stages[-1].image == "plain"


def test_the_context_is_what_is_copied_and_no_more(patterns):
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("not a checkout of git")
    sent = [name for name in tracked.stdout.splitlines() if not is_ignored(name, patterns)]
    assert {"setup.py", "tools/install_apex.sh"} <= set(sent)
    assert {name.split("/")[0] for name in sent} == {
        *("README.md", "LICENSE", "pyproject.toml", "setup.py", "constraints.txt"),
        *("pretrain_gpt.py", "finetune_qa.py", "megatron_yuyuan", "tools", "examples"),
    }
    others = ("tools/__pycache__/x.pyc", "megatron_yuyuan/kernels/libyuyuan.so", "runs/a/x", ".git")
    assert all(is_ignored(name, patterns) for name in others)


def test_no_requirement_names_apex():
    """PyPI's package of that name is another project."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        assert not re.search(r"\bapex\b", (ROOT / name).read_text()), name


def test_shell_scripts_are_well_formed():
    for script in sorted((ROOT / "tools").glob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
    assert COMMIT.search(INSTALL_APEX.read_text())


def test_shellcheck_has_nothing_to_say():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", INSTALL_APEX], check=True)


@pytest.fixture
def machine(tmp_path):
    """machine(torch="13.0", nvcc="13.0", apex="none", arguments...) runs install_apex.sh on a made-up machine."""

    def fake(name: str, program: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{program}\n")
        path.chmod(0o755)
        return path

    def run(*arguments: str, torch="13.0", nvcc="13.0", apex="none") -> subprocess.CompletedProcess:
        python = fake(
            "python",
            f"""case "$*" in
            *torch.version.cuda*) {f"echo {torch}" if torch else "exit 1"} ;;
            *find_spec*) echo {apex} ;;
            *) echo "$@" "CPP=$APEX_CPP_EXT CUDA=$APEX_CUDA_EXT HOME=$CUDA_HOME ARCH=$TORCH_CUDA_ARCH_LIST" ;;
            esac""",
        )
        (tmp_path / "bin").mkdir(exist_ok=True)
        if nvcc:
            fake("bin/nvcc", f"echo 'Cuda compilation tools, release {nvcc}, V{nvcc}.88'")
        return subprocess.run(
            ["bash", INSTALL_APEX, *arguments],
            env={"PATH": os.environ["PATH"], "PYTHON": str(python), "CUDA_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_apex_is_built_from_one_commit_with_its_cuda_extensions(machine, tmp_path):
    ended = machine()
    assert ended.returncode == 0, ended.stderr
    _, install, load = ended.stdout.splitlines()
    assert re.search(
        rf"pip install .*apex @ \S+/archive/{COMMIT.pattern}.tar.gz CPP=1 CUDA=1", install
    )
    assert "--no-build-isolation" in install
    assert f"HOME={tmp_path} ARCH=8.0;9.0" in install
    assert "import torch, amp_C, fused_layer_norm_cuda" in load
    wheel = machine("--wheel", "made").stdout.splitlines()[1]
    assert re.search(r"pip wheel .*--wheel-dir made apex @ ", wheel)


@pytest.mark.parametrize(
    ("machine_has", "arguments", "what"),
    [
        ({"torch": ""}, (), "python has no torch"),
        ({"torch": "none"}, (), "is built without CUDA"),
        ({"nvcc": ""}, (), "there is no nvcc: "),
        ({"nvcc": "12.6"}, (), "nvcc is of CUDA 12.6, torch of CUDA 13.0"),
        ({"apex": "other"}, (), "the apex that is installed is not NVIDIA's"),
        ({}, ("--help",), "arguments: --help"),
    ],
)
def test_what_apex_cannot_be_built_with_is_refused(machine, machine_has, arguments, what):
    ended = machine(*arguments, **machine_has)
    assert ended.returncode == 2
    assert not ended.stdout
    assert re.fullmatch(r"error: .+\n  why: .+\n  try: .+\n", ended.stderr)
    assert what in ended.stderr


def test_this_torch_is_looked_at_by_the_script_itself():
    import torch

    if torch.version.cuda:
        pytest.skip("this torch is built for CUDA")
    ended = subprocess.run(
        ["bash", INSTALL_APEX],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "is built without CUDA" in ended.stderr


@pytest.mark.slow  # pip downloads what the package needs; with nvcc the kernels are compiled
@pytest.mark.timeout(1800)
def test_the_install_lines_install_the_package(stages, patterns, tmp_path):
    """Those of the stages that build and that run, taken from the Dockerfile, in an environment that
    has torch alone. Left out are those that need CUDA's torch, or root."""
    by_name = {stage.name: stage for stage in stages}
    python = base_environment(tmp_path / "image")
    ran = 0
    for name in ("build", "plain"):
        for instruction, text in by_name[name].instructions:
            if "/opt/cache" in text:  # the binding to CUDA's torch
                continue
            if instruction == "COPY":
                carry_out(read_copy(text), tmp_path, name, patterns)
            elif instruction == "RUN" and " pip " in text:
                execute(text, by_name[name], tmp_path / name, python)
                ran += 1
    assert ran == 2
    shown = subprocess.run(
        [python, "pretrain_gpt.py", "--help"],
        cwd=tmp_path / "plain",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--tensor-model-parallel-size" in shown.stdout
    where = "import megatron_yuyuan, transformers, torch; print(megatron_yuyuan.__file__, torch.__version__)"
    printed = subprocess.run(
        [python, "-I", "-c", where],
        cwd=tmp_path / "plain",
        capture_output=True,
        text=True,
        check=True,
    )
    file, version = printed.stdout.split()
    assert "site-packages" in file
    assert Path(file).is_relative_to(tmp_path / "image")
    assert version == importlib.metadata.version("torch")


def base_environment(folder: Path) -> Path:
    """A virtual environment with pip, torch and what torch needs, as in the image: links to those of
    this one. Return its python."""
    venv.create(folder, with_pip=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    for name in needed_by("torch"):
        distribution = importlib.metadata.distribution(name)
        tops = {Path(str(file)).parts[0] for file in distribution.files}
        for top in tops - {"..", "__pycache__", "distutils-precedence.pth"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python3"


def needed_by(name: str) -> set[str]:
    """A distribution and those it needs, as they are installed here."""
    found, open_ones = set[str](), [name]
    while open_ones:
        name = open_ones.pop()
        if name in found:
            continue
        found.add(name)
        for requirement in importlib.metadata.requires(name) or ():
            needed = re.match(r"[\w.-]+", requirement)[0]
            try:
                importlib.metadata.distribution(needed)
            except importlib.metadata.PackageNotFoundError:
                continue  # of an extra, or of another system
            if "extra ==" not in requirement:
                open_ones.append(needed)
    return found


def carry_out(copy: Copy, place: Path, stage: str, patterns: list[str]) -> None:
    """A COPY, the root of each stage being a folder of `place`."""
    target = place / stage / copy.target
    for source in copy.sources:
        if copy.stage:  # /src/wheels of a stage whose WORKDIR is /src
            shutil.copytree(place / copy.stage / Path(source).name, target)
        elif (ROOT / source).is_dir():

            def left_out(folder, names):
                inside = Path(folder).relative_to(ROOT)
                return [name for name in names if is_ignored(str(inside / name), patterns)]

            shutil.copytree(ROOT / source, target, ignore=left_out)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, target)


def execute(text: str, stage: Stage, folder: Path, python: Path) -> None:
    """A RUN in the folder that stands for WORKDIR."""
    words = " ".join(stage.of("ENV")).split()
    environment = os.environ | dict(word.split("=", 1) for word in words)
    environment["PATH"] = f"{python.parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{text}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
