"""tools/translate_args.py: Megatron-LM's scripts and commands in, commands of this package out."""

import json
import os
import shlex
import subprocess

import pytest

from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.train.schedule import train_iterations
from megatron_yuyuan.translation.command import parts_of
from megatron_yuyuan.translation.shell import ShellScript
from megatron_yuyuan.translation.translate import ADDED, UNSUPPORTED, translate

GPT3 = """#!/bin/bash
# 175B parameters, with the flags of Megatron-LM's examples/gpt3/train_gpt3_175b_distributed.sh
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS_PER_NODE=8
NUM_NODES=1   # more for more
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
SAVED=$1 #<a path>
LAUNCH=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES --master_addr localhost --master_port 6000
)
MODEL=(--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048
    --max-position-embeddings 2048
    --attention-backend auto # Can use (flash/fused/unfused/local)
)
TRAINING=(
\t--micro-batch-size 1 --global-batch-size 1536 --rampup-batch-size 16 16 5859375 --train-iters 500000
    --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0 --fp16
    --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6 --lr-warmup-fraction .001 --lr-decay-iters 430000
    --tensor-model-parallel-size 8 --pipeline-model-parallel-size 16
)
torchrun ${LAUNCH[@]} examples/classes/pretrain_gpt.py \\
    ${MODEL[@]} ${TRAINING[@]} --data-path $5 --vocab-file $3 --merge-file $4 --split 949,50,1 \\
    --log-interval 100 --save-interval 10000 --eval-interval 1000 --save $SAVED --load $SAVED \\
    --eval-iters 10 --tensorboard-dir "$2" 2>&1 | tee log.txt
"""
TABLE_1 = """
# the row of 3.6B parameters of Narayanan et al. 2021, table 1, as examples/sc21 had it
MODEL_SIZE=${1:-3.6B}
TP=2; PP=1; MBS=16
EXTRA="--recompute-method uniform "
export PARAMETERS=" ${EXTRA} \\
    --tensor-model-parallel-size ${TP} --pipeline-model-parallel-size ${PP} \\
    --micro-batch-size ${MBS} --global-batch-size 512 --num-layers 30 --hidden-size 3072 \\
    --num-attention-heads 32 --DDP-impl torch --data-path /data/wikipedia_text_document \\
    --vocab-file vocab.json --merge-file merges.txt --log-interval 5 --seq-length 2048 \\
    --max-position-embeddings 2048 --train-iters 500 --lr-decay-iters 320 --lr 0.0001 --min-lr 0.00001 \\
    --lr-decay-style cosine --lr-warmup-fraction 0.01 --split 969,30,1 --eval-iters 100 \\
    --eval-interval 1000 --clip-grad 1.0 --fp16 --loss-scale 8192 "
cd $HOME && echo "starting pretrain_gpt.py of $MODEL_SIZE"
python -u -m torch.distributed.launch --nproc_per_node 8 --nnodes 8 --use_env pretrain_gpt.py $PARAMETERS
"""


@pytest.fixture
def translated(command, tmp_path, capsys):
    """translated(text, arguments..., set=...) is the JSON object of a script that translates."""

    def run(text: str, *arguments: str, set: tuple[str, ...] = ()) -> dict:
        script = tmp_path / "train.sh"
        script.write_text(text)
        given = [word for name in set for word in ("--set", name)]
        command("translate_args", "--json", *given, script, *arguments)
        return json.loads(capsys.readouterr().out)

    return run


def of_group(result: dict, group: str) -> dict[str, str]:
    """{as it was: as it is} of the notes of a group."""
    return {n["was"]: n["now"] for n in result["flags"] if n["group"].startswith(group)}


def flags_after_script(words: list[str]) -> list[str]:
    return words[words.index("pretrain_gpt.py") + 1 :]


def test_the_gpt3_example_runs_as_long_and_learns_as_fast(translated):
    given = ("runs/gpt3", "logs/tb", "vocab.json", "merges.txt", "data/x_text_document")
    result = translated(GPT3, *given, set=("NUM_NODES=16",))
    assert (result["ranks"], result["problems"]) == (128, [])
    assert result["exported"] == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert not of_group(result, "not supported")
    assert of_group(result, "changed")["--load runs/gpt3"] == ""
    config = parse_config("", flags_after_script(result["command"]))
    assert train_iterations(config.training) == 500_000
    assert config.training.train_samples < 500_000 * 1536  # the ramp is counted
    assert config.optimizer.lr_decay_samples == 430_000 * 1536
    assert config.data.data_path == ("data/x_text_document",)
    assert config.logging.tensorboard_dir == "logs/tb"
    assert (config.model.hidden_dropout, config.model.attention_dropout) == (0.1, 0.1)
    assert config.training.initial_loss_scale == 2**32


