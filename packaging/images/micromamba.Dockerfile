# Ubuntu with micromamba. Environments are below /opt/micromamba, which belongs to the account that people log in to.
ARG BASE=ubuntu:22.04
FROM ${BASE}

# In China: MIRROR=http://mirrors.tuna.tsinghua.edu.cn and CONDA_MIRROR=https://mirrors.tuna.tsinghua.edu.cn/anaconda/cloud
ARG MIRROR=
ARG CONDA_MIRROR=https://conda.anaconda.org
ARG MICROMAMBA=2.0.5
ARG MICROMAMBA_FROM=https://micro.mamba.pm/api/micromamba
ENV LANG=C.UTF-8 MAMBA_ROOT_PREFIX=/opt/micromamba

RUN if [ -n "$MIRROR" ]; then \
      find /etc/apt/sources.list /etc/apt/sources.list.d -type f 2>/dev/null | xargs -r sed -i -E \
        "s#https?://((archive|security|ports)\.ubuntu\.com|deb\.debian\.org)#$MIRROR#"; \
    fi \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       bzip2 ca-certificates curl git less openssh-client procps rsync tmux tzdata vim wget \
    && rm -rf /var/lib/apt/lists/*

# In two steps: of a pipe only the last program's failure counts.
RUN case "$(uname -m)" in x86_64) system=linux-64 ;; aarch64) system=linux-aarch64 ;; *) exit 1 ;; esac \
    && curl -fsSL --retry 3 -o /tmp/micromamba.tar.bz2 "$MICROMAMBA_FROM/$system/$MICROMAMBA" \
    && tar -xjf /tmp/micromamba.tar.bz2 -C /usr/local bin/micromamba \
    && rm /tmp/micromamba.tar.bz2 \
    && /usr/local/bin/micromamba --version

RUN id developer >/dev/null 2>&1 || useradd --create-home --uid 1000 --shell /bin/bash developer; \
    mkdir -p /opt/micromamba /gemini/code /gemini/output /workspace \
    && printf 'channels: [conda-forge]\nchannel_priority: strict\nchannel_alias: %s\n' "$CONDA_MIRROR" \
       >/opt/micromamba/.mambarc \
    && chown -R developer: /opt/micromamba /gemini/code /gemini/output /workspace

RUN echo 'eval "$(/usr/local/bin/micromamba shell hook --shell posix)"' >/etc/profile.d/micromamba.sh
