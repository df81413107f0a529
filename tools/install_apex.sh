#!/usr/bin/env bash
# Build NVIDIA apex from one commit of its source, with its CUDA extensions, for the torch that is installed. Nothing
# here needs it: --kernels apex is for comparison. The package of that name on PyPI is another project.
#
#   tools/install_apex.sh                 install it
#   tools/install_apex.sh --wheel FOLDER  make a wheel of it in FOLDER
#
# PYTHON names the interpreter (python3), CUDA_HOME the toolkit of nvcc, TORCH_CUDA_ARCH_LIST the GPUs to build for
# (8.0;9.0: A100, H100), MAX_JOBS how many compilers run at once. It takes a quarter of an hour or more. Ends with 2 if
# something must be changed first.
set -euo pipefail

commit=6424da3b4faa6c8f062da4a48c424fff3f02d42d # of 2026-07-08
source=https://github.com/NVIDIA/apex/archive/$commit.tar.gz
python=${PYTHON:-python3}

# refuse WHAT WHY TRY
refuse() {
    printf 'error: %s\n  why: %s\n  try: %s\n' "$1" "$2" "$3" >&2
    exit 2
}

# say_python PROGRAM: what a line of Python prints
say_python() { "$python" -c "$1" 2>/dev/null; }

folder=
case "$#:${1:-}" in
    0:) ;;
    2:--wheel) folder=$2 ;;
    *) refuse "arguments: $*" "it installs, or makes a wheel" "install_apex.sh, or install_apex.sh --wheel FOLDER" ;;
esac

cuda=$(say_python 'import torch; print(torch.version.cuda or "none")') ||
    refuse "$python has no torch" "apex is compiled against the torch it will run with" \
        "PYTHON=/path/to/python of the environment that trains"
[ "$cuda" != none ] ||
    refuse "the torch of $python is built without CUDA" "apex is CUDA code, and would be built without any of it" \
        "a torch for CUDA, as pytorch.org/get-started shows it; without a GPU apex is of no use"

nvcc=${CUDA_HOME:+$CUDA_HOME/bin/nvcc}
nvcc=${nvcc:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] ||
    refuse "there is no nvcc: $nvcc" "it compiles apex's CUDA extensions" \
        "the CUDA toolkit $cuda, and CUDA_HOME=its folder; a -devel image of PyTorch has it"
release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
[ "$release" = "$cuda" ] ||
    refuse "nvcc is of CUDA $release, torch of CUDA $cuda" "apex's setup.py refuses another version than torch's" \
        "CUDA_HOME=the folder of the CUDA toolkit $cuda"

found=$(say_python '
import importlib.util, pathlib
apex = importlib.util.find_spec("apex")
folders = (apex.submodule_search_locations or ()) if apex else ()
nvidia = any((pathlib.Path(folder) / "normalization").is_dir() for folder in folders)
print("none" if apex is None else "nvidia" if nvidia else "other")')
[ "$found" != other ] ||
    refuse "the apex that is installed is not NVIDIA's" "PyPI has another project of that name" \
        "$python -m pip uninstall apex, then this again"

export CUDA_HOME="${nvcc%/bin/nvcc}" APEX_CPP_EXT=1 APEX_CUDA_EXT=1
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;9.0}"
"$python" -m pip install 'packaging>20.6' setuptools wheel # its setup.py imports them
if [ -n "$folder" ]; then
    "$python" -m pip wheel -v --no-build-isolation --no-deps --wheel-dir "$folder" "apex @ $source"
else
    "$python" -m pip install -v --no-build-isolation --no-deps --force-reinstall "apex @ $source"
    "$python" -c 'import torch, amp_C, fused_layer_norm_cuda' ||
        refuse "apex is installed and its extensions cannot be loaded" "they were built for another torch, or not at all" \
            "read what pip said above; then this again"
fi
