"""Turn a run's checkpoint into a Hugging Face directory, or a Hugging Face GPT-2 into a run to
start from.

    python tools/convert_checkpoint.py --to hf --load RUN --save DIR [--ckpt-step N] [--dtype bfloat16]
    python tools/convert_checkpoint.py --from hf --load HF_DIR --save RUN

An export opens with transformers and with --load of this package's tools; what it computes is
compared with the checkpoint before it appears. An import is a checkpoint of iteration 0: pass it as
--load RUN --finetune.
"""

from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.errors import ConfigError


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, convert, say what was written. Raises ConfigError, DataError,
    UnsafeError."""
    parser = ArgumentParser(description=__doc__)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--to", choices=("hf",), help="export to this format")
    direction.add_argument("--from", dest="origin", choices=("hf",), help="import from this format")
    parser.add_argument("--load", required=True, metavar="DIR", help="what is converted")
    parser.add_argument(
        "--save", required=True, metavar="DIR", help="what is made; must not exist, or be empty"
    )
    parser.add_argument(
        "--ckpt-step",
        type=int,
        default=0,
        metavar="N",
        help="iteration to export; 0 (default): the latest",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=None,
        help="of an export's weights (default: float32)",
    )
    options = parser.parse_args(args)
    if options.origin and (options.dtype or options.ckpt_step):
        raise ConfigError(
            "--dtype and --ckpt-step belong to --to hf",
            "an import is float32, iteration 0",
            "leave them out",
        )
    from megatron_yuyuan.checkpoint.hf import (
        export_directory,
        import_directory,
    )  # torch: after --help
    from megatron_yuyuan.checkpoint.model import load_model

    if options.origin:
        run = import_directory(options.load, options.save)
        print(f"written {run.absolute()}: checkpoint iter_0000000 of {options.load}")
        print(f"next: finetune_qa.py --load {options.save} ... or, to go on pretraining,")
        print(f"      pretrain_gpt.py --load {options.save} --finetune ...")
        return
    dtype = options.dtype or "float32"
    loaded = load_model(options.load, options.ckpt_step or None)
    export = export_directory(loaded, options.save, dtype)
    config = loaded.model.config
    print(f"exported {loaded.path} as {dtype}; logits and token ids checked against the checkpoint")
    print(f"vocabulary: {config.padded_vocab_size} rows trimmed to {config.vocab_size}")
    print(
        f"written {export.absolute()}: {', '.join(sorted(path.name for path in export.iterdir()))}"
    )


if __name__ == "__main__":
    run_command(main)
