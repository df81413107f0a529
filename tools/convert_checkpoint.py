"""Turn a run's checkpoint into a Hugging Face or Megatron-core directory, or one of these into a run to
start from.

    python tools/convert_checkpoint.py --to hf --load RUN --save DIR [--ckpt-step N] [--dtype bfloat16]
    python tools/convert_checkpoint.py --from hf --load HF_DIR --save RUN
    python tools/convert_checkpoint.py --to megatron --load RUN --save DIR
    python tools/convert_checkpoint.py --from megatron --load DIR --save RUN --tokenizer-type ... --tokenizer-model ...

--load of --to may be a Hugging Face directory too, that of --from megatron a file of GPTModel.state_dict().
An import is a checkpoint of iteration 0: pass it as --load RUN --finetune. Both sides compute the logits
of a few tokens before anything appears, and the conversion ends with an error if they differ. It needs the
memory of the embedding and a layer.
"""

import argparse
from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import flag_of
from megatron_yuyuan.data.tokenizer import (
    TOKENIZER_FIELDS,
    add_tokenizer_arguments,
    named_tokenizer,
)

OF = {
    "--dtype": "--to hf",
    "--num-attention-heads": "--from megatron",
    "--trust": "--from megatron",
    **{flag_of(name): "--from megatron" for name in TOKENIZER_FIELDS},
}
"""Flag -> the only direction that it belongs to."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, convert, say what was written. Raises ConfigError, DataError,
    UnsafeError."""
    options = _parse(args)
    if options.origin:
        _import(options)
    else:
        _export(options)


def _export(options: argparse.Namespace) -> None:
    from megatron_yuyuan.checkpoint.model import open_model  # torch: after --help

    source = open_model(options.load, options.ckpt_step or None)
    if options.to == "hf":
        from megatron_yuyuan.checkpoint.hf import export_directory
        from megatron_yuyuan.checkpoint.model_card import SCORES, why_no_scores

        dtype, rows = options.dtype or "float32", source.config.vocab_size
        written = export_directory(source, options.save, dtype)
        print(f"scores in README.md: {why_no_scores(source.path) or SCORES}")
    else:
        from megatron_yuyuan.checkpoint.megatron_convert import export_megatron

        dtype, rows = "float32", source.config.padded_vocab_size
        written = export_megatron(source, options.save)
    print(f"exported {source.path} as {dtype}; logits checked against the checkpoint")
    if rows < source.config.padded_vocab_size:
        print(f"vocabulary: {source.config.padded_vocab_size} rows trimmed to {rows}")
    print(f"written {written.absolute()}: {', '.join(sorted(p.name for p in written.iterdir()))}")


def _import(options: argparse.Namespace) -> None:
    if options.origin == "hf":
        from megatron_yuyuan.checkpoint.hf import import_directory
        from megatron_yuyuan.checkpoint.hf_start import HF_PREFIX

        run = import_directory(options.load.removeprefix(HF_PREFIX), options.save)
    else:
        from megatron_yuyuan.checkpoint.megatron_convert import import_megatron

        run = import_megatron(
            options.load,
            options.save,
            named_tokenizer(options),
            options.ckpt_step or None,
            options.num_attention_heads,
            options.trust,
        )
    print(f"written {run.absolute()}: checkpoint iter_0000000 of {options.load}; logits checked")
    print(f"next: finetune_qa.py --load {options.save} ... or, to go on pretraining,")
    print(f"      pretrain_gpt.py --load {options.save} --finetune ...")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    direction = parser.add_mutually_exclusive_group(required=True)
    formats = ("hf", "megatron")
    direction.add_argument("--to", choices=formats, help="export to this format")
    direction.add_argument("--from", dest="origin", choices=formats, help="import from this format")
    parser.add_argument("--load", required=True, metavar="DIR", help="what is converted")
    parser.add_argument(
        "--save", required=True, metavar="DIR", help="what is made; must not exist, or be empty"
    )
    parser.add_argument(
        "--ckpt-step",
        type=int,
        default=0,
        metavar="N",
        help="iteration of --load; 0 (default): the latest",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=None,
        help="of an export's weights (default: float32)",
    )
    group = parser.add_argument_group("--from megatron")
    group.add_argument(
        "--num-attention-heads",
        type=int,
        default=0,
        metavar="N",
        help="where the checkpoint's arguments cannot be read without running code",
    )
    group.add_argument(
        "--trust",
        action="store_true",
        help="open legacy mp_rank_* files, which may run code, in a process of their own",
    )
    add_tokenizer_arguments(group)
    options = parser.parse_args(args)
    chosen = f"--to {options.to}" if options.to else f"--from {options.origin}"
    for flag, belongs in OF.items():
        name = flag[2:].replace("-", "_")
        if chosen != belongs and getattr(options, name) != parser.get_default(name):
            parser.error(f"{flag} belongs to {belongs}")
    if chosen == "--from hf" and options.ckpt_step:
        parser.error("--ckpt-step is of a run or of a Megatron directory")
    return options


if __name__ == "__main__":
    run_command(main)
