r"""Continue texts, or answer questions, with a trained model.

python tools/generate_text.py --load RUN --prompt "Diabetics should not eat" --max-new-tokens 30
python tools/generate_text.py --load RUN --question "What is gout?" "What causes lupus?"

Several are asked together, --batch-size at once, and none changes what another gets.

A model too large for one device is divided over several; every layout gives the same text:

torchrun --nproc-per-node 4 tools/generate_text.py --load RUN --prompt "Gout is" \
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2
"""

import argparse
from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import ParallelConfig, flag_of
from megatron_yuyuan.evaluate.arguments import (
    add_layout_arguments,
    add_model_arguments,
    add_sampling_arguments,
    layout_of,
    sampling,
)


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, print the continuations or the answers. Raises ConfigError, DataError,
    UnsafeError."""
    options = _parse(args)
    from megatron_yuyuan.checkpoint.model import (
        load_divided_model,
        load_model,
    )  # torch: after --help
    from megatron_yuyuan.parallel import mesh

    iteration, layout = options.ckpt_step or None, layout_of(options)
    try:
        if mesh.world_size() > 1 or layout != ParallelConfig(device=options.device):
            loaded = load_divided_model(options.load, iteration, layout)
        else:
            loaded = load_model(options.load, iteration, options.device)
        texts = ask(loaded, options)
        if mesh.rank() == 0:
            show(options.question or options.prompt, texts)
    finally:
        mesh.stop()


def ask(loaded, options: argparse.Namespace) -> list[str]:
    """What the model says to every prompt or question."""
    from megatron_yuyuan.evaluate.generate import answer_all, complete_all

    how = {"batch_size": options.batch_size} | sampling(options)
    if options.question:
        return answer_all(loaded, options.question, **how)
    prompts = [loaded.tokenizer.encode(prompt) for prompt in options.prompt]
    return complete_all(loaded, prompts, **how)


def show(asked: Sequence[str], texts: Sequence[str]) -> None:
    """Print one text as it is, several each under what was asked."""
    if len(texts) == 1:
        print(texts[0])
        return
    for question, text in zip(asked, texts, strict=True):
        print(f"> {question}\n{text}\n")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help="texts to continue, taken as they stand"
    )
    what.add_argument(
        "--question",
        nargs="+",
        metavar="TEXT",
        help="questions, put into the template the model was trained on",
    )
    add_sampling_arguments(parser)
    add_layout_arguments(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="texts that are generated at once (default: 16)",
    )
    options = parser.parse_args(args)
    if options.batch_size < 1:
        parser.error("--batch-size is a number of texts, 1 or more")
    for name in ("top_k", "top_p", "seed"):
        if not options.temperature and getattr(options, name) != parser.get_default(name):
            flag = flag_of(name)
            parser.error(f"{flag} is of drawn tokens: give --temperature above 0 too")
    return options


if __name__ == "__main__":
    run_command(main)
