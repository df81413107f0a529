"""Imports go down only: the floors of the house are the order in which data moves."""

import ast
from pathlib import Path

import pytest

FLOORS = [
    {
        "__version__",
        "errors",
        "launcher",
        "megatron_flags",
        "config",
        "config_toml",
        "faults",
        "validation",
        "cli",
        "watch",
        "log",
        "panel",
        "writers",
        "goodput",
    },
    {"data", "kernels"},
    {"model"},
    {"parallel"},
    {"train"},
    {"checkpoint"},
    {"evaluate"},
    {"planner"},
    {
        "origin",
        "resolve",
        "samples",
        "exit_report",
        "attempt",
        "out_of_memory",
        "digests",
        "introduction",
        "continuations",
        "report",
        "translation",
    },
    {"run", "rehearsal"},
    {"doctor"},
]
MODEL_MAY_IMPORT = {"torch", "math", "dataclasses", "contextlib", "config", "kernels", "model"}
READS_ENVIRONMENT = {"cli.py", "launcher.py", "kernels/build.py"}  # where caches are
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def imports(path: Path):
    """(line, module) for every import in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if node.module == "megatron_yuyuan":
                yield from ((node.lineno, f"megatron_yuyuan.{name}") for name in names)
            else:
                yield node.lineno, node.module


def environment_uses(code: str) -> list[int]:
    """Lines that reach for the environment, under whatever name os has there."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            names = {node.attr}
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
        else:
            continue
        if names & (ENVIRONMENT | {"*"}):
            found.append(node.lineno)
    return found


def room(module: str) -> str | None:
    """`megatron_yuyuan.data.loader` -> `data`; None for other packages."""
    return module.split(".")[1] if module.startswith("megatron_yuyuan.") else None


def floor_of(name: str) -> int:
    [floor] = [i for i, rooms in enumerate(FLOORS) if name in rooms]
    return floor


@pytest.fixture(scope="module")
def package(repository) -> Path:
    return repository / "megatron_yuyuan"


def test_imports_only_go_down(package):
    wrong = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            assert not list(imports(path)), "importing the package imports nothing else"
            continue
        for line, module in imports(path):
            target = room(module)
            if target and floor_of(target) > floor_of(parts[0]):
                wrong.append(f"{path.relative_to(package)}:{line} imports {module}")
    assert not wrong


def test_the_model_knows_nothing_of_ranks(package):
    for path in (package / "model").glob("*.py"):
        for line, module in imports(path):
            name = room(module) or module.split(".")[0]
            assert name in MODEL_MAY_IMPORT, f"{path.name}:{line} imports {module}"
            assert "distributed" not in module


def test_only_launcher_cli_and_build_read_the_environment(package):
    for path in package.rglob("*.py"):
        lines = environment_uses(path.read_text(encoding="utf-8"))
        assert not lines or str(path.relative_to(package)) in READS_ENVIRONMENT, (path, lines)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.environ['A']",
        "import os as system\nsystem.getenv('A')",
        "from os import environ",
        "from os import path, putenv as put",
        "from os import *",
    ],
)
def test_every_way_to_the_environment_is_seen(code):
    assert environment_uses(code)
    assert not environment_uses("import os\nfrom os import path\nos.environment = path.sep")


def test_data_needs_no_torch_but_for_batches(package):
    """Preprocessing runs where there is no torch: the tools import these and nothing above."""
    for path in (package / "data").glob("*.py"):
        if path.name != "loader.py":
            assert all(module.split(".")[0] != "torch" for _, module in imports(path)), path
