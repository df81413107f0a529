"""Where a process is, from what faulthandler writes."""

import os
import subprocess
import sys

import pytest

from megatron_yuyuan.watch.stacks import in_one_line, parse, waits

TWO_THREADS = """Thread 0x00007f1 (most recent call first):
  File "/lib/threading.py", line 331 in wait

Current thread 0x00007f2 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 2806 in all_reduce
  File "/lib/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/home/megatron_yuyuan/train/trainer.py", line 73 in gradients
  File "/lib/torch/nn/modules/module.py", line 1779 in _wrapped_call_impl
  File "pretrain_gpt.py", line 22 in <module>
"""


def test_the_main_threads_calls_are_read_innermost_first():
    stack = parse(TWO_THREADS)
    assert [frame.function for frame in stack][::4] == ["all_reduce", "<module>"]
    assert in_one_line(stack) == (
        "all_reduce (distributed/distributed_c10d.py:2806) < wrapper (distributed/c10d_logger.py:83) "
        "< gradients (train/trainer.py:73) < <module> (pretrain_gpt.py:22)"
    )
    assert parse("") == []


def test_a_fault_in_another_thread_is_placed_there():
    saver, main = TWO_THREADS.split("\n\n")
    fault = saver.replace("Thread", "Current thread", 1)
    rest = main.replace("Current thread", "Thread", 1)
    written = f"{TWO_THREADS}\nFatal Python error: Segmentation fault\n\n{fault}\n\n{rest}"
    assert in_one_line(parse(written)) == "wait (lib/threading.py:331)"


def test_who_waits_for_others_is_told_from_who_computes():
    stack = parse(TWO_THREADS)
    assert waits(stack)
    assert not waits(stack[2:])
    assert not waits([])


@pytest.mark.skipif(sys.platform != "linux", reason="the witness is for Linux")
def test_a_process_answers_whatever_its_main_thread_does():
    program = (
        "import os, sys, threading, time\n"
        "from megatron_yuyuan.watch.processes import Process\n"
        "from megatron_yuyuan.watch.stacks import Stacks, in_one_line\n"
        "stacks, parent = Stacks(), os.getpid()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "if os.fork() == 0:\n"
        "    process = Process(parent)\n"
        "    first, second = stacks.ask(process), stacks.ask(process)\n"
        "    os.write(1, in_one_line(second).encode())\n"
        "    os._exit(first != second)\n"
        "def busy():\n"
        "    os.waitpid(-1, 0)\n"
        "busy()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ,
    )  # fmt: skip
    assert ended.stdout.startswith("busy (<string>:")
