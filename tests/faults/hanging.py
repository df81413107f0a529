"""pretrain_gpt.py with a rank that goes astray: python hanging.py HOW FLAGS...

absent      the job is said to have one rank more than it has
other size  rank 1 exchanges another number of elements than rank 0 in its third step
other kind  it waits at a barrier there, while rank 0 sums
memory      there is no memory for its third step
other lr    rank 1 was given another learning rate
no room     nothing can be written to stdout
none        nothing happens but what the flags say
"""

import os
import runpy
import sys

from commands import ROOT

from megatron_yuyuan.watch import witness


def go_astray(how: str) -> None:
    """On rank 1, before its third update."""
    import torch
    import torch.distributed as dist

    passes = []

    def hook(event: str, given: tuple) -> None:
        if event != "megatron_yuyuan.fault_point" or given[0] != "step.before_update":
            return
        passes.append(given)
        if len(passes) == 3 and how == "other size":
            dist.all_reduce(torch.ones(1000))
        elif len(passes) == 3 and how == "memory":
            torch.empty(2**58)
        elif len(passes) == 3:
            dist.barrier()

    sys.addaudithook(hook)


if __name__ == "__main__":
    [_, how, *flags] = sys.argv
    witness.GRACE = 0.5
    if how == "absent":
        os.environ["WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) + 1)
    elif how == "other lr":
        flags += ["--lr", f"0.{os.environ['RANK']}1"]
    elif how == "no room":
        os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())
    elif how != "none" and os.environ["RANK"] == "1":
        go_astray(how)
    sys.argv = [str(ROOT / "pretrain_gpt.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")
