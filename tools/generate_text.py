"""Continue a text, or answer a question, with a trained model.

python tools/generate_text.py --load RUN --prompt "Diabetics should not eat" --max-new-tokens 30
python tools/generate_text.py --load RUN --question "What is gout?"
"""

from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.evaluate.arguments import add_model_arguments, add_sampling_arguments, sampling


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
    options = parser.parse_args(args)
    from megatron_yuyuan.checkpoint.model import load_model  # torch: after --help
    from megatron_yuyuan.evaluate.generate import answer, complete

    loaded = load_model(options.load, options.ckpt_step or None, options.device)
    if options.question is not None:
        print(answer(loaded, options.question, **sampling(options)))
    else:
        print(complete(loaded, loaded.tokenizer.encode(options.prompt), **sampling(options)))


if __name__ == "__main__":
    run_command(main)
