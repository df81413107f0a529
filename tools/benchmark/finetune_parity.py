"""The table of YuyuanQA's finetuning page, which compares two frameworks: the same base finetuned on the
same pairs in the same order, by finetune_qa.py and by a plain loop over transformers' GPT-2.

    python tools/benchmark/finetune_parity.py --load hf:BASE --train-data-path medquad_train.jsonl \\
        --data medquad_test.jsonl

The recipe is examples/configs/yuyuan_qa_16xA100.toml in float32, on one process; flags change it. Each
model answers greedily with its own framework's generation, and both are scored by all protocols of
tools/evaluate_qa.py. Needs the extra `hf`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from training_peers import adamw

from megatron_yuyuan.checkpoint.hf_start import HF_PREFIX
from megatron_yuyuan.checkpoint.model import load_model
from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import IGNORE, Config, flag_of
from megatron_yuyuan.config_toml import load_toml, to_toml
from megatron_yuyuan.data.loader import Batch, Dataset, read_batch
from megatron_yuyuan.data.medquad import read_qa_jsonl
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer, read_tokenizer
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.answers import Answered, score_systems, spread
from megatron_yuyuan.evaluate.generate import answer_all
from megatron_yuyuan.evaluate.scores import report
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.resolve import resolve_length
from megatron_yuyuan.samples import question_datasets
from megatron_yuyuan.train.schedule import learning_rate

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "configs" / "yuyuan_qa_16xA100.toml"


def finetune_ours(config: Config, directory: str) -> list[float]:
    """Finetune by the command a user runs; return the losses of its steps."""
    settings = Path(directory, "settings.toml")
    settings.write_text(to_toml(config.replace(save=f"{directory}/run")))
    command = (sys.executable, ROOT / "finetune_qa.py", "--config", settings)
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return [step["lm_loss"] for step in read_metrics(f"{directory}/run/metrics.jsonl", "step")]


def finetune_plain(config: Config, tokenizer: Tokenizer):
    """transformers' model after the same steps in a plain loop, and the losses of its steps."""
    from transformers import GPT2LMHeadModel

    base = config.checkpoint.load.removeprefix(HF_PREFIX)
    model = GPT2LMHeadModel.from_pretrained(
        base, dtype=torch.float32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ).train()
    training_set, _ = question_datasets(config, tokenizer)
    config = resolve_length(config, len(training_set))
    o, t = config.optimizer, config.training
    optimizer = adamw(list(model.parameters()), o, None)
    losses = []
    for step in range(t.train_iters):
        optimizer.zero_grad()
        losses.append(backward(model, training_set, step * t.global_batch_size, config))
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, t.train_iters, o)
        optimizer.step()
    return model.eval(), losses


def backward(model, dataset: Dataset, consumed: int, config: Config) -> float:
    """Gradient of the loss of one global batch, summed over micro batches; return that loss."""
    size, micro = config.training.global_batch_size, config.training.micro_batch_size
    whole: Batch = read_batch(dataset, consumed, size, 0, 1, "cpu")
    count, total = torch.sum(whole.labels != IGNORE), 0.0
    for batch in whole.split(size // micro):
        logits, labels = model(batch.tokens).logits.flatten(0, 1), batch.labels.flatten()
        loss = torch.nn.functional.cross_entropy(
            logits, labels, reduction="sum", ignore_index=IGNORE
        )
        (loss / count).backward()
        total += (loss / count).item()
    return total


@torch.inference_mode()
def answers_of_plain(
    model, tokenizer: Tokenizer, questions: Sequence[str], new_tokens: int
) -> list[str]:
    """What transformers' greedy generation says to each question."""
    answers = []
    for question in questions:
        prompt = torch.tensor([TEMPLATE.encode_prompt(tokenizer, question)])
        room = model.config.n_positions - prompt.shape[1]
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(new_tokens, room),
            do_sample=False,
            eos_token_id=tokenizer.eod,
            pad_token_id=tokenizer.eod,
        )[0, prompt.shape[1] :].tolist()
        answers.append(tokenizer.decode(ids[:-1] if ids[-1] == tokenizer.eod else ids).strip())
    return answers


def configuration(options: argparse.Namespace) -> Config:
    """The recipe with what the flags change. Evaluation and checkpoints on the way are left out."""
    config = (
        Config()
        .replace(**load_toml(RECIPE))
        .replace(bf16=False, device="cpu", kernels="reference", keep_best=0)
    )
    given = {name: getattr(options, name) for name in CHANGED if getattr(options, name) is not None}
    if options.train_iters is not None:
        given["epochs"] = 0.0
    return config.replace(
        load=options.load,
        train_data_path=(options.train_data_path,),
        eval_iters=0,
        save_interval=0,
        **given,
    )


CHANGED = ("seq_length", "train_iters", "lr", "lr_warmup_iters", "micro_batch_size")
"""Values of the recipe that a flag may change."""


def main() -> None:
    """Finetune twice, answer twice, print the tables."""
    options = _parse()
    config = configuration(options)
    tokenizer = read_tokenizer(options.load.removeprefix(HF_PREFIX))
    pairs = spread(list(read_qa_jsonl(options.data)), options.limit)
    if not pairs:
        what, remedy = f"no question in {options.data}", "a JSONL file of question and answer"
        raise DataError(what, "there is nothing to score", remedy)
    questions, references = [p.question for p in pairs], [p.answer for p in pairs]
    with tempfile.TemporaryDirectory() as directory:
        our_losses = finetune_ours(config, directory)
        loaded = load_model(f"{directory}/run")
        ours = answer_all(loaded, questions, options.max_new_tokens)
    model, their_losses = finetune_plain(config, tokenizer)
    theirs = answers_of_plain(model, tokenizer, questions, options.max_new_tokens)
    apart = max(abs(a / b - 1) for a, b in zip(our_losses, their_losses, strict=True))
    print(f"{len(our_losses)} steps; losses of a step differ by at most {apart:.1e} of them")
    print(f"last losses: ours {our_losses[-1]:.5f}, transformers {their_losses[-1]:.5f}")
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{same} of {len(pairs)} answers are the same, letter for letter\n")
    systems = {
        name: [Answered(*each) for each in zip(questions, references, answers, strict=True)]
        for name, answers in (("megatron_yuyuan", ours), ("transformers, plain loop", theirs))
    }
    print(report(score_systems(systems)))


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--load", required=True, metavar="hf:DIR", help="the base, with its tokenizer")
    add("--train-data-path", required=True, metavar="PAIRS", help="shard, or JSONL file, of pairs")
    add("--data", required=True, metavar="FILE.jsonl", help="pairs held out")
    add(
        "--limit", type=int, default=100, metavar="N", help="of these, spread evenly (default: 100)"
    )
    add("--max-new-tokens", type=int, default=64, metavar="N", help="of an answer (default: 64)")
    for name in CHANGED:
        kind = float if name == "lr" else int
        add(flag_of(name), type=kind, help="in place of the recipe's")
    options = parser.parse_args()
    if not options.load.startswith(HF_PREFIX):
        parser.error("--load hf:DIR: transformers must be able to open it too")
    return options


if __name__ == "__main__":
    run_command(main)
