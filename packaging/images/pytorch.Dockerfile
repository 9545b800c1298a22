# PyTorch with CUDA, Jupyter and the usual libraries. No SSH server and no password: Ashore brings and decides those.
ARG BASE=pytorch/pytorch:2.4.1-cuda12.4-cudnn9-runtime
FROM ${BASE}

# In China: MIRROR=http://mirrors.tuna.tsinghua.edu.cn and PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple
ARG MIRROR=
ARG PIP_INDEX_URL=
ENV LANG=C.UTF-8 PIP_NO_CACHE_DIR=1

RUN if [ -n "$MIRROR" ]; then \
      find /etc/apt/sources.list /etc/apt/sources.list.d -type f 2>/dev/null | xargs -r sed -i -E \
        "s#https?://((archive|security|ports)\.ubuntu\.com|deb\.debian\.org)#$MIRROR#"; \
    fi \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       ca-certificates curl git less openssh-client procps rsync tmux tzdata vim wget \
       ffmpeg libsm6 libxext6 \
    && rm -rf /var/lib/apt/lists/*

# torch itself is the base's, and stays as it is.
RUN if [ -n "$PIP_INDEX_URL" ]; then printf '[global]\nindex-url = %s\n' "$PIP_INDEX_URL" >/etc/pip.conf; fi \
    && python -m pip install accelerate datasets jupyterlab matplotlib numpy pandas scikit-learn tensorboard transformers

# The account that environments log in to; code and results are mounted below /gemini. It may install more with pip, as
# nobody becomes root in an environment: pip puts that into the home by itself.
RUN id developer >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/bash developer; \
    mkdir -p /gemini/code /gemini/output /workspace \
    && chown developer: /gemini/code /gemini/output /workspace

# Login shells begin with a PATH of the system; the Python of the base stands elsewhere.
RUN echo "PATH=$(dirname "$(command -v python)"):\$HOME/.local/bin:\$PATH" >/etc/profile.d/python.sh
