"""Every way to start a run wrongly ends with status 2, three lines, and nothing half-written."""

import json
import shutil

import pytest
from commands import ROOT, SAMPLE_DATA, run, tokenizer_flags, train_flags

from megatron_yuyuan.data.tokenizer import train_bpe


def refused(command: tuple, what: str, ranks: int = 0) -> str:
    """Run a command that must end with status 2 (torchrun: 1) and its message; return stderr."""
    ended = run(*command, ranks=ranks, status=1 if ranks else 2)
    assert ended.stderr.count("error: ") == 1, ended.stderr
    assert ended.stderr.count("\n  why: ") == ended.stderr.count("\n  try: ") == 1, ended.stderr
    assert what in ended.stderr
    if not ranks:
        assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    save = tmp_path_factory.mktemp("trained") / "run"
    run(*train_flags(prepared, save, "--train-iters", 1, "--lr-decay-iters", 2))
    return save


def test_a_refused_start_says_so_in_place_of_the_report_of_before(prepared, trained, tmp_path):
    save = tmp_path / "run"
    shutil.copytree(trained, save)
    before = json.loads((save / "exit.json").read_text())
    assert (before["class"], before["step"]) == ("done", 1)
    flags = train_flags(prepared, save, "--train-iters", 2, "--lr-decay-iters", 2)
    refused((*flags, "--seed", 9), "seed")
    report = json.loads((save / "exit.json").read_text())
    assert (report["class"], report["status"], report["step"]) == ("usage", 2, 1)
    assert (report["cause"].count("seed"), report["resume_from"]) == (1, str(save / "iter_0000001"))
    refused((*flags, "--data-path", tmp_path / "nowhere"), "nowhere")
    assert json.loads((save / "exit.json").read_text())["status"] == 2
    run(*flags)
    assert json.loads((save / "exit.json").read_text())["class"] == "done"


def other_tokenizer(directory):
    train_bpe(iter(["quite another text about other things"] * 9), 270).save(directory)
    return tokenizer_flags(directory)


def finetune_flags(prepared, save, *more):
    return (
        *(ROOT / "finetune_qa.py", "--device", "cpu", "--seq-length", 32, "--train-iters", 2),
        *("--global-batch-size", 4, "--train-data-path", prepared / "qa_train_qa_document"),
        *("--save", save, *more),
    )


WRONG_RUNS = [
    (("--data-path", "nowhere"), "cannot read nowhere.idx"),
    (("--load", "nowhere"), "no checkpoint in nowhere"),
    (("--num-attention-heads", 5), "hidden_size=32 is not a multiple of num_attention_heads=5"),
    (("--tensor-model-parallel-size", 2), "1 rank cannot be divided into tensor 2"),
    (("--data-path", "a", "b"), "cannot read a.idx"),
    (("--data-path", "0.5", "a", "b"), "weights and prefixes do not alternate"),
    (("--tokenizer-model", "nowhere"), "nowhere"),
    (("--vocab-size", 10), "vocab_size=10, but the tokenizer has 300"),
    (("--split", "0,0,1"), "0 tokens in documents 0 to 0"),
    (("--seq-length", 10**6), "one sample needs seq_length + 1"),
    (("--train-data-path", "x"), "data_path and train_data_path"),
    (("--config", "nowhere.toml"), "cannot read the configuration nowhere.toml"),
    (("--device", "cuda"), "device=cuda"),
    (("--tokenizer-type", "GPT2BPETokenizer"), "and tokenizer_type is GPT2BPETokenizer"),
    (("--save", "", "--ckpt-step", 3), "ckpt_step without save or load"),
    (("--distributed-backend", "nccl"), "distributed_backend=nccl on the CPU"),
]


@pytest.mark.parametrize(("flags", "what"), WRONG_RUNS, ids=[what for _, what in WRONG_RUNS])
def test_a_run_that_cannot_start(prepared, tmp_path, flags, what):
    import torch

    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    refused(train_flags(prepared, tmp_path / "run", *flags), what)
    assert not (tmp_path / "run").exists()


