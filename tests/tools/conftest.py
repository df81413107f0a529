"""Run a tool in this process, and see it refuse."""

import re
import runpy

import pytest

from megatron_yuyuan.cli import run_command


@pytest.fixture(scope="module")
def command(repository):
    """command("convert_checkpoint", "--to", "hf", ...) runs a tool in this process."""
    mains = {}

    def run(tool: str, *args) -> None:
        if tool not in mains:
            mains[tool] = runpy.run_path(str(repository / "tools" / f"{tool}.py"))["main"]
        mains[tool]([str(arg) for arg in args])

    return run


@pytest.fixture
def refused(command, capsys):
    """refused(tool, ...) is the message, in three lines on stderr, of a tool that ends with status
    2."""

    def run(tool: str, *args) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(lambda: command(tool, *args))
        shown = capsys.readouterr()
        assert end.value.code == 2 and not shown.out
        assert re.fullmatch(r"error: .+\n  why: .+\n  try: .+\n", shown.err), shown.err
        return shown.err

    return run
