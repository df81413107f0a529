"""Continue a text, or answer a question, with a trained model.

python tools/generate_text.py --load RUN --prompt "Diabetics should not eat" --max-new-tokens 30
python tools/generate_text.py --load RUN --question "What is gout?"

A model too large for one device is divided over several; every layout gives the same text:

torchrun --nproc-per-node 4 tools/generate_text.py --load RUN --prompt "Gout is" \
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2
"""

from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.evaluate.arguments import (
    add_layout_arguments,
    add_model_arguments,
    add_sampling_arguments,
    layout_of,
    sampling,
)


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, print the continuation or the answer. Raises ConfigError, DataError,
    UnsafeError."""
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="a text to continue, taken as it stands")
    what.add_argument(
        "--question",
        metavar="TEXT",
        help="a question, put into the template the model was trained on",
    )
    add_sampling_arguments(parser)
    add_layout_arguments(parser)
    options = parser.parse_args(args)
    from megatron_yuyuan.checkpoint.model import (
        load_divided_model,
        load_model,
    )  # torch: after --help
    from megatron_yuyuan.evaluate.generate import answer, complete
    from megatron_yuyuan.parallel import mesh

    iteration, layout = options.ckpt_step or None, layout_of(options)
    try:
        if mesh.world_size() > 1 or layout != ParallelConfig(device=options.device):
            loaded = load_divided_model(options.load, iteration, layout)
        else:
            loaded = load_model(options.load, iteration, options.device)
        if options.question is not None:
            text = answer(loaded, options.question, **sampling(options))
        else:
            text = complete(loaded, loaded.tokenizer.encode(options.prompt), **sampling(options))
        if mesh.rank() == 0:
            print(text)
    finally:
        mesh.stop()


if __name__ == "__main__":
    run_command(main)
