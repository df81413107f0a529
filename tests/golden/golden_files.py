"""Write the golden files anew, with the version of the code that is here.

    python tests/golden/golden_files.py

To be run only when a format is changed on purpose, together with its version: every later version
must read these files, or refuse them by their version.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from commands import ROOT, run, tokenizer_flags  # noqa: E402

from megatron_yuyuan.checkpoint.model import load_model  # noqa: E402
from megatron_yuyuan.log import read_metrics  # noqa: E402

DOCUMENTS = 40


def flags(data: Path | str, save: Path | str, *more: object) -> tuple[object, ...]:
    """The golden run: a model of 5,000 parameters with everything on."""
    return (
        *(ROOT / "pretrain_gpt.py", "--device", "cpu", "--num-layers", 2, "--hidden-size", 8),
        *("--num-attention-heads", 2, "--seq-length", 16, "--global-batch-size", 4),
        *("--hidden-dropout", 0.1, "--attention-dropout", 0.1, "--lr", 1e-2, "--train-iters", 6),
        *("--save-interval", 3, "--eval-interval", 3, "--eval-iters", 1, "--split", "90,10,0"),
        *("--data-path", data, "--save", save, *more),
    )


def probe_logits(directory: Path) -> list[float]:
    """Logits of the last of eight fixed tokens."""
    import torch

    model = load_model(directory).model
    tokens = torch.arange(8)[None] * 31 % model.config.vocab_size
    with torch.no_grad():
        logits = model(tokens, positions=torch.arange(8)[None], sample_ids=tokens[:, 0], step=0)
    return logits[0, -1].tolist()


def main() -> None:
    for path in HERE.iterdir():
        if path.suffix != ".py":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        sample = ROOT / "examples" / "sample_data" / "pubmed_sample.xml"
        records = scratch / "records.jsonl"
        from megatron_yuyuan.data.pubmed import read_pubmed

        texts = [citation.text for citation in read_pubmed(sample)][:DOCUMENTS]
        records.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        # relative paths: the configuration that is saved names no place on this machine
        run(ROOT / "tools" / "train_tokenizer.py", "--input", records, "--vocab-size", 270,
            "--output-dir", "tokenizer", cwd=scratch)  # fmt: skip
        tokenizer = tokenizer_flags("tokenizer")
        run(ROOT / "tools" / "preprocess_data.py", "--input", records, "--output-prefix",
            "text", "--append-eod", *tokenizer, cwd=scratch)  # fmt: skip
        layout = ("--pipeline-model-parallel-size", 2)
        run(*flags("text_text_document", "run", *tokenizer, *layout), ranks=2, cwd=scratch)
        run(ROOT / "tools" / "convert_checkpoint.py", "--to", "hf", "--load", scratch / "run",
            "--ckpt-step", 3, "--save", HERE / "export")  # fmt: skip
        for path in scratch.glob("text_text_document.*"):
            shutil.copy(path, HERE)
        (HERE / "run").mkdir()
        for name in ("iter_0000003", "tokenizer"):
            shutil.copytree(scratch / "run" / name, HERE / "run" / name)
        for name in ("metrics.jsonl", "config.toml"):
            shutil.copy(scratch / "run" / name, HERE / "run" / name)
        for name in ("vocab.json", "merges.txt"):  # the run's tokenizer.json holds both
            (HERE / "run" / "tokenizer" / name).unlink()
        steps = read_metrics(HERE / "run" / "metrics.jsonl", "step")
        expected = {
            "logits": probe_logits(HERE / "run"),
            "losses_after": [step["lm_loss"] for step in steps[3:]],
        }
        (HERE / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
