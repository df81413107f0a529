"""The command line: Megatron-LM's flags, refused or accepted but never ignored silently."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_yuyuan.cli import parse_config, run_command
from megatron_yuyuan.config import config_fields
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.megatron_flags import NO_EFFECT, NO_EFFECT_WITH_VALUE, NOT_YET


@pytest.mark.parametrize("flag", sorted(NOT_YET))
def test_a_flag_whose_feature_is_not_built_is_refused(flag):
    with pytest.raises(ConfigError, match="not yet"):
        parse_config("", [flag, "1"])


def test_no_flag_is_both_built_and_not_yet():
    built = {"--" + name.replace("_", "-") for name in config_fields()}
    assert not built & (NOT_YET | NO_EFFECT)


def test_megatrons_flags_are_built_refused_or_without_effect(repository):
    """The conventions a Megatron-LM script relies on."""
    known = """--tensor-model-parallel-size --pipeline-model-parallel-size --context-parallel-size
    --sequence-parallel --num-layers-per-virtual-pipeline-stage --use-distributed-optimizer
    --num-distributed-optimizer-instances --distributed-backend --distributed-timeout-minutes
    --micro-batch-size --global-batch-size
    --rampup-batch-size --seq-length --max-position-embeddings --train-iters --train-samples
    --num-layers --hidden-size --ffn-hidden-size --num-attention-heads --init-method-std
    --make-vocab-size-divisible-by --attention-dropout --hidden-dropout
    --untie-embeddings-and-output-weights --lr --min-lr --lr-decay-style --lr-decay-iters
    --lr-decay-samples --lr-wsd-decay-style --lr-wsd-decay-iters --lr-wsd-decay-samples
    --lr-warmup-fraction --lr-warmup-iters --lr-warmup-samples --weight-decay --clip-grad --adam-beta1 --adam-beta2
    --adam-eps --bf16 --fp16 --loss-scale --initial-loss-scale --loss-scale-window --hysteresis --min-loss-scale
    --data-path --split --train-data-path --valid-data-path --data-cache-path --num-workers
    --eod-mask-loss --reset-position-ids --vocab-file --merge-file --tokenizer-type
    --tokenizer-model --save --load --save-interval --save-retain-interval --no-load-optim
    --no-load-rng --finetune --ckpt-step --async-save --verify-integrity --exit-signal-handler
    --exit-signal --exit-duration-in-mins --exit-interval --log-interval --log-throughput
    --log-progress --eval-interval --eval-iters --tensorboard-dir --wandb-project
    --iterations-to-skip --check-for-nan-in-loss-and-grad --seed --deterministic-mode""".split()
    built = {"--" + name.replace("_", "-") for name in config_fields()}
    assert set(known) <= built | NOT_YET | NO_EFFECT | NO_EFFECT_WITH_VALUE


def test_flags_without_effect_are_accepted_and_named(capsys):
    config = parse_config("", ["--use_flash_attn", "--transformer-impl", "local", "--seed", "3"])
    assert config.training.seed == 3
    assert "--use-flash-attn, --transformer-impl: accepted, no effect" in capsys.readouterr().err


def test_a_name_whose_feature_is_not_built_is_refused_in_a_file(tmp_path):
    (tmp_path / "run.toml").write_text("[training]\nexit_signal = 15")
    with pytest.raises(ConfigError, match="not yet"):
        parse_config("", ["--config", str(tmp_path / "run.toml")])


def test_an_unknown_flag_names_the_nearest():
    with pytest.raises(ConfigError, match="--micro-batch-size"):
        parse_config("", ["--micro-batchsize", "3"])


def test_the_resolved_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config("", ["--num-layers", "3", "--print-config"])
    assert ended.value.code == 0
    assert "num_layers = 3" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["pretrain_gpt.py", "finetune_qa.py"])
def test_help_shows_every_flag_without_importing_torch(repository, command):
    program = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path(sys.orig_argv[-1], run_name='__main__')\n"
        "except SystemExit: print('torch imported:', 'torch' in sys.modules)"
    )
    path = str(repository / command)
    shown = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    ).stdout
    assert "torch imported: False" in shown
    assert all("--" + name.replace("_", "-") in shown for name in config_fields())


def test_an_error_is_three_lines_and_status_2(repository):
    ended = subprocess.run(
        [sys.executable, str(repository / "pretrain_gpt.py"), "--exit-signal"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert [line[:7] for line in lines] == ["error: ", "  why: ", "  try: "]
    assert "not yet" in lines[0]
    assert "SIGTERM" in lines[2]


def test_torchruns_report_names_the_cause_too(repository, tmp_path):
    error_file = tmp_path / "attempt_0" / "0" / "error.json"
    error_file.parent.mkdir(parents=True)
    subprocess.run(
        [sys.executable, str(repository / "pretrain_gpt.py"), "--exit-signal"],
        env=os.environ | {"TORCHELASTIC_ERROR_FILE": str(error_file)},
        capture_output=True,
        check=False,
    )
    said = json.loads(error_file.read_text())["message"]["message"]
    assert said == "--exit-signal is not yet supported"


SHARD = str(Path(__file__).parent / "golden" / "text_text_document")
SAYING = {
    "a card": ("tools/check_data.py", SHARD),
    "json": ("tools/check_data.py", "--json", SHARD),
    "help": ("pretrain_gpt.py", "--help"),
    "a configuration": ("pretrain_gpt.py", "--print-config"),
}
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")


@needs_full
@pytest.mark.parametrize("command", SAYING.values(), ids=SAYING)
def test_a_full_disk_under_stdout_is_three_lines_and_status_2(repository, command):
    """Whether the command notices, or only the interpreter when it ends."""
    script, *words = command
    with FULL.open("w") as full:
        ended = subprocess.run(
            [sys.executable, str(repository / script), *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    lines = ended.stderr.splitlines()
    assert [line[:7] for line in lines] == ["error: ", "  why: ", "  try: "], ended.stderr
    assert "No space left on device" in lines[0]
    assert ended.returncode == 2


@needs_full
@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize("shard", [SHARD, "nowhere"])
def test_where_errors_have_no_room_either_the_status_still_says_it(repository, shard, debug):
    with FULL.open("w") as full:
        ended = subprocess.run(
            [sys.executable, str(repository / "tools" / "check_data.py"), shard, *debug],
            stdout=full,
            stderr=full,
            check=False,
        )
    assert ended.returncode == 2


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_file_without_room_is_named(capsys, name):
    def main() -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "out/page.html")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    said = f"error: cannot write out/page.html: {os.strerror(getattr(errno, name))}\n  why: "
    assert capsys.readouterr().err.startswith(said)


def test_a_fault_of_the_system_that_nobody_expects_keeps_its_traceback():
    def main() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_command(main)


@pytest.mark.parametrize("command", SAYING.values(), ids=SAYING)
def test_a_reader_who_left_is_told_nothing(repository, command):
    script, *words = command
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, str(repository / script), *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def closed(streams: str, *words: str) -> subprocess.CompletedProcess:
    """A Python command, its streams closed as a shell's words say."""
    shell = ["sh", "-c", f'exec "$0" "$@" {streams}', sys.executable, *words]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", SAYING.values(), ids=SAYING)
