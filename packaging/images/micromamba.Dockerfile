# Ubuntu with micromamba. Environments are below /opt/micromamba, which belongs to the account that people log in to.
ARG BASE=ubuntu:22.04
FROM ${BASE}

ARG MICROMAMBA=2.0.5
ENV LANG=C.UTF-8 MAMBA_ROOT_PREFIX=/opt/micromamba

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       bzip2 ca-certificates curl git less procps rsync sudo tmux vim wget \
    && rm -rf /var/lib/apt/lists/*

RUN case "$(uname -m)" in x86_64) system=linux-64 ;; aarch64) system=linux-aarch64 ;; *) exit 1 ;; esac \
    && curl -fsSL "https://micro.mamba.pm/api/micromamba/$system/$MICROMAMBA" \
       | tar -xj -C /usr/local bin/micromamba \
    && /usr/local/bin/micromamba --version

RUN id developer >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/bash developer; \
    mkdir -p /opt/micromamba /gemini/code /gemini/output /workspace \
    && chown developer: /opt/micromamba /gemini/code /gemini/output /workspace

RUN echo 'eval "$(/usr/local/bin/micromamba shell hook --shell posix)"' >/etc/profile.d/micromamba.sh
