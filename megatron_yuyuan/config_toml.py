"""Configurations as TOML: the tables of `Config`, with every name and type checked."""

import dataclasses
import difflib
import tomllib
from pathlib import Path

from megatron_yuyuan.config import Config, config_fields
from megatron_yuyuan.errors import ConfigError, refused_for_now
from megatron_yuyuan.megatron_flags import not_yet

KINDS: dict[object, str] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    tuple[str, ...]: "a list of strings",
    tuple[int, ...]: "a list of integers",
}
"""Type of a field -> what a person writes for it."""
ITEMS: dict[object, type] = {tuple[str, ...]: str, tuple[int, ...]: int}
"""Type of a field that TOML writes as a list -> type of its items."""


def to_toml(config: Config) -> str:
    """TOML text that `load_toml` reads back to an equal Config."""
    lines = []
    for group, values in config.to_dict().items():
        lines += [
            f"[{group}]",
            *(f"{name} = {_toml_value(value)}" for name, value in values.items()),
            "",
        ]
    return "\n".join(lines)


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = (
            value.replace("\\", "\\\\")
            .replace('"', '\\"')
            .replace("\n", "\\n")
            .replace("\t", "\\t")
        )
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def from_dict(groups: dict) -> Config:
    """The inverse of `Config.to_dict`; values are checked as those of a TOML file are."""
    return Config().replace(**_flatten(groups, "the saved configuration"))


def _flatten(groups: dict, source: str) -> dict:
    """Tables of a TOML file -> {field name: value}, with every table, name and type checked. Raises
    ConfigError."""
    fields, values = config_fields(), {}
    for table, entries in groups.items():
        if table not in {group for group, _ in fields.values()}:
            tables = ", ".join(f"[{f.name}]" for f in dataclasses.fields(Config))
            raise ConfigError(
                f"{source}: unknown table [{table}]", "each value belongs to a table", tables
            )
        if not isinstance(entries, dict):
            raise ConfigError(
                f"{source}: {table} is not a table", "its values stand in one", f"[{table}]"
            )
        for name, value in entries.items():
            group, declared = fields.get(name, ("", None))
            if not group and not_yet(name):
                raise refused_for_now(f"{source}: {name}")
            if declared is None or group != table:
                place = f"{name} belongs to [{group}]" if group else nearest(name, fields)
                raise ConfigError(
                    f"{source}: [{table}] has no {name}", "it would be ignored silently", place
                )
            values[name] = _checked(value, declared, source)
    return values


def _checked(value, declared: dataclasses.Field, source: str):
    kind = declared.type
    if isinstance(value, int) and abs(value) >= 2**63:
        what, why = (
            f"{source}: {declared.name} has more than 64 bits",
            "nothing here counts that high",
        )
        raise ConfigError(what, why, "a smaller number")
    if kind is float and type(value) is int:
        value = float(value)
    items = ITEMS.get(kind)
    if items and isinstance(value, list) and all(type(item) is items for item in value):
        value = tuple(value)
    elif type(value) is not kind:
        what = f"{source}: {declared.name} = {value!r} is not {KINDS[kind]}"
        raise ConfigError(what, "types are checked", KINDS[kind])
    choices = declared.metadata.get("choices")
    if choices and value not in choices:
        raise ConfigError(
            f"{source}: {declared.name} = {value!r}", "not a known choice", ", ".join(choices)
        )
    return value


def require_text(name: str, value) -> None:
    """Raises ConfigError where text, or one of several, holds what no file name, no TOML file and no line
    of a log can: a control character, or half of a character."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not all(c.isprintable() or c in "\n\t" for c in text):
            raise ConfigError(
                f"{name} holds {text!a}",
                "a control character, or bytes that are no UTF-8, can be neither saved nor shown",
                "the same without it",
            )


def nearest(name: str, known) -> str:
    """Advice for a name that is not known: the closest ones, or where the list is."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return " or ".join(close) if close else "--help lists every name"


def load_toml(path: str | Path) -> dict:
    """Read a TOML file of tables into {field name: value}. Raises ConfigError."""
    try:
        groups = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}",
            "--config names it",
            "a path that exists, e.g. examples/configs/tiny.toml",
        ) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are such
        raise ConfigError(
            f"{path} is not TOML: {error}", "--config takes TOML files", "mend that line"
        ) from None
    bare = [name for name, value in groups.items() if not isinstance(value, dict)]
    if bare:
        owners = ", ".join(f"[{config_fields()[n][0]}] {n}" for n in bare if n in config_fields())
        raise ConfigError(
            f"{path}: {bare[0]} stands outside a table",
            "each value belongs to a table",
            owners or nearest(bare[0], config_fields()),
        )
    return _flatten(groups, str(path))
