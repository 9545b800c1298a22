"""A real registry (Debian's docker-registry) on a free port, which knows one user, for tests that push and pull."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import bcrypt
from pydantic import SecretStr

from backends.registry_login import auth_file
from backends.settings import RegistrySettings

USER, PASSWORD = "builder", "correct horse"
_CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}{tls}}}
auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}
"""


@contextlib.contextmanager
def served(folder: Path, *, tls: str = "") -> Iterator[RegistrySettings]:
    """Until the end of the block; settings with which one may do everything there."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{USER}:{hashed}\n")
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port, tls=tls))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait(f"http://127.0.0.1:{port}/v2/")
        yield RegistrySettings(url=f"http://127.0.0.1:{port}", user=USER, password=SecretStr(PASSWORD), insecure=True)
    finally:
        process.terminate()
        process.wait(20)


def push_base(registry: RegistrySettings, folder: Path, image: str) -> str:
    """Bring an image that Docker has here to the registry; its name there."""
    (folder / "config.json").write_text(auth_file(registry))
    target = f"{registry.prefix}base/{image}"
    subprocess.run(["docker", "tag", image, target], check=True, capture_output=True)
    try:
        subprocess.run(["docker", "--config", str(folder), "push", target], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rmi", target], check=True, capture_output=True)
    return target


def _wait(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
