"""Finetune a pretrained GPT-2 on questions and answers; only the answers are learned.

torchrun --nproc-per-node 8 finetune_qa.py --load PRETRAINED --train-data-path PREFIX_train_qa_document --save DIR
python finetune_qa.py ...           the same as one process
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
            finetune,
        )  # torch is imported only now: --help and a wrong flag answer at once

        finetune(config, own)


if __name__ == "__main__":
    run_command(main)
