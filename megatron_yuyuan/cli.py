"""Command lines: flags generated from `config.py`, Megatron-LM's names, and errors a person can act
on."""

import argparse
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_yuyuan.config import Config, config_fields, load_toml, nearest
from megatron_yuyuan.errors import ConfigError, YuyuanError

NOT_YET = frozenset(
    """
    --context-parallel-size --num-layers-per-virtual-pipeline-stage --rampup-batch-size
    --train-samples --use-distributed-optimizer --fp16 --loss-scale --initial-loss-scale
    --loss-scale-window --hysteresis --data-cache-path --num-workers --eod-mask-loss
    --reset-position-ids --reset-attention-mask --untie-embeddings-and-output-weights
    --save-retain-interval --no-load-rng --async-save --verify-integrity --exit-signal-handler
    --exit-signal --exit-duration-in-mins --exit-interval --log-throughput --log-progress
    --tensorboard-dir --wandb-project --iterations-to-skip --check-for-nan-in-loss-and-grad
    --deterministic-mode --recompute-activations --recompute-granularity --recompute-method
    --lr-warmup-samples --lr-decay-samples
    """.split()
)
"""Megatron-LM flags whose feature is planned here and not built: refused, never ignored."""

NO_EFFECT = frozenset(
    """
    --use-mcore-models --no-gradient-accumulation-fusion --use-flash-attn --overlap-grad-reduce
    --overlap-param-gather --manual-gc --no-masked-softmax-fusion
    --no-create-attention-mask-in-dataloader --use-cpu-initialization
    """.split()
)
"""Megatron-LM flags without a value that change nothing here: accepted, and said so."""

NO_EFFECT_WITH_VALUE = frozenset({"--transformer-impl"})


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are `ConfigError`s and whose flags may be written with - or _."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        words = [
            re.sub(r"^(--[^=]+)", lambda m: m[1].replace("_", "-"), word)
            for word in (sys.argv[1:] if args is None else args)
        ]
        return super().parse_args(words, namespace)

    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown and unknown[1] in NOT_YET:
            raise ConfigError(
                f"{unknown[1]} is not yet supported",
                "a flag of Megatron-LM that would be ignored silently is refused instead",
                "leave it out; README.md lists what works today",
            )
        if unknown:
            remedy = nearest(unknown[1], self._option_string_actions)
            raise ConfigError(f"unknown argument {unknown[1]}", "nothing reads it", remedy)
        raise ConfigError(message, "the command line could not be read", f"{self.prog} --help")


def parse_config(description: str, args: Sequence[str] | None = None) -> Config:
    """Read defaults, then every --config FILE.toml in order, then the flags; a later one wins.

    Raises ConfigError. `--print-config` prints the result as TOML and ends the process with status
    0.
    """
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    groups: dict[str, argparse._ArgumentGroup] = {}
    documented = _field_documentation()
    for name, (group, declared) in config_fields().items():
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        flag, text = (
            "--" + name.replace("_", "-"),
            f"{documented[name]} (default: {_shown(declared.default)})",
        )
        options: dict = {"dest": name, "default": None, "help": text.replace("%", "%%")}
        if declared.type is bool:
            action = "store_true" if name.startswith("no_") else argparse.BooleanOptionalAction
            groups[group].add_argument(flag, action=action, **options)
        elif declared.type == tuple[str, ...]:
            groups[group].add_argument(flag, nargs="+", metavar="PREFIX", **options)
        else:
            choices = declared.metadata.get("choices")
            metavar = None if choices else declared.type.__name__.upper()
            groups[group].add_argument(
                flag, type=declared.type, choices=choices, metavar=metavar, **options
            )
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
    config = Config().replace(**values)
    if show:
        print(config.to_toml())
        sys.exit(0)
    return config


def _shown(default) -> str:
    return " ".join(default) or "none" if isinstance(default, tuple) else str(default) or "none"


def _without_ineffective(words: list[str]) -> list[str]:
    """Drop Megatron-LM flags that mean nothing here, and say so."""
    kept, dropped, words = [], [], iter(words)
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if flag in NO_EFFECT or flag in NO_EFFECT_WITH_VALUE:
            dropped.append(flag)
            if flag in NO_EFFECT_WITH_VALUE and "=" not in word:
                next(words, None)
        else:
            kept.append(word)
    if dropped and _is_first_rank():
        print(f"warning: {', '.join(dropped)}: accepted, no effect here", file=sys.stderr)
    return kept


def _field_documentation() -> dict[str, str]:
    """Field name -> the string that stands under it in config.py."""
    import ast

    from megatron_yuyuan import config

    documented = {}
    for node in ast.parse(Path(config.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for declared, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(declared, ast.AnnAssign) and isinstance(below, ast.Expr):
                    documented[declared.target.id] = " ".join(below.value.value.split())
    return documented


def run_command(main: Callable[[], None]) -> None:
    """Run a command and turn its end into an exit status.

    0 done; 1 our own bug, with traceback; 2 something a person must change, in three lines on
    stderr, printed once per job. `--debug` on the command line adds the traceback.
    """
    try:
        main()
    except YuyuanError as error:
        if _claims_the_message(str(error)):
            if "--debug" in sys.argv:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except (
        BrokenPipeError
    ):  # the reader of our output (head, less) has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _claims_the_message(message: str) -> bool:
    """True for one of the local processes that want to say the same.

    torchrun gives every attempt of a job its own directory (the parent of each rank's error file): the first rank to
    create a file named after the message there is the one that speaks.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return _is_first_rank()
    claim = (
        Path(error_file).parents[1] / f"said-{hashlib.sha256(message.encode()).hexdigest()[:16]}"
    )
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:
        return _is_first_rank()
    return True