def test_without_a_stdout_a_command_works_and_says_nothing(repository, command):
    script, *words = command
    ended = closed(">&-", str(repository / script), *words)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_errors_go_where_they_belong_whatever_is_closed(repository):
    script = str(repository / "tools" / "check_data.py")
    said, silent = closed(">&-", script, "nowhere"), closed("2>&-", script, "nowhere")
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 3
    assert (silent.stdout, silent.stderr) == ("", "")
    assert (said.returncode, silent.returncode) == (2, 2)


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    program = (
        "import sys\n"
        "from megatron_yuyuan.cli import run_command\n"
        "run_command(lambda: sys.exit(open(sys.argv[1], 'w').fileno()))\n"
    )
    assert closed("<&- >&- 2>&-", "-c", program, str(tmp_path / "file")).returncode == 3


def test_ctrl_c_is_no_traceback():
    program = (
        "from megatron_yuyuan.cli import run_command\n"
        "def main(): raise KeyboardInterrupt\n"
        "run_command(main)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("end", ["return", "sys.exit(0)", "sys.exit(3)", "sys.exit('so')", "1 / 0"])
def test_a_command_ends_after_all_that_waits_for_its_end_and_takes_nothing_apart(end):
    """As gloo's threads may while Python takes itself apart, `late` aborts the process then."""
    program = (
        "import atexit, os, sys, threading, time\n"
        "from megatron_yuyuan.cli import run_command\n"
        "class Late:\n"
        "    def __del__(self): os.abort()\n"
        "def work():\n"
        "    time.sleep(0.1)\n"
        "    print('a thread')\n"
        "late = Late()\n"
        "atexit.register(print, 'the exit')\n"
        "def main():\n"
        "    threading.Thread(target=work).start()\n"
        f"    {end}\n"
        "run_command(main)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    status = {"return": 0, "sys.exit(0)": 0, "sys.exit(3)": 3}.get(end, 1)
    assert (ended.returncode, ended.stdout) == (status, "a thread\nthe exit\n")
    assert ("ZeroDivisionError" in ended.stderr) == (end == "1 / 0")


def test_debug_adds_the_traceback(repository):
    ended = subprocess.run(
        [sys.executable, str(repository / "pretrain_gpt.py"), "--exit-signal", "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr
    assert "error: --exit-signal" in ended.stderr