def test_the_message_is_said_once_per_job_and_not_once_per_rank(prepared, tmp_path):
    flags = ("--tensor-model-parallel-size", 4, "--num-attention-heads", 2)
    refused(train_flags(prepared, tmp_path / "run", *flags), "num_attention_heads=2", ranks=4)


def test_a_vocabulary_that_does_not_match_the_shards(prepared, tmp_path):
    flags = other_tokenizer(tmp_path / "other")
    refused(train_flags(prepared, tmp_path / "run", *flags), "its ids mean other texts")
    for suffix in (".bin", ".idx"):  # without .meta.json the largest id tells
        shutil.copy(prepared / f"text_text_document{suffix}", tmp_path / f"bare{suffix}")
    command = train_flags(prepared, tmp_path / "run", *flags, "--data-path", tmp_path / "bare")
    refused(command, "token id")


def test_a_checkpoint_of_another_shape_or_tokenizer(prepared, trained, tmp_path):
    load = ("--load", trained, "--train-iters", 2)
    command = train_flags(prepared, tmp_path / "run", *load, "--hidden-size", 64)
    refused(command, "hidden_size=64, but")
    flags = other_tokenizer(tmp_path / "other")
    refused(train_flags(prepared, tmp_path / "run", *load, *flags), "was trained with tokenizer")


OTHER_SETTINGS = {
    ("--seed", 99): "seed was 1234, is 99",
    ("--seq-length", 16): "seq_length was 32, is 16",
    ("--split", "50,50,0"): "split was 90,10,0, is 50,50,0",
    ("--global-batch-size", 4): "global_batch_size was 8, is 4",
    ("--hidden-dropout", 0): "hidden_dropout was 0.1, is 0.0",
    ("--lr", 1e-3): "lr was 0.003, is 0.001",
    ("--adam-beta2", 0.95): "adam_beta2 was 0.999, is 0.95",
    ("--lr-decay-iters", 9): "lr_decay_iters was 2, is 9",
    ("--lr-decay-style", "linear"): "lr_decay_style was cosine, is linear",
    ("--eod-mask-loss",): "eod_mask_loss was False, is True",
    ("--skip-loss-spikes",): "skip_loss_spikes was False, is True",
}


def test_a_run_is_not_continued_with_other_settings_and_all_of_them_are_named(
    prepared, trained, tmp_path
):
    load = ("--load", trained, "--train-iters", 2)
    flags = [word for flag in OTHER_SETTINGS for word in flag]
    message = refused(train_flags(prepared, tmp_path / "run", *load, *flags), "other settings")
    assert [what for what in OTHER_SETTINGS.values() if what not in message] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--layernorm-epsilon", 0.1), "layernorm_epsilon=0.1, but"),
        (("--ffn-hidden-size", 64), "ffn_hidden_size=64, but"),
    ],
)
def test_a_run_is_not_continued_with_another_shape(prepared, trained, tmp_path, flags, what):
    load = ("--load", trained, "--train-iters", 2)
    refused(train_flags(prepared, tmp_path / "run", *load, *flags), what)
    assert not (tmp_path / "run").exists()


def test_other_settings_can_be_insisted_on(prepared, trained, tmp_path):
    load = ("--load", trained, "--train-iters", 3, "--seed", 99, "--override")
    ended = run(*train_flags(prepared, tmp_path / "run", *load))
    assert "overridden: lr_decay_iters was 2, is 3; seed was 1234, is 99" in ended.stdout
    assert (tmp_path / "run" / "iter_0000003").exists()


def test_a_run_is_not_continued_with_another_blend(prepared, trained, tmp_path):
    shard, load = prepared / "text_text_document", ("--load", trained, "--train-iters", 2)
    for words in ((0.5, shard, 0.5, shard), (shard, shard)):
        command = train_flags(prepared, tmp_path / "run", *load, "--data-path", *words)
        refused(command, "data_path was text_text_document, is")
    for file in prepared.glob("text_text_document.*"):
        shutil.copy(file, tmp_path)
    moved = ("--data-path", tmp_path / "text_text_document")
    run(*train_flags(prepared, tmp_path / "run", *load, *moved))  # the same shard elsewhere


