"""Say in a page what would keep a job from running, before it starts.

    python -m megatron_yuyuan.doctor                                   the machine alone
    torchrun ... -m megatron_yuyuan.doctor pretrain_gpt.py FLAGS       a training command, on its own ranks
    torchrun ... -m megatron_yuyuan.doctor finetune_qa.py FLAGS

The flags are those of the command, and --json. Looked at are torch, devices, compilers, kernels and apex;
checkpoint, tokenizer, configuration and shards; every process group of the mesh with its bandwidth; the save
directory, its room and its speed. Nothing is left behind in it. Each line is ok, a warning or an error with
what to try. Ends with status 0, or with 2 if something must be changed.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.doctor.findings import ERROR, LEVELS, Finding
from megatron_yuyuan.errors import ConfigError, YuyuanError

SCRIPTS = ("pretrain_gpt.py", "finetune_qa.py")


def main(args: Sequence[str] | None = None) -> None:
    """Examine, print the page on rank 0. Raises ConfigError on every rank if there is an error."""
    words = list(sys.argv[1:] if args is None else args)
    named = words.pop(0) if words and not words[0].startswith("-") else SCRIPTS[0]
    script = named.rpartition("/")[2]
    if script not in SCRIPTS:
        raise ConfigError(
            f"the doctor does not know {named}",
            f"it examines the commands {' and '.join(SCRIPTS)}",
            f"python -m megatron_yuyuan.doctor {SCRIPTS[0]} FLAGS",
        )
    config = parse_config(__doc__, [word for word in words if word != "--json"])
    from megatron_yuyuan.doctor.examination import examine  # imports torch
    from megatron_yuyuan.parallel import mesh as mesh_module

    page = examine(config, script == SCRIPTS[1])
    if mesh_module.rank() == 0:
        show(page.findings, "--json" in words)
    require_good(page.findings, page.broken_off)


def show(findings: list[Finding], as_json: bool) -> None:
    """Print the page."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1), flush=True)
        return
    lines = [line for finding in findings for line in finding.lines()]
    counts = Counter(finding.level for finding in findings)
    print(
        "\n".join([*lines, ", ".join(f"{level}: {counts[level]}" for level in LEVELS)]), flush=True
    )


def require_good(findings: list[Finding], broken_off: YuyuanError | None) -> None:
    """Raises ConfigError for a page with an error, and for one that was broken off: then every rank says
    why, since nobody knows which of them is heard."""
    if broken_off:
        raise ConfigError(broken_off.what, broken_off.why, broken_off.remedy)
    errors = [finding.name for finding in findings if finding.level == ERROR]
    if errors:
        raise ConfigError(
            f"the doctor found errors: {', '.join(dict.fromkeys(errors))}",
            "the job would not start, or not as it was asked to",
            "what stands beside them on the page",
        )


if __name__ == "__main__":
    run_command(main)
