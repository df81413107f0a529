"""Command lines: flags generated from `config.py`, Megatron-LM's names, and errors a person can act
on."""

import argparse
import atexit
import errno
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TextIO

from megatron_yuyuan import launcher
from megatron_yuyuan.config import Config, config_fields, flag_of
from megatron_yuyuan.config_toml import load_toml, nearest, require_text, to_toml
from megatron_yuyuan.errors import NO_SPACE, ConfigError, YuyuanError, refused_for_now
from megatron_yuyuan.faults import arm
from megatron_yuyuan.log import full_output, silence
from megatron_yuyuan.megatron_flags import INSTEAD, NO_EFFECT, NO_EFFECT_WITH_VALUE, not_yet


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are `ConfigError`s and whose flags may be written with - or _."""

    def __init__(self, **options):
        keep_lines = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=keep_lines, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        of_tests = "for tests of survival: save.renamed:kill@2; faults.py lists places and actions"
        self.add_argument("--fault", metavar="FAULT", help=of_tests)

    def parse_args(self, args: Iterable[str] | None = None, namespace=None):
        words = [
            re.sub(r"^(--[^=]+)", lambda m: m[1].replace("_", "-"), word)
            for word in (sys.argv[1:] if args is None else args)
        ]
        parsed = super().parse_args(words, namespace)
        fault = vars(parsed).pop("fault") or os.environ.get("YUYUAN_FAULT")
        if fault:
            arm(fault, launcher.rank())
        return parsed

    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown and not_yet(unknown[1]):
            raise refused_for_now(unknown[1], INSTEAD.get(unknown[1], ""))
        if unknown:
            remedy = nearest(unknown[1], self._option_string_actions)
            raise ConfigError(f"unknown argument {unknown[1]}", "nothing reads it", remedy)
        raise ConfigError(message, "the command line could not be read", f"{self.prog} --help")


def parse_config(description: str, args: Sequence[str] | None = None) -> Config:
    """Read defaults, then every --config FILE.toml in order, then the flags; a later one wins.

    Raises ConfigError. `--print-config` prints the result as TOML and ends the process with status
    0.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE.toml",
        help="values by table; may be given several times",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print what files and flags say, and stop"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, (group, _) in config_fields().items():
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        add_config_argument(groups[group], name, default=None)
    words = _without_ineffective(sys.argv[1:] if args is None else list(args))
    parsed = vars(parser.parse_args(words))
    values: dict = {}
    for path in parsed.pop("config"):
        values |= load_toml(path)
    parsed.pop("debug")
    show = parsed.pop("print_config")
    values |= {
        k: tuple(v) if isinstance(v, list) else v for k, v in parsed.items() if v is not None
    }
    for name, value in values.items():
        require_text(name, value)
    config = Config().replace(**values)
    if show:
        print(to_toml(config))
        sys.exit(0)
    return config


def add_config_argument(parser: argparse._ActionsContainer, name: str, **options) -> None:
    """The flag of one field of `config.py`: its type, choices, default and help. `options` win."""
    _, declared = config_fields()[name]
    default = declared.default
    shown = (" ".join(map(str, default)) if isinstance(default, tuple) else str(default)) or "none"
    text = f"{field_documentation()[name]} (default: {shown})"
    options = {"dest": name, "default": default, "help": text.replace("%", "%%")} | options
    if declared.type is bool:
        positive = argparse.BooleanOptionalAction
        options["action"] = "store_true" if name.startswith("no_") else positive
    elif declared.type == tuple[str, ...]:
        options |= {"nargs": "+", "metavar": declared.metadata.get("metavar", "PREFIX")}
    elif declared.type == tuple[int, ...]:
        words = declared.metadata.get("metavar")
        options |= {"type": int, "nargs": len(words) if words else "+", "metavar": words or "N"}
    else:
        choices = declared.metadata.get("choices")
        assert isinstance(declared.type, type)  # int, float or str
        metavar = None if choices else declared.type.__name__.upper()
        options |= {"type": declared.type, "choices": choices, "metavar": metavar}
    parser.add_argument(flag_of(name), **options)