def test_a_checkpoint_is_chosen_by_number_or_refused(prepared, trained, tmp_path):
    refused(train_flags(prepared, trained, "--ckpt-step", 7), "no checkpoint of iteration 7")
    load = ("--load", trained, "--ckpt-step", 1, "--ffn-hidden-size", 128, "--train-iters", 2)
    run(*train_flags(prepared, tmp_path / "run", *load))


def test_a_save_that_is_a_file(prepared, tmp_path):
    (tmp_path / "file").write_text("")
    refused(train_flags(prepared, tmp_path / "file"), "cannot write")


def test_a_damaged_checkpoint(prepared, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "damaged")
    [file] = (tmp_path / "damaged" / "iter_0000001").glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    load = ("--load", tmp_path / "damaged", "--train-iters", 2)
    refused(train_flags(prepared, tmp_path / "run", *load), "is damaged: __0_0.distcp")
    assert not (tmp_path / "run").exists()


def test_finetuning_needs_weights_and_questions(prepared, trained, tmp_path):
    save = tmp_path / "run"
    refused(finetune_flags(prepared, save), "load is not given")
    text = ("--load", trained, "--train-data-path", prepared / "text_text_document")
    refused(finetune_flags(prepared, save, *text), "is not a question answering shard")
    both = ("--load", trained, "--data-path", prepared / "text_text_document")
    refused(finetune_flags(prepared, save, *both), "data_path is given")


def test_answers_that_have_no_room_are_not_a_perfect_model(prepared, trained, tmp_path):
    run(ROOT / "tools" / "preprocess_data.py", "--input", SAMPLE_DATA / "medquad_train.xml",
        "--output-prefix", tmp_path / "qa", "--split", "100,0,0",
        *tokenizer_flags(prepared / "tokenizer"))  # fmt: skip
    long = ("--load", trained, "--seq-length", 4, "--max-position-embeddings", 0)
    refused(finetune_flags(prepared, tmp_path / "run", *long), "seq")


def test_weights_only_cannot_be_continued(prepared, trained, tmp_path):
    run(ROOT / "tools" / "convert_checkpoint.py", "--to", "hf", "--load", trained, "--save",
        tmp_path / "hf")  # fmt: skip
    run(ROOT / "tools" / "convert_checkpoint.py", "--from", "hf", "--load", tmp_path / "hf",
        "--save", tmp_path / "imported")  # fmt: skip
    load = ("--load", tmp_path / "imported")
    refused(train_flags(prepared, tmp_path / "run", *load), "holds weights only")
    run(*train_flags(prepared, tmp_path / "run", *load, "--finetune", "--train-iters", 1))


def test_data_in_another_order_is_not_continued(prepared, trained, tmp_path):
    from megatron_yuyuan.checkpoint.manifest import digests

    shutil.copytree(trained, tmp_path / "old")
    path = tmp_path / "old" / "iter_0000001"
    state = json.loads((path / "state.json").read_text()) | {"data_order": 0}
    (path / "state.json").write_text(json.dumps(state))
    (path / "manifest.json").write_text(json.dumps(digests(path)))
    load = ("--load", tmp_path / "old", "--train-iters", 2)
    refused(train_flags(prepared, tmp_path / "run", *load), "read its data in order 0")


def test_a_loss_that_is_not_finite_ends_the_run(prepared, tmp_path):
    flags = ("--lr", 1e18, "--lr-warmup-iters", 0, "--clip-grad", 0)
    refused(train_flags(prepared, tmp_path / "run", *flags), "gradient norm")
    assert not list((tmp_path / "run").glob("iter_*"))
    report = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (report["class"], report["status"], report["resume_from"]) == ("data", 2, None)
    assert "gradient norm" in report["cause"]
