"""Pretrain GPT-2 on shards of tokens.

torchrun --nproc-per-node 8 pretrain_gpt.py --config examples/configs/tiny.toml --data-path PREFIX --save DIR
python pretrain_gpt.py ...          the same as one process
"""

from contextlib import nullcontext

from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.watch.witness import watched


def main() -> None:
    config = parse_config(__doc__)
    timeout = 60 * config.parallel.distributed_timeout_minutes
    save, is_rehearsal = (
        config.checkpoint.save,
        config.parallel.dry_run,
    )  # that leaves nothing there
    with nullcontext() if is_rehearsal else watched(save, timeout) as own:
        from megatron_yuyuan.run import (
            pretrain,
        )  # torch is imported only now: --help and a wrong flag answer at once

        pretrain(config, own)


if __name__ == "__main__":
    run_command(main)
