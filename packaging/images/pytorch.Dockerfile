# PyTorch with CUDA, Jupyter and the usual libraries. No SSH server and no password: Ashore brings and decides those.
ARG BASE=pytorch/pytorch:2.4.1-cuda12.4-cudnn9-runtime
FROM ${BASE}

ENV LANG=C.UTF-8 PIP_NO_CACHE_DIR=1

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       ca-certificates curl git less procps rsync sudo tmux vim wget \
       ffmpeg libsm6 libxext6 \
    && rm -rf /var/lib/apt/lists/*

# torch itself is the base's, and stays as it is.
RUN python -m pip install accelerate datasets jupyterlab matplotlib numpy pandas scikit-learn tensorboard transformers

RUN id developer >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/bash developer; \
    mkdir -p /gemini/code /gemini/output /workspace \
    && chown developer: /gemini/code /gemini/output /workspace
