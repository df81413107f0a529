"""The whole chain on two CPU cores: raw records and questions in, an answering model out.

    python examples/quickstart.py [DIRECTORY]        default: quickstart

Every step is a command that is printed before it runs; try them by hand, with other values. The
data are the short records and questions of examples/sample_data, written for this repository.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.log import read_metrics

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples" / "sample_data"
CONFIGS = ROOT / "examples" / "configs"


def steps(directory: Path) -> list[tuple[str, list[str]]]:
    """Title of every step and the words of its command, less the python they begin with."""
    folders = (ROOT, ROOT / "tools", CONFIGS, DATA, directory)
    root, tools, configs, data, out = (shlex.quote(str(folder)) for folder in folders)
    tokenizer = f"--tokenizer-type HuggingFaceTokenizer --tokenizer-model {out}/tokenizer"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node"
    table = {
        "1. a tokenizer learned from the records and questions": f"""
            {tools}/train_tokenizer.py --vocab-size 1024 --output-dir {out}/tokenizer
            --input {data}/pubmed_sample.xml {data}/medquad_train.xml""",
        "2. records to a shard of tokens": f"""
            {tools}/preprocess_data.py --input {data}/pubmed_sample.xml
            --output-prefix {out}/data/pubmed --append-eod {tokenizer}""",
        "3. questions and answers to a shard of pairs": f"""
            {tools}/preprocess_data.py --input {data}/medquad_train.xml
            --output-prefix {out}/data/medquad --split 100,0,0 {tokenizer}""",
        "4. the held-out wordings of the questions": f"""
            {tools}/preprocess_data.py --input {data}/medquad_held_out.xml
            --output-prefix {out}/data/held_out --split 0,0,100 {tokenizer}""",
        "5. pretraining on 8 processes: tensor 2 x pipeline 2 x data 2": f"""
            {torchrun} 8 {root}/pretrain_gpt.py
            --config {configs}/tiny.toml --config {configs}/quickstart_pretrain.toml
            --data-path {out}/data/pubmed_text_document --tokenizer-model {out}/tokenizer
            --save {out}/pretrained""",
        "6. finetuning on 2 processes, from the same checkpoint in another layout": f"""
            {torchrun} 2 {root}/finetune_qa.py --config {configs}/quickstart_finetune.toml
            --load {out}/pretrained --train-data-path {out}/data/medquad_train_qa_document
            --valid-data-path {out}/data/held_out_test_qa_document --save {out}/finetuned""",
        "7. answers to the held-out wordings": f"""
            {tools}/evaluate_qa.py --load {out}/finetuned --limit 0 --max-new-tokens 32 --greedy-only
            --data {out}/data/held_out_test.jsonl --output {out}/answers.jsonl""",
        "8. a page about the finetuning, for any browser": f"""
            {tools}/report.py {out}/finetuned""",
        "9. a directory for Hugging Face transformers": f"""
            {tools}/convert_checkpoint.py --to hf --load {out}/finetuned --save {out}/huggingface""",
        "10. one question, asked of the exported model": f"""
            {tools}/generate_text.py --load {out}/huggingface
            --question "Which organ makes insulin?" """,
    }
    return [(title, shlex.split(command)) for title, command in table.items()]


def step(title: str, words: list[str]) -> None:
    """Print a command and run it; end with its status if it fails."""
    print(f"\n=== {title}\n$ {shlex.join([python(), *words])}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, *words], env=environment, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def python() -> str:
    """The Python that runs this, as a person here would type it."""
    here, path = Path.cwd(), Path(sys.executable)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def main() -> None:
    """Run every step into a new directory. Raises ConfigError where it exists."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", default="quickstart", metavar="DIRECTORY")
    out = Path(parser.parse_args().directory)
    if out.exists():
        raise ConfigError(
            f"{out} exists",
            "nothing is overwritten",
            f"another directory (make quickstart OUT=other), or rm -r {shlex.quote(str(out))}",
        )
    print("The whole chain in ten commands; each runs with OMP_NUM_THREADS=1.")
    begun = time.perf_counter()
    for title, words in steps(out):
        step(title, words)
    summarise(out, time.perf_counter() - begun)


def summarise(out: Path, seconds: float) -> None:
    """Where everything lies, and the few numbers a person wants to see."""
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    right = sum(a["answer"].split() == a["reference"].split() for a in answers)
    pretrained = read_metrics(out / "pretrained" / "metrics.jsonl", "step")
    finetuned = read_metrics(out / "finetuned" / "metrics.jsonl", "step")
    print(f"""
=== done in {seconds:.0f} s

pretraining   loss {pretrained[0]["lm_loss"]:.2f} -> {pretrained[-1]["lm_loss"]:.2f} in {len(pretrained)} steps
finetuning    loss {finetuned[0]["lm_loss"]:.2f} -> {finetuned[-1]["lm_loss"]:.2f} in {len(finetuned)} steps
held out      {right} of {len(answers)} questions in a wording never trained on answered word for word
              (their facts were trained on, in other wordings: this shows that the chain works, no more;
              they were the validation set too, by which nothing was chosen)

tokenizer     {out / "tokenizer"}
shards        {out / "data"}
pretrained    {out / "pretrained"}
finetuned     {out / "finetuned"}
answers       {out / "answers.jsonl"}
report        {out / "finetuned" / "report.html"}, to open in a browser
Hugging Face  {out / "huggingface"}

ask it        {python()} tools/generate_text.py --load {out / "huggingface"} --question "What causes malaria?"
next          README.md says how to run on your own data, and on 32 GPUs""")


if __name__ == "__main__":
    run_command(main)
