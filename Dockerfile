# megatron_yuyuan in a PyTorch image. The image's own torch is used and never replaced.
#
#   docker build -t megatron_yuyuan .
#   docker build -t megatron_yuyuan --build-arg BASE=REPOSITORY/IMAGE:TAG .    any image with torch 2.11 or newer
#   docker run --rm -it --gpus all --shm-size 16g --user "$(id -u):$(id -g)" -v "$PWD/data:/data" megatron_yuyuan bash
#
# Not built in our tests yet. A driver that is too old for CUDA 13 needs a BASE with an older CUDA.

ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/megatron_yuyuan
COPY README.md LICENSE pyproject.toml constraints.txt pretrain_gpt.py finetune_qa.py ./
COPY megatron_yuyuan ./megatron_yuyuan
COPY tools ./tools
COPY examples ./examples

# The tested versions, with the image's torch in place of ours: pip fails rather than exchange it.
RUN grep -v '^torch==' constraints.txt > pins.txt \
    && python3 -c "import torch; print('torch==' + torch.__version__)" >> pins.txt \
    && python3 -m pip install -c pins.txt -e '.[hf]' \
    && rm pins.txt

RUN useradd --create-home yuyuan
USER yuyuan
