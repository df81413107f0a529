# megatron_yuyuan in two PyTorch images of one version: the large one has nvcc and builds, the small one runs.
# The image's own torch is used and never replaced.
#
#   docker build -t megatron_yuyuan .
#   docker build -t megatron_yuyuan --build-arg TORCH=2.12.0-cuda12.6-cudnn9 .    an older driver
#   docker build -t megatron_yuyuan:apex --target with-apex .                     NVIDIA apex too, which takes long
#   docker run --rm -it --gpus all --shm-size 16g --user "$(id -u):$(id -g)" -v "$PWD/data:/data" megatron_yuyuan bash
#
# In it: python3 -m megatron_yuyuan.doctor. tests/test_docker.py runs the lines that install, in an environment
# of its own and without a container; the images themselves have not been built in our tests.

ARG TORCH=2.13.0-cuda13.0-cudnn9

# The package as a wheel with the compiled kernels in it, and their binding to this torch in the cache where the
# first use would put it: the image that runs has no compiler.
FROM pytorch/pytorch:${TORCH}-devel AS build
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY README.md LICENSE pyproject.toml setup.py ./
COPY megatron_yuyuan ./megatron_yuyuan
RUN python3 -m pip wheel --no-deps --wheel-dir wheels .
RUN python3 -m pip install --no-deps wheels/megatron_yuyuan-*.whl \
    && cd / && XDG_CACHE_HOME=/opt/cache python3 -c \
    "from megatron_yuyuan.kernels import build; build.built(build.compilers.CUDA, build.cache_directory())"

# NVIDIA apex as a wheel; nobody needs it but who compares with it.
FROM build AS apex
COPY tools/install_apex.sh ./
RUN bash install_apex.sh --wheel apex

FROM pytorch/pytorch:${TORCH}-runtime AS plain
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/opt/cache
WORKDIR /opt/megatron_yuyuan
COPY constraints.txt pretrain_gpt.py finetune_qa.py ./
COPY tools ./tools
COPY examples ./examples
COPY --from=build /src/wheels ./wheels
# The tested versions, with the image's torch in place of ours: pip fails rather than exchange it.
RUN grep -v '^torch==' constraints.txt > pins.txt \
    && python3 -c "import torch; print('torch==' + torch.__version__)" >> pins.txt \
    && python3 -m pip install -c pins.txt "$(echo wheels/megatron_yuyuan-*.whl)[hf,tensorboard]" \
    && rm -r pins.txt wheels
COPY --from=build /opt/cache /opt/cache
# Whoever runs it (docker run --user) may add to the cache.
RUN find /opt/cache -type d -exec chmod 1777 {} + && useradd --create-home yuyuan
USER yuyuan

FROM plain AS with-apex
USER root
COPY --from=apex /src/apex ./apex
RUN python3 -m pip install apex/apex-*.whl \
    && rm -r apex \
    && python3 -c "from megatron_yuyuan.kernels import apex; apex.require()"
USER yuyuan

FROM plain
