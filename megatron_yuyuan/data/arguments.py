"""Flags of single fields of `config.py`, for a command that needs a few and no whole
configuration."""

import argparse
from collections.abc import Sequence

from megatron_yuyuan.cli import _field_documentation
from megatron_yuyuan.config import config_fields

TOKENIZER = ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")
"""The fields of DataConfig that name a tokenizer."""


def add_config_arguments(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """A flag for each field named, with the type, choices, default and help of its declaration."""
    fields, documented = config_fields(), _field_documentation()
    for name in names:
        declared = fields[name][1]
        choices = declared.metadata.get("choices")
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=declared.type,
            choices=choices,
            default=declared.default,
            metavar=None if choices else declared.type.__name__.upper(),
            help=f"{documented[name]} (default: {declared.default or 'none'})".replace("%", "%%"),
        )