def _without_ineffective(words: list[str]) -> list[str]:
    """Drop Megatron-LM flags that mean nothing here, and say so."""
    kept, dropped, left = [], [], iter(words)
    for word in left:
        flag = word.split("=")[0].replace("_", "-")
        if flag in NO_EFFECT or flag in NO_EFFECT_WITH_VALUE:
            dropped.append(flag)
            if flag in NO_EFFECT_WITH_VALUE and "=" not in word:
                next(left, None)
        else:
            kept.append(word)
    if dropped and launcher.rank() == 0:
        print(f"warning: {', '.join(dropped)}: accepted, no effect here", file=sys.stderr)
    return kept


@cache
def field_documentation() -> dict[str, str]:
    """Field name -> the string that stands under it in config.py."""
    import ast

    from megatron_yuyuan import config

    documented = {}
    for node in ast.parse(Path(config.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for declared, below in zip(node.body, node.body[1:], strict=False):
                match declared, below:
                    case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        documented[name] = " ".join(text.split())
    return documented


def run_command(main: Callable[[], None]) -> None:
    """Run a command and turn its end into an exit status.

    0 done; 1 our own bug, with traceback; 2 something a person must change and 75 start it again, in
    three lines on stderr, printed once per job; 130 Ctrl-C. `--debug` on the command line adds the traceback.
    """
    _reopen_closed()
    status = 1
    try:
        status = _status(main)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        if main.__module__ == "__main__":  # and not a test of it
            atexit.register(_leave, status)
    if status:
        sys.exit(status)


def _leave(status: int) -> None:
    """End the process after what else waits for its end, and leave the interpreter standing: a thread of
    gloo's that still frees a tensor while Python takes itself apart aborts the process (status 134 after
    `terminate called without an active exception`). So do the children of multiprocessing end."""
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        _to_its_end(stream)
    os._exit(status)


def _status(main: Callable[[], None]) -> int:
    """Run a command, say its error if it has one, return the exit status."""
    try:
        _to_the_last_line(main)
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        silence(sys.stdout)
    except (YuyuanError, OSError) as cause:
        error = cause if isinstance(cause, YuyuanError) else _of_system(cause)
        if not error.said and (error.is_own or _claims_the_message(str(error))):
            trace = traceback.format_exc() if "--debug" in sys.argv else ""
            _to_its_end(sys.stderr, f"{trace}error: {error}\n")
        _tell_torchrun(str(error).splitlines()[0])
        _to_its_end(sys.stdout)
        return error.status
    except KeyboardInterrupt:
        if launcher.rank() == 0:
            print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # not by way of collectives that wait for ranks which are gone
    return 0


def _reopen_closed() -> None:
    """Open what the shell has closed (`>&-`), to nowhere: Python has None in its place, and the next file
    that is opened would get its number, and with it all that libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in order of numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _to_the_last_line(main: Callable[[], None]) -> None:
    """Run a command until all that it says, --help too, has left this process: what the interpreter
    itself writes at its exit has no error of ours."""
    try:
        main()
    except SystemExit:
        print(end="", flush=True)
        raise
    print(end="", flush=True)


def _to_its_end(stream: TextIO, text: str = "") -> None:
    """Write a text and whatever waits, after an error: where that has no room either, the exit status
    still says what is right."""
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:
        silence(stream)


PATH_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says of a path, and not of what a program does with it."""


def _of_system(error: OSError) -> YuyuanError:
    """The error for a full disk under stdout or a file, and for a path that the system refuses even to look
    at. Raises any other again."""
    if error.errno in NO_SPACE:
        return full_output(error)
    if error.errno not in PATH_REFUSED or not error.filename:
        raise error
    what = f"cannot use {error.filename}: {error.strerror}"
    return ConfigError(what, "the system refuses it", "another path, or the right to this one")


def _tell_torchrun(what: str) -> None:
    """Let torchrun's own report, which comes last, name the cause too. Its format: a JSON object in
    the rank's error file, torch.distributed.elastic.multiprocessing.errors."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError):  # said on stderr already
            cause = {"message": what, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(path).write_text(json.dumps({"message": cause}))


def _claims_the_message(message: str) -> bool:
    """True for one of the local processes that want to say the same.

    torchrun gives every attempt of a job its own directory (the parent of each rank's error file): the first rank to
    create a file named after the message there is the one that speaks.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return launcher.rank() == 0
    claim = (
        Path(error_file).parents[1] / f"said-{hashlib.sha256(message.encode()).hexdigest()[:16]}"
    )
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:
        return launcher.rank() == 0
    return True