def test_the_3_6b_row_runs_on_its_64_ranks(translated):
    result = translated(TABLE_1)
    assert (result["ranks"], result["problems"]) == (64, [])
    assert result["command"][:5] == ["torchrun", "--nproc_per_node", "8", "--nnodes", "8"]
    config = parse_config("", flags_after_script(result["command"]))
    assert config.replace(vocab_size=50257).model.num_parameters == pytest.approx(3.6e9, rel=0.02)
    assert config.parallel.recomputed == "full"
    assert config.parallel.recompute_num_layers == 1
    assert config.training.loss_scale == 8192
    assert of_group(result, "no effect") == {"--DDP-impl torch": ""}
    added = {n["now"] for n in result["flags"] if n["group"].startswith("added")}
    assert added == {"--hidden-dropout 0.1", "--attention-dropout 0.1"}
    assert config.data.split == "969,30,1"


def test_a_layout_that_cannot_be_is_refused_under_the_translation(command, tmp_path, capsys):
    (tmp_path / "train.sh").write_text(GPT3)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: command("translate_args", tmp_path / "train.sh", *"abcde"))
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert "error: 8 ranks cannot be divided into tensor 8 x pipeline 16" in shown.err
    assert "checked on 8 ranks: it could not run" in shown.out


def test_the_printed_command_is_the_one_of_the_json(command, translated, tmp_path, capsys):
    expected = translated(TABLE_1)["command"]
    command("translate_args", tmp_path / "train.sh")
    text = capsys.readouterr().out
    shown = text[text.index("\ntorchrun") :].replace("\\\n", "")
    assert shlex.split(shown) == expected
    kept = text[: text.index("changed (1)")]
    assert "kept as it is (25)" in kept
    assert "--micro-batch-size 16" in kept


EXPANSIONS = [
    'A=1; torchrun $A ${A}b \'$A\' "$A c" \\$A "\\$A" a\\ b',
    'A="1 2 "; torchrun x$A$A"y" "$A" $A\'z\'',
    'A=(a "b c" $((2*(3+4)/5)) -$((7%4)) $((-7/2)) d); torchrun ${A[@]} "${A[@]}" $A ${A[*]} "${A[*]}"',
    "A=(x); A+=(y z); B=1; B+=2; torchrun ${A[@]} $B",
    'torchrun $1 "$2" $2 $@ "$@" ${9:-none} ${1:-no} ${E=f} ${U:-a$1} \'\'',
    "export A=3 B=4; readonly C=$((A * B + 1)); torchrun $C$UNSET_BY_NOBODY 2>/dev/null",
    "torchrun a \\\n  b # c\n",
    "torchrun --a=b 'it'\"'\"'s' \"two\\\nlines\" x#y $ '' > /dev/stdout",
    'A="--x 1 \\\n   --y 2"; torchrun $A | cat',
    "for i in 1 2; do A=$i; done; if true; then B=1; fi; f() { C=1; }; A=5 torchrun end",
    "case x in x) A=1;; (y) B=2;; esac; A=3; torchrun $A",
    "A=~/x; B=~; torchrun ~/data ~ ~a '~/b' \"~\" $A $B a~/b ~/'c d' ~$B",
    "A=2; (A=1; read A); { true; }; torchrun $A && true || false &\nwait",
    "true && A=5; torchrun $1x $2_y $10; B=1\ntrue &&\n\nC=2",
    "A=1; A=2 B+=3 torchrun $A x",
    "A=1; for i in 1 A; do :; done; if ((A == 1 && A <= 2)); then :; fi; ((A != 2)); torchrun $A $1",
    "A=(torchrun $0); ${A[@]} b",
    ': ${A:=8} "${B=1 2}" ${C:=}; : ${C:=$1} ${A:=9}; (: ${D:=1}); torchrun $A $B $C ${D:-none}',
    "function f() { A=1; }; function g { A=2; }; function h\n{ A=3; }\nB=2; torchrun $B",
    """X=${9:-"a/b"}; torchrun --save "$X" "${9:-"x y"}" ${9:-'s q'} "${9:-'s q'}" x${9:-'a b'}y""",
    """torchrun ${9:-~} "${9:-~}" ${9:-~/a} ${9:-a b}c "${9:-a  b}" ${9:-} "${9:-}" ${9:-a;b|(c)}""",
    """torchrun ${A:='q r'} "$A" ${9:-$1/"$2 z"} ${9:-${8:-"k l"}} ${9:-\\ a} "${9:-\\"a\\"}" """,
    """A=(x y z); A=q; B=(1 2); B+=3; torchrun "${A[@]}" "${B[@]}" $'runs/a' $"loc" $[2*2] "$[3+1]" """,
    """A='d/*'; torchrun "$A" 'a*' "{a,b}" a\\*b {} a,b "${9:-*}" [ ] """,
]
"""Each starts torchrun once."""


