"""Finetune a pretrained GPT-2 on questions and answers; only the answers are learned.

torchrun --nproc-per-node 8 finetune_qa.py --load PRETRAINED --train-data-path PREFIX_train_qa_document --save DIR
python finetune_qa.py ...           the same as one process
"""

from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.watch.witness import watching


def main() -> None:
    config = parse_config(__doc__)
    with watching(config) as watched:
        # torch is imported only now: --help and a wrong flag answer at once
        from megatron_yuyuan.run import finetune

        finetune(config, watched)


if __name__ == "__main__":
    run_command(main)
