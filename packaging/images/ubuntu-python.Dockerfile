# Ubuntu with Python and the tools that people expect. No SSH server and no password: Ashore brings and decides those.
ARG BASE=ubuntu:22.04
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
       # what a shell is expected to have; tzdata knows what TZ=Asia/Shanghai means
       ca-certificates curl git less openssh-client procps rsync tmux tzdata vim wget \
       # what packages of PyPI are built with, and what vision and sound need
       build-essential ffmpeg libsm6 libxext6 \
       python-is-python3 python3 python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The account that environments log in to; code and results are mounted below /gemini. It owns a Python of its own, as
# nobody becomes root in an environment, and as pip leaves that of the system alone.
RUN id developer >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/bash developer; \
    mkdir -p /gemini/code /gemini/output /workspace \
    && if [ -n "$PIP_INDEX_URL" ]; then printf '[global]\nindex-url = %s\n' "$PIP_INDEX_URL" >/etc/pip.conf; fi \
    && python3 -m venv /opt/python \
    && /opt/python/bin/pip install jupyterlab numpy \
    && chown -R developer: /opt/python /gemini/code /gemini/output /workspace

# Login shells begin with a PATH of the system.
RUN echo 'PATH=/opt/python/bin:$PATH' >/etc/profile.d/python.sh
ENV PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