@pytest.mark.parametrize("script", EXPANSIONS, ids=range(len(EXPANSIONS)))
def test_words_are_those_that_bash_makes_of_them(script, tmp_path):
    fake = tmp_path / "torchrun"
    fake.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    fake.chmod(0o755)
    arguments = ["one", "two  words"]
    said = subprocess.run(
        ["bash", "-c", script, "name", *arguments],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/of it"},
        capture_output=True,
        check=True,
        text=True,
    )
    given = {"UNSET_BY_NOBODY": "", "HOME": "/home/of it"}
    found = [c.words for c in ShellScript("name", arguments, given).commands(script)]
    [words] = [words[1:] for words in found if words[0] == "torchrun"]
    assert words == said.stdout.split("\0")[:-1]
    assert words


RUN = "\ntorchrun pretrain_gpt.py --num-layers $N"


@pytest.mark.parametrize(
    ("script", "line", "message"),
    [
        (RUN, 2, "$N has no value"),
        (RUN.replace("$N", "$3"), 2, "$3 has no value"),
        ("if true; then N=1; fi" + RUN, 1, "$N (set inside `if`"),
        ("N=$(nproc)" + RUN, 1, "the output of $(nproc)"),
        ("N=`nproc`" + RUN, 1, "the output of `nproc`"),
        ("read N" + RUN, 1, "$N (`read`"),
        ('[ -z "$X" ] && N=1' + RUN, 1, "$N (set after `&&`"),
        ("N=1\nfalse ||\n\n  export N=2" + RUN, 4, "$N (set after `||`"),
        ("N=1 true" + RUN, 2, "$N has no value"),
        ("A=()\nN=$((A))" + RUN, 2, "$((A)): A is no whole number"),
        ("for N in 1 2; do :; done" + RUN, 1, "$N (`for`"),
        ("N=1; for ((N=0; N < 3; N++)); do :; done" + RUN, 1, "$N (`for`"),
        ("for i in 1 2; do :; done" + RUN.replace("$N", "$1"), 2, "$1 has no value"),
        ("N=1\n((N++))" + RUN, 2, "$N (`((`"),
        ("N=1\n(( M > 2, N = N + 1 ))" + RUN, 2, "$N (`((`"),
        ("N=1\nwhile (( --N )); do :; done" + RUN, 2, "$N (`((`"),
        ("N=(1 2)\n((N[0] += 2))" + RUN, 2, "$N (`((`"),
        ("N=1\nM=$((N++))" + RUN, 2, "$N (`$((`"),
        ("N=1; let N=2" + RUN, 1, "$N (`let`"),
        ('N=1; let M=2 "N = 2"' + RUN, 1, "$N (`let`"),
        ("N=(1 2); N[0]=5" + RUN, 1, "$N (`N[0]=5`"),
        ("true && : ${N:=1}" + RUN, 1, "$N (set after `&&`"),
        ("N=${X#a}" + RUN, 1, "${X#a}"),
        ("N=$((2**3))" + RUN, 1, "$((2**3)): 2**3 is no whole number"),
        ("N=$((1/0))" + RUN, 1, "1/0 is no whole number"),
        ("M=010\nN=$((M+1))" + RUN, 2, "$((M+1)): M+1 is no whole number"),
        ("M=O\nO=M\nN=$((M+1))" + RUN, 3, "$((M+1)): M+1 is no whole number"),
        ("\nsource common.sh" + RUN, 2, "`source`"),
        (". ./common.sh" + RUN, 1, "`.`"),
        ("eval $X" + RUN, 1, "`eval`"),
        ("shift" + RUN, 1, "`shift`"),
        ("set -- a b" + RUN, 1, "`set`"),
        ("cat <<END\nx\nEND" + RUN, 1, "a here-document"),
        ("N='1" + RUN, 2, "a ' that is missing"),
        ('N="1' + RUN, 2, "a quote that is not closed"),
        ("N=(1 2" + RUN, 2, "an array that is not closed"),
        ("N=(1 & 2)" + RUN, 1, "`&` in an array"),
        ("if true; then" + RUN.replace("$N", "2") + "\nfi", 2, "a command inside `if`"),
        ("torchrun pretrain_gpt.py X=(1)", 1, "an array among words"),
        ("torchrun pretrain_gpt.py data/p_{0..3}", 1, "`{0..3}` in data/p_{0..3}"),
        ("torchrun pretrain_gpt.py data/*.json", 1, "`*` in data/*.json"),
        ("N='d/p?'\ntorchrun pretrain_gpt.py $N", 2, "`?` in d/p?"),
        ("N=(a/[12])" + RUN, 1, "`[12]` in a/[12]"),
        ("N=$'a\\n'" + RUN, 1, "a backslash in $''"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_line(script, line, message):
    with pytest.raises(ConfigError) as refused:
        list(ShellScript("train.sh", [], {}, ("pretrain_gpt.py",)).commands(script))
    assert refused.value.what.startswith(f"train.sh, line {line}: ")
    assert message in refused.value.what


def test_a_block_may_name_the_script_that_it_does_not_run():
    script = "if [ ! -f a/pretrain_gpt.py ]; then\necho no pretrain_gpt.py\nfi" + RUN
    script = script.replace("$N", "2")
    *_, command = ShellScript("train.sh", [], {}, ("pretrain_gpt.py",)).commands(script)
    assert command.words == ["torchrun", "pretrain_gpt.py", "--num-layers", "2"]


def test_a_value_from_the_caller_stands_for_one_that_cannot_be_followed():
    script = "if true; then N=1; fi\nread M\nM=$(nproc)" + RUN + " $M"
    *_, command = ShellScript("train.sh", [], {"N": "24", "M": "x y"}).commands(script)
    assert command.words[-3:] == ["24", "x", "y"]


def notes(command: str) -> dict[str, tuple[str, str, str]]:
    """{as it was: (group, as it is, why)} of a command's flags."""
    translation = translate(parts_of(command.split()))
    return {note.was: (note.group, note.now, note.why) for note in translation.notes}


def test_a_launcher_by_its_path_says_how_many_ranks_it_starts():
    for words in (
        "/opt/bin/torchrun --nproc-per-node 4",
        "python -u -m torch.distributed.run --nproc_per_node=4",
    ):
        parts = parts_of(f"{words} --nnodes 2 pretrain_gpt.py --bf16".split())
        assert parts.ranks == 8
    assert parts_of("python -m pretrain_gpt.py".split()).ranks is None


def test_every_flag_a_script_is_known_to_carry_is_accounted_for():
    """Those that a Megatron-LM user expects to find, and those that old scripts carry."""
    known = """--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --context-parallel-size 1
    --sequence-parallel --num-layers-per-virtual-pipeline-stage 2 --use-distributed-optimizer
    --distributed-backend nccl --distributed-timeout-minutes 10 --micro-batch-size 1 --global-batch-size 8
    --seq-length 64 --max-position-embeddings 64 --train-iters 10 --num-layers 8
    --hidden-size 64 --ffn-hidden-size 256 --num-attention-heads 4 --make-vocab-size-divisible-by 128
    --init-method-std 0.02 --attention-dropout 0.1 --hidden-dropout 0.1 --lr 1e-4 --min-lr 1e-5
    --lr-decay-style cosine --lr-decay-iters 10 --lr-warmup-fraction 0.1 --weight-decay 0.1 --clip-grad 1
    --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8 --bf16 --data-path 0.5 a 0.5 b --split 949,50,1
    --data-cache-path c --num-workers 2 --eod-mask-loss --reset-position-ids --vocab-file v --merge-file m
    --tokenizer-type GPT2BPETokenizer --save s --load l --save-interval 5 --save-retain-interval 10
    --no-load-optim --finetune --ckpt-step 5 --async-save --verify-integrity --exit-signal-handler
    --exit-duration-in-mins 10 --exit-interval 10 --log-interval 1 --log-throughput --eval-interval 5
    --eval-iters 1 --tensorboard-dir t --wandb-project w --wandb-exp-name e
    --check-for-nan-in-loss-and-grad --seed 1 --use-mcore-models --transformer-impl local
    --no-gradient-accumulation-fusion --use-flash-attn --overlap-grad-reduce --overlap-param-gather
    --manual-gc --no-masked-softmax-fusion --no-create-attention-mask-in-dataloader
    --use-cpu-initialization --deterministic-mode"""
    found = notes("torchrun pretrain_gpt.py " + known)
    assert not [was for was, (group, _, _) in found.items() if group == UNSUPPORTED]
    assert "2 --num-virtual" not in found["--num-layers-per-virtual-pipeline-stage 2"][1]
    refused = """--mock-data --loss-scale-windows --untie-embeddings-and-output-weights --no-load-rng
    --exit-signal --log-progress --iterations-to-skip --swiglu --num-experts"""
    for flag in refused.split():
        group, now, why = notes(f"torchrun pretrain_gpt.py {flag}")[flag]
        assert (group, now) == (UNSUPPORTED, "")
        assert why


@pytest.mark.parametrize(
    ("flags", "was", "now"),
    [
        ("--model-parallel-size=4", "--model-parallel-size 4", "--tensor-model-parallel-size 4"),
        ("--use_torch_fsdp2", "--use-torch-fsdp2",
         "--data-parallel-sharding-strategy optim_grads_params"),
        ("--checkpoint-activations", "--checkpoint-activations",
         "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"),
        ("--num-layers 24 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 3",
         "--num-layers-per-virtual-pipeline-stage 3",
         "--pipeline-schedule Interleaved1F1B --num-virtual-stages-per-pipeline-rank 2"),
        ("--num-layers 24 --num-layers-per-virtual-pipeline-stage 2",
         "--num-layers-per-virtual-pipeline-stage 2",
         "--pipeline-schedule Interleaved1F1B --num-virtual-stages-per-pipeline-rank 12"),
        ("--tokenizer-type GPTSentencePieceTokenizer", "--tokenizer-type GPTSentencePieceTokenizer",
         "--tokenizer-type SentencePieceTokenizer"),
        ("--rampup-batch-size 4 4 40 --global-batch-size 8 --train-iters 20 --lr-warmup-iters 3",
         "--lr-warmup-iters 3", "--lr-warmup-samples 24"),
        ("--save a --load a", "--load a", ""),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_serves_in_place_of_a_flag_stands_in_the_command(flags, was, now):
    translation = translate(parts_of(f"torchrun pretrain_gpt.py {flags}".split()))
    [note] = [n for n in translation.notes if n.was == was]
    assert (note.group, note.now) == ("changed", now)
    words = " ".join(translation.words)
    assert now in words
    assert was.split()[0] not in words.split() or was.split()[0] == now.split()[0]


def test_a_growing_batch_without_a_decay_of_its_own_has_the_one_of_megatron():
    words = "torchrun pretrain_gpt.py --rampup-batch-size 4 4 40 --train-iters 20".split()
    translation = translate(parts_of([*words, "--global-batch-size", "8"]))
    assert translation.flags["--lr-decay-samples"] == ("160",)
    assert int(translation.flags["--train-samples"][0]) < 160
    assert not [note for note in translation.notes if "--lr-decay-iters" in note.was]
    [added] = [note for note in translation.notes if note.now.startswith("--lr-decay-samples")]
    assert (added.group, added.was) == (ADDED, "") and "iterations times" in added.why
    unknown = translate(parts_of(words))  # the batch that it grows to
    assert unknown.flags["--train-iters"] == ("20",) and "--train-samples" not in unknown.flags


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--optimizer sgd", "--optimizer adam is how it is here"),
        ("--context-parallel-size 2", "--context-parallel-size 1 is how it is here"),
        ("--attention-backend triton", "here it is one of auto, flash"),
        ("--step-batch-size-schedule 0:16 2B:32", "instead: --rampup-batch-size"),
        ("--pipeline-model-parallel-layout E|t", "instead: --pipeline-layout"),
        ("--num-layers-per-virtual-pipeline-stage 5", "instead: --pipeline-schedule"),
        ("--micro-batchsize 3", "unknown; the nearest: --micro-batch-size"),
    ],
    ids=lambda value: None,
)
def test_what_is_left_out_says_what_to_use(flag, why):
    group, now, said = notes(f"torchrun pretrain_gpt.py {flag}")[flag]
    assert (group, now) == (UNSUPPORTED, "")
    assert said.startswith(why) or said.endswith(why)


def test_a_flag_that_is_left_out_ends_with_status_2(command):
    words = "torchrun --nproc-per-node gpu pretrain_gpt.py --num-layers 2 --hidden-size 8 --train-iters 1"
    words += " --num-attention-heads 2 --swiglu"
    with pytest.raises(ConfigError, match="not supported: --swiglu"):
        command("translate_args", "--", *words.split())


def test_a_wrong_value_is_the_parsers_own_message(command):
    with pytest.raises(ConfigError, match="invalid int value: 'many'"):
        command("translate_args", "--", *"python pretrain_gpt.py --num-layers many".split())


def test_preprocessing_has_the_same_flags_here(command, capsys):
    with pytest.raises(SystemExit):
        command("preprocess_data", "--help")
    known = capsys.readouterr().out
    kept = (
        "--input a --json-keys text --output-prefix b --append-eod --workers 4 --log-interval 100"
    )
    kept += " --tokenizer-type GPT2BPETokenizer --vocab-file v --merge-file m"
    command("translate_args", "--", *f"python /m/tools/preprocess_data.py {kept}".split())
    shown = capsys.readouterr().out
    assert "python tools/preprocess_data.py" in shown
    assert all(word in known for word in kept.split() if word.startswith("--"))
    with pytest.raises(ConfigError, match="not supported: --partitions 4"):
        command("translate_args", "--", *"python tools/preprocess_data.py --partitions 4".split())
    assert "--num-tasks and --task-index" in capsys.readouterr().out


def test_repeated_texts_are_kept_as_megatron_keeps_them():
    translation = translate(parts_of("python tools/preprocess_data.py --input a".split()))
    assert translation.words == ["--input", "a", "--keep-duplicates"]


def test_several_stages_a_rank_bring_their_schedule():
    flag = "--num-virtual-stages-per-pipeline-rank"
    translation = translate(parts_of(f"torchrun pretrain_gpt.py {flag} 2".split()))
    assert translation.flags["--pipeline-schedule"] == ("Interleaved1F1B",)
    assert "--pipeline-schedule" not in translate(parts_of(["pretrain_gpt.py", flag, "1"])).flags


def test_the_exact_gelu_is_not_built_and_the_tanh_form_is_here():
    exact, tanh = "--no-bias-gelu-fusion", "--openai-gelu"
    assert notes(f"torchrun pretrain_gpt.py {exact}")[exact][0] == UNSUPPORTED
    assert notes(f"torchrun pretrain_gpt.py {exact} {tanh}")[exact][0] != UNSUPPORTED
    assert notes(f"torchrun pretrain_gpt.py {tanh}")[tanh][0] != UNSUPPORTED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a script, or a command after --"),
        (("--set", "3x"), "--set 3x"),
        (("missing.sh",), "cannot read missing.sh"),
        (("--", "torchrun", "pretrain_bert.py"), "pretrain_bert.py is not translated"),
        (("--", "deepspeed", "pretrain_gpt.py"), "pretrain_gpt.py is not translated"),
        (("--", "torchrun", "pretrain_gpt.py", "x", "--bf16"), "`x` after pretrain_gpt.py"),
    ],
    ids=lambda value: None,
)
def test_what_is_no_command_is_refused(refused, words, message):
    assert message in refused("translate_args", *words)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo pretrain_gpt.py\ncat pretrain_gpt.py", "starts none, of pretrain_gpt.py or"),
        ("python a/pretrain_gpt.py\npython pretrain_gpt.py", "starts several, at lines 1, 2, of"),
        ("python pretrain_bert.py", "starts none, of"),
    ],
    ids=lambda value: None,
)
def test_a_script_must_start_one_command(refused, tmp_path, script, message):
    (tmp_path / "train.sh").write_text(script)
    assert message in refused("translate_args", tmp_path / "train.sh")
