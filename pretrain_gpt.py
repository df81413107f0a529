"""Pretrain GPT-2 on shards of tokens.

torchrun --nproc-per-node 8 pretrain_gpt.py --config examples/configs/tiny.toml --data-path PREFIX --save DIR
python pretrain_gpt.py ...          the same as one process
"""

from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.watch.witness import watching


def main() -> None:
    config = parse_config(__doc__)
    with watching(config) as watched:
        # torch is imported only now: --help and a wrong flag answer at once
        from megatron_yuyuan.run import pretrain

        pretrain(config, watched)


if __name__ == "__main__":
    run_command(main)
