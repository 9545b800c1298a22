#!/usr/bin/env bash
# What `make` needs before it can run anything. Idempotent; run from the root of the repository.
#   setup.sh run|dev    the virtual environment, without or with the tools of the tests
#   setup.sh programs   what `ashore serve` needs of this machine, with apt, as root; quick when it is there
set -euo pipefail

need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

say() { printf 'ashore: %s\n' "$*" >&2; }

# Installs without letting Debian start what it installs: a jump host's port 22 is none of our business.
install_quietly() {
  local policy=/usr/sbin/policy-rc.d ours= log status=0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    ours=yes
  fi
  log=$(mktemp)
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
    >"$log" 2>&1 </dev/null || status=$?
  [ -z "$ours" ] || rm -f "$policy"
  if [ "$status" != 0 ]; then
    tail -n 20 "$log" >&2
    say "apt-get could not install $*"
  fi
  rm -f "$log"
  return "$status"
}

install_or_explain() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing with apt: $*"
    install_quietly "$@"
    return
  fi
  say "this machine lacks: $*"
  if command -v apt-get >/dev/null 2>&1; then
    say "please run:  sudo packaging/setup.sh programs    (apt-get install, without starting any service)"
  fi
  exit 1
}

# The newest Python that is at least 3.11.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null 2>&1 &&
      "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "Ashore needs Python 3.11 or newer (Debian 12 and newer have it as python3)"
  exit 1
}

make_venv() {
  [ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null && return
  local python
  python=$(find_python)
  rm -rf .venv
  "$python" -m venv .venv
}

install_python_packages() {
  local extras=$1
  make_venv
  say "installing Python packages into .venv (once, about a minute)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extras"
}

# Debian's python3 comes without what `python3 -m venv` needs.
find_missing_python() {
  [ -x .venv/bin/python ] && return
  if ! command -v python3 >/dev/null 2>&1; then
    missing+=(python3 python3-venv)
    return
  fi
  local python
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
}

find_missing_programs() {
  # sshd and sftp-server are copied into environments; they never run as a service of this machine.
  need sshd || missing+=(openssh-server)
  need bwrap || missing+=(bubblewrap)
  need nsenter || missing+=(util-linux)
  # Where images are kept that people build or bring; Ashore starts it itself, on loopback. All else goes without it,
  # so nobody is asked for it who cannot install it.
  [ "$(id -u)" != 0 ] || need docker-registry || missing+=(docker-registry)
}

install_missing() {
  [ "${#missing[@]}" = 0 ] && return
  install_or_explain "${missing[@]}"
  case " ${missing[*]} " in
    *" openssh-server "*) disable_service ssh ;;
  esac
  case " ${missing[*]} " in
    *" docker-registry "*) disable_service docker-registry ;;
  esac
}

# We brought these packages for their files, so the next boot must not start their services either.
disable_service() {
  if command -v systemctl >/dev/null 2>&1; then
    systemctl disable --quiet "$1.service" >&2 && return
  else
    update-rc.d "$1" disable >&2 && return
  fi
  say "could not disable the new service $1; it would start with the next boot"
}

# One command a line: in an && list, `set -e` would let a failed step pass.
missing=()
case "${1:-}" in
  run)
    find_missing_python
    find_missing_programs
    install_missing
    install_python_packages ""
    touch .venv/.installed-run
    ;;
  dev)
    find_missing_python
    install_missing
    install_python_packages "[dev]"
    touch .venv/.installed-dev .venv/.installed-run
    ;;
  programs)
    find_missing_python
    find_missing_programs
    install_missing
    ;;
  *)
    say "usage: packaging/setup.sh run|dev|programs"
    exit 2
    ;;
esac
