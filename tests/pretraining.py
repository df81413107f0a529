"""`pretrain_gpt.py` on ranks of the pool, which start in a fraction of the time of a command."""

from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.run import pretrain


def pretrained(command: tuple) -> None:
    """Run the command (a script and its flags, as commands.train_flags makes it) in this process."""
    mesh_module.stop = mesh_module.abandon = lambda: None  # the process group is the pool's
    pretrain(parse_config("", [str(word) for word in command[1:]]))
