"""A run directory written by hand: everything that a report may find, at known times and values."""

import gzip
import json
import math
from pathlib import Path

from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import to_toml
from megatron_yuyuan.evaluate.scores import score, signatures

BEGUN = 1_800_000_000.0
"""Unix time of the first start."""
STEPS, RESTART, KILLED = 400, 200, 250
"""Steps of the run; the second start goes on from a checkpoint, the first was killed later."""
LOST = "rank 1 (a, pid 7) died: signal 9 (SIGKILL) in step 251"
SPIKE, SKIPPED = 310, 320
PIPELINE, MICRO_BATCHES = 2, 4
CONFIG = Config().replace(
    num_layers=4,
    hidden_size=128,
    num_attention_heads=4,
    max_position_embeddings=64,
    vocab_size=1024,
    seq_length=64,
    global_batch_size=32,
    train_iters=STEPS,
    pipeline_model_parallel_size=PIPELINE,
    eval_interval=50,
    save_interval=100,
)


def synthetic_run(directory: Path, shard: str = "nowhere/shard", text: str = "the disease") -> Path:
    """Write the run. text stands wherever a run holds a text that is not ours."""
    (directory / "profile").mkdir(parents=True)
    config = CONFIG.replace(data_path=(shard,), wandb_project=text, wandb_exp_name="a")
    (directory / "config.toml").write_text(to_toml(config))
    lines = "".join(json.dumps(event) + "\n" for event in events(text))
    (directory / "metrics.jsonl").write_text(lines + '{"event": "st')  # cut by a kill
    ending = {"class": "data", "status": 2, "step": STEPS, "cause": f"no room: {text}"}
    (directory / "exit.json").write_text(json.dumps(ending))
    (directory / "scores.json").write_text(json.dumps(scores(text)))
    (directory / "facts.json").write_text(json.dumps(facts(text)))
    for rank in range(PIPELINE):
        trace = {"baseTimeNanoseconds": 10**18, "traceEvents": trace_events(rank)}
        packed = gzip.compress(json.dumps(trace).encode())
        (directory / "profile" / f"rank_{rank:02d}.json.gz").write_bytes(packed)
    return directory


def events(text: str) -> list[dict]:
    """Two starts, of a second a step, with evaluations, checkpoints, a spike and a step passed over."""
    found, now = [], BEGUN
    for first, last in ((0, KILLED), (RESTART, STEPS)):
        began, now = now, now + 20
        layout = f"pipeline 2 {text}"
        found.append({"event": "start", "time": now, "iteration": first, "begun": began, "ranks": 2,
                      "layout": layout, "after": f"{LOST} {text}" if first else ""})  # fmt: skip
        if first:
            found.append({"event": "restart", "time": now, "iteration": first})
        for iteration in range(first + 1, last + 1):
            now += 1.0
            found.append(step(iteration, now))
            if iteration % CONFIG.training.eval_interval == 0:
                now += 5.0
                found += evaluation(iteration, now, text)
            if iteration % CONFIG.checkpoint.save_interval == 0:
                now += 2.0
                found.append({"event": "save", "time": now, "iteration": iteration, "path": text,
                              "seconds": 2.0, "blocked_seconds": 2.0})  # fmt: skip
        now += 60.0
    found.append({"event": "straggler", "time": now - 90, "iteration": STEPS, "rank": 3, "host": text,
                  "slower": 2.1})  # fmt: skip
    found.append({"event": "rollback", "time": now - 80, "iteration": STEPS, "left_out": [320, 383],
                  "rollbacks": 1, "spike": {}})  # fmt: skip
    found.append({"event": "stop", "time": now - 60, "iteration": STEPS, "kind": "signal",
                  "cause": text, "rank": 0, "host": "a"})  # fmt: skip
    return found


def loss(iteration: int) -> float:
    """Falls from 7 to 2, with a little noise, and once jumps."""
    noise = 0.05 * math.sin(7 * iteration)
    return 9.0 if iteration == SPIKE else 2 + 5 * math.exp(-iteration / 80) + noise


def step(iteration: int, time: float) -> dict:
    skipped = iteration == SKIPPED
    values = {
        "event": "skip" if skipped else "step",
        "time": time,
        "iteration": iteration,
        "lm_loss": None if skipped else loss(iteration),
        "grad_norm": 1.0,
        "learning_rate": 1e-3 * min(1.0, iteration / 40),
        "consumed_samples": 32 * iteration,
        "seconds": 1.0,
        "tokens_per_second": 2048.0 + 200 * math.sin(iteration),
        "mfu": 0.41 + 0.02 * math.sin(iteration),
    }
    return values | ({"reason": "not finite", "samples": [0, 31]} if skipped else {})


def evaluation(iteration: int, time: float, text: str) -> list[dict]:
    now = {"iteration": iteration, "time": time}
    held_out = loss(iteration) + 0.1
    words = [{"prompt": f"{prompt} {text}", "continuation": f" {iteration} {text}"}
             for prompt in ("Gout is", "Aspirin helps", "Patients with asthma")]  # fmt: skip
    return [
        {"event": "evaluation", **now, "validation_loss": held_out, "seconds": 4.0,
         "validation_perplexity": math.exp(held_out)},
        {"event": "continuations", **now, "texts": words, "seconds": 1.0},
    ]  # fmt: skip


def scores(text: str) -> dict:
    """As evaluate_qa.py --json prints them."""
    made = score(["a disease of joints"], ["a disease of the joints"]).__dict__
    return {"signatures": signatures(), "systems": {f"greedy {text}": made}}


def facts(text: str) -> dict:
    """As judge_facts.py --json prints them."""
    verdict = {"id": "1", "question": f"Is {text} common?", "verdict": "yes", "label": "no",
               "margin": 0.25, "refused": "", "statements": []}  # fmt: skip
    refused = verdict | {"margin": None, "verdict": "unsure", "label": "", "refused": text}
    report = {"questions": 2, "rewritten": 0.5, "accuracy": 0.5, "interval": [0.1, 0.9], "macro_f1": 0.4,
              "majority": 0.75, "majority_macro_f1": 0.3, "unsure": 0.25, "calibration_error": 0.1}  # fmt: skip
    return {"closed-book": {"report": report, "verdicts": [verdict, refused]}}


def trace_events(rank: int) -> list[dict]:
    """Two steps of 1F1B on two ranks: a forward takes 1 ms, a backward 2; the second step is the one that
    counts. The idle share is 1 / (4 + 1)."""
    order = [
        [*("F0 0", "F1 1", "B0 4", "F2 6", "B1 7", "F3 9", "B2 10", "B3 13")],
        [*("F0 1", "B0 2", "F1 4", "B1 5", "F2 7", "B2 8", "F3 10", "B3 11")],
    ][rank]
    found = [{"name": "aten::mm", "ph": "X", "ts": 0, "dur": 5, "cat": "cpu_op"}, {"ph": "M"}]
    for begun in (0, 50_000):
        for action, start in (word.split() for word in order):
            kind, micro = ("forward", 1000) if action[0] == "F" else ("backward", 2000)
            found.append({"name": f"stage {rank} {kind} {action[1]}", "ph": "X", "dur": micro,
                          "ts": begun + 1000 * int(start), "cat": "user_annotation"})  # fmt: skip
    return found
