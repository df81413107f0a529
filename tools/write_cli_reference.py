"""Write docs/cli.md: every flag of every command, from the parsers themselves.

    python tools/write_cli_reference.py            # docs/cli.md, compared by tests/test_links.py

A flag is documented where it is declared: in megatron_yuyuan/config.py for training, in a tool's own
parser else. Nothing but those places and this command is edited.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from unittest import mock

from megatron_yuyuan.cli import ArgumentParser, field_documentation, parse_config, run_command
from megatron_yuyuan.config import config_fields, flag_of
from megatron_yuyuan.data.files import AtomicFiles

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cli.md"
HEAD = """\
# Command line

Every flag of every command. `python tools/write_cli_reference.py` writes this page from the code; a test compares the
two. Flags may be written with `-` or `_`, and are never abbreviated. A switch, without a default here, is off.

Not on this page: `make` ([README](../README.md#two-commands)), `examples/*.slurm` ([cluster](cluster.md)),
`tools/gpu_check.sh` ([kernels](kernels.md#on-a-gpu)), `tools/install_apex.sh`, which its first lines explain, and
`tools/benchmark/*.py`, each of which has `--help`.

## Every command
"""

TRAINING = """\
## pretrain_gpt.py and finetune_qa.py

The same flags for both, each of which may stand in a TOML file under the table named here
([configuration](configuration.md)). `python -m megatron_yuyuan.doctor` takes them too, and `--json`
([doctor](doctor.md)). A switch that a file turns on is turned off by `--no-NAME`.
"""


class _ParserFound(BaseException):
    """Carries a parser out of the command that built it. No command catches it."""

    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__()
        self.parser = parser


def main(args: Sequence[str] | None = None) -> None:
    """Write the page."""
    ArgumentParser(description=__doc__).parse_args(args)
    with AtomicFiles() as files:
        files.open(PAGE).write(page().encode())
    print(f"written {PAGE}")


def page() -> str:
    """The text of docs/cli.md."""
    tools = sorted((ROOT / "tools").glob("*.py"))
    everywhere = _two_columns(ArgumentParser()._actions)
    return "\n".join([HEAD, everywhere, training(), *(tool_section(path) for path in tools)])


def training() -> str:
    """The flags of training: those beside the configuration, then its groups."""
    parser = parser_of(lambda: parse_config("", []))
    beside = [action for action in _own(parser) if action.dest not in config_fields()]
    groups = dict.fromkeys(group for group, _ in config_fields().values())
    return "\n".join([TRAINING, _two_columns(beside), *(group_section(g) for g in groups)])


def group_section(group: str) -> str:
    """One table of the configuration: flag, default, meaning."""
    parser, documented = parser_of(lambda: parse_config("", [])), field_documentation()
    rows = []
    for name, (owner, declared) in config_fields().items():
        if owner == group:
            flag = _flag(parser._option_string_actions[flag_of(name)])
            rows.append((flag, _default(declared.default), documented[name]))
    return f"### [{group}]\n\n{_table(rows)}"


def tool_section(path: Path) -> str:
    """What a tool does, and its flags."""
    module = load(path)
    said = re.split(r"(?<=[.?])\s", " ".join((module.__doc__ or "").split()), maxsplit=1)[0]
    parser = parser_of(lambda: module.main([]))
    rows = [
        (
            _flag(action),
            "required" if _required(action) else _default(action.default),
            action.help or "",
        )
        for action in _own(parser)
    ]
    table = _table(rows) if rows else "No flags.\n"
    return f"## tools/{path.name}\n\n{said}\n\n{table}"


def load(path: Path) -> ModuleType:
    """A command as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"command_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def parser_of(command: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a command builds, taken from it at the moment it would read its words."""

    def found(parser, args=None, namespace=None):
        raise _ParserFound(parser)

    with mock.patch.object(ArgumentParser, "parse_args", found):
        try:
            command()
        except _ParserFound as carried:
            return carried.parser
    raise LookupError("the command parses nothing")


def _own(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a command less those that every command has."""
    everywhere = {action.dest for action in ArgumentParser()._actions}
    return [action for action in parser._actions if action.dest not in everywhere]


def _required(action: argparse.Action) -> bool:
    return action.required and action.nargs not in ("*", "?")


def _flag(action: argparse.Action) -> str:
    """A flag with what follows it, or the name of a positional argument."""
    name = [option for option in action.option_strings if option.startswith("--")][:1]
    if isinstance(action, argparse.BooleanOptionalAction):
        return f"`{name[0]}`"
    words = argparse.HelpFormatter("")._format_args(action, action.dest.upper())
    return f"`{' '.join([*name, words]).strip()}`".replace("|", "\\|")


def _default(value) -> str:
    """A default as it would be typed; empty where there is none to type."""
    if value in (None, "", (), []) or value is False or value is argparse.SUPPRESS:
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple | list) else value}`"


def _two_columns(actions: Iterable[argparse.Action]) -> str:
    rows = [f"| {_flag(action)} | {_cell(action.help)} |" for action in actions]
    return "\n".join(["| flag | meaning |", "|---|---|", *rows]) + "\n"


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    lines += [f"| {flag} | {default} | {_cell(said)} |" for flag, default, said in rows]
    return "\n".join(lines) + "\n"


def _cell(said: str | None) -> str:
    """A help text within a table; its default has a column of its own."""
    text = re.sub(r" \(default: [^()]*\)$", "", " ".join((said or "").split()))
    return text.replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    run_command(main)
