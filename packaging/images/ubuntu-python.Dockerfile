# Ubuntu with Python and the tools that people expect. No SSH server and no password: Ashore brings and decides those.
ARG BASE=ubuntu:22.04
FROM ${BASE}

ENV LANG=C.UTF-8 PIP_NO_CACHE_DIR=1

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       # what a shell is expected to have
       ca-certificates curl git less procps rsync sudo tmux vim wget \
       # what packages of PyPI are built with, and what vision and sound need
       build-essential ffmpeg libsm6 libxext6 \
       python3 python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The account that environments log in to; code and results are mounted below /gemini.
RUN id developer >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/bash developer; \
    mkdir -p /gemini/code /gemini/output /workspace \
    && chown developer: /gemini/code /gemini/output /workspace
