"""Translate a command of Megatron-LM's, or a shell script that holds one, into a command to run here.

    python tools/translate_args.py train_gpt3.sh checkpoints tensorboard vocab.json merges.txt data/text_document
    python tools/translate_args.py --set NUM_NODES=16 train_gpt3.sh
    python tools/translate_args.py -- torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 24 ...

What follows SCRIPT is $1, $2, ... of it. Nothing of the script is run. Printed are the flags that are
kept, changed, without effect and not supported, what Megatron-LM does by default and we do not, and the
command. Ends with status 2 if a flag is not supported or the command could not run.
"""

import json
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, parse_config, run_command
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.translation.command import SCRIPTS, Parts, is_training, parts_of
from megatron_yuyuan.translation.shell import ShellScript
from megatron_yuyuan.translation.translate import (
    GROUPS,
    KEPT,
    UNSUPPORTED,
    Note,
    Translation,
    translate,
)

GPT2_VOCABULARY = 50257
"""Assumed: the tokenizer need not be on this machine."""


@dataclass(frozen=True)
class Translated:
    """A command, what became of it, and whether it could run."""

    parts: Parts
    translation: Translation
    ranks: int
    """For how many it was checked; 0 where it was not."""
    problems: list[ConfigError]
    exported: dict[str, str]
    """Variables that the script exports: no part of the command."""

    @property
    def unsupported(self) -> list[Note]:
        return [note for note in self.translation.notes if note.group == UNSUPPORTED]


def main(args: Sequence[str] | None = None) -> None:
    """Read, translate, check, print. Raises ConfigError."""
    words = list(sys.argv[1:] if args is None else args)
    place = words.index("--") if "--" in words else len(words)
    options, command = _parse(words[:place]), words[place + 1 :]
    exported: dict[str, str] = {}
    if bool(options.script) == bool(command):
        what = "give a script, or a command after --, one of the two"
        raise ConfigError(what, "one command is translated", "translate_args.py train.sh ARGUMENTS")
    if options.set and not options.script:
        what = "--set without a script"
        raise ConfigError(what, "its variables are those of a script", "leave it out")
    if options.script:
        path, *arguments = options.script
        script = ShellScript(path, arguments, dict(options.set), tuple(SCRIPTS), exported)
        command = read_command(script)
    parts = parts_of(command)
    translation = translate(parts)
    translated = Translated(parts, translation, *check(parts, translation), exported)
    if options.json:
        print(json.dumps(as_json(translated), indent=2), flush=True)
    else:
        print("\n".join(lines(translated)), flush=True)
    require_all(translated)


def _parse(words: list[str]):
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "script", nargs="*", metavar="SCRIPT [ARGUMENT]", help="a shell script, and its $1, $2, ..."
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", type=_named_value,
        help="a variable's value, whatever the script makes of it; may be given several times")  # fmt: skip
    add("--json", action="store_true", help="print a JSON object")
    return parser.parse_args(words)


def _named_value(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--set {word}", "it gives a variable a value", "--set NAME=VALUE")
    return name, value


def read_command(script: ShellScript) -> list[str]:
    """The words of the one command of a script that is translated. Raises ConfigError."""
    try:
        text = Path(script.name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read {script.name}: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(what, "it is the script to translate", "a shell script") from None
    found = [command for command in script.commands(text) if is_training(command.words)]
    if len(found) == 1:
        return found[0].words
    places = ", ".join(str(command.line) for command in found)
    names = " or ".join(SCRIPTS)
    raise ConfigError(
        f"{script.name} starts {f'several, at lines {places}' if found else 'none'}, of {names}",
        "one command is translated",
        "-- COMMAND, the one that is meant, as bash -x prints it",
    )


def check(parts: Parts, translation: Translation) -> tuple[int, list[ConfigError]]:
    """(ranks, what is wrong with the command on them); 0 ranks where nothing was checked. What stands in
    files is not looked at; the vocabulary is taken to be GPT-2's."""
    if parts.script != "pretrain_gpt.py":
        return 0, []
    from megatron_yuyuan.resolve import resolve  # imports torch
    from megatron_yuyuan.validation import validate

    ranks = 0
    try:
        config = parse_config("", translation.words)
        ranks = parts.ranks or config.parallel.model_ranks
        validate(resolve(config, GPT2_VOCABULARY, None, ranks), ranks)
    except ConfigErrors as errors:
        return ranks, errors.problems
    except ConfigError as error:
        return ranks, [error]
    return ranks, []


def as_json(translated: Translated) -> dict:
    """All of it as JSON values."""
    parts, translation = translated.parts, translated.translation
    problems = [{"what": p.what, "why": p.why, "try": p.remedy} for p in translated.problems]
    return {
        "flags": [asdict(note) for note in translation.notes],
        "exported": translated.exported,
        "ranks": translated.ranks,
        "problems": problems,
        "command": [*parts.launcher, parts.script, *translation.words],
    }


def lines(translated: Translated) -> list[str]:
    """The notes by group, then the command."""
    shown: list[str] = []
    for group in GROUPS:
        notes = [note for note in translated.translation.notes if note.group == group]
        shown += [f"{group} ({len(notes)})"] if notes else []
        if group == KEPT:
            together = "  ".join(note.was.replace(" ", "\0") for note in notes)
            wrapped = textwrap.wrap(together, 110, initial_indent="  ", subsequent_indent="  ",
                                    break_long_words=False, break_on_hyphens=False)  # fmt: skip
            shown += [line.replace("\0", " ") for line in wrapped]
        else:
            shown += [f"  {_shown(note)}" for note in notes]
    if translated.exported:
        values = " ".join(f"{name}={value}" for name, value in translated.exported.items())
        shown += ["exported by the script, no part of the command", f"  {values}"]
    if translated.ranks:
        found = "found nothing wrong" if not translated.problems else "it could not run"
        shown.append(f"checked on {translated.ranks} ranks: {found}")
    return [*shown, "", *command_lines(translated)]


def _shown(note: Note) -> str:
    arrow = " -> " if note.was and note.now else ""
    return f"{note.was}{arrow}{note.now}{f': {note.why}' if note.why else ''}"


def command_lines(translated: Translated) -> list[str]:
    """The command to run here, a flag a line."""
    shown = [shlex.join([*translated.parts.launcher, translated.parts.script])]
    shown += [f"    {shlex.join([n, *v])}" for n, v in translated.translation.flags.items()]
    return [f"{line} \\" for line in shown[:-1]] + shown[-1:]


def require_all(translated: Translated) -> None:
    """Raises ConfigErrors for flags that were left out, and for a command that could not run."""
    problems = translated.problems
    if translated.unsupported:
        missing = ConfigError(
            f"not supported: {', '.join(note.was for note in translated.unsupported)}",
            "the command above leaves it out, and would run otherwise than there",
            "what stands beside it",
        )
        problems = [missing, *problems]
    if problems:
        raise ConfigErrors(problems)


if __name__ == "__main__":
    run_command(main)
