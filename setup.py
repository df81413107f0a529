"""Everything is declared in pyproject.toml. Here the CUDA kernels are compiled, if nvcc is there.

They know no torch, so neither does this file. An install never fails for want of a compiler or because
of one: then the first use compiles them, or says why it cannot.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # for megatron_yuyuan.errors, which imports nothing

spec = importlib.util.spec_from_file_location(
    "compilers", ROOT / "megatron_yuyuan" / "kernels" / "compilers.py"
)
compilers = sys.modules["compilers"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compilers)


class BuildKernels(build_py):
    """The package's files, and beside them the kernels' library."""

    def run(self):
        super().run()
        if self.editable_mode:  # the sources may change: what is built at first use follows them
            return
        try:
            folder = Path(self.build_lib) / "megatron_yuyuan" / "kernels"
            print(f"compiled {compilers.compile_kernels(compilers.CUDA, folder)}")
        except compilers.KernelsError as error:
            print(f"installed without compiled kernels: {error}", file=sys.stderr)


class MachineDistribution(Distribution):
    """A wheel with a compiled library is for one kind of machine."""

    def has_ext_modules(self):
        return compilers.is_there("nvcc")


setup(cmdclass={"build_py": BuildKernels}, distclass=MachineDistribution)
