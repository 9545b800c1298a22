"""Starts the sandboxes' helper program and takes its answers; finds and ends a sandbox's first process.

Everything here blocks; `local` calls it in threads. The helper's own side is `sandbox_helper`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from backends.compute.sandbox_state import FIRST_UID, SandboxState, start_time
from storage.errors import Unavailable
from storage.names import printable

Request = Mapping[str, object]
"""One of the requests that `sandbox_helper` describes."""
_HELPER = Path(__file__).with_name("sandbox_helper.py")
_START_SECONDS = 20.0
_MOST_LOG = 4 * 1024 * 1024
_STAGES = ("/mnt", "/media", "/srv", "/tmp")
HELPER_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def helper_command(what: str, request: int) -> list[str]:
    return [sys.executable, "-I", "-S", str(_HELPER), what, str(request)]


def deliver(request: Request) -> int:
    """A descriptor that reads as `request`: it may hold secrets, which command lines and files would tell."""
    descriptor = os.memfd_create("ashore-request")
    os.write(descriptor, json.dumps(request).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def bubblewrap() -> str:
    program = shutil.which("bwrap") or shutil.which("bwrap", path=HELPER_ENVIRONMENT["PATH"])
    if program is None:
        raise Unavailable("'local' needs bubblewrap: install the package bubblewrap on this machine")
    return program


def stage_folder() -> str:
    return next(path for path in _STAGES if Path(path).is_dir())


def may_give_users(directory: Path) -> bool:
    """Try to make a sandbox, with a host user of its own if we are root; whether that one could be given."""
    said = ""
    for uid in [FIRST_UID, None] if os.geteuid() == 0 else [None]:
        request: dict[str, object] = {
            "uid": uid,
            "stage": stage_folder() if uid is not None else "",
            "folders": {"data": str(directory)} if uid is not None else {},
            "program": bubblewrap(),
            "arguments": [
                "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000",
                "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true",
            ],
        }  # fmt: skip
        answer = _call("probe", request)
        if answer.returncode == 0:
            return uid is not None
        said = printable((answer.stderr.strip().splitlines() or ["it does not say why"])[-1], limit=200)
    raise Unavailable(f"'local' cannot make sandboxes, are user namespaces allowed on this machine? ({said})")


def _call(what: str, request: Request, *more: int) -> subprocess.CompletedProcess[str]:
    reading = deliver(request)
    try:
        return subprocess.run(
            helper_command(what, reading), pass_fds=(reading, *more), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=_START_SECONDS, check=False, env=HELPER_ENVIRONMENT, cwd="/",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable("the sandbox's helper did not answer in time") from error
    finally:
        os.close(reading)


def launch(request: Request, output: Path) -> int:
    """Start a sandbox and wait until all is in place; the host's number of its first process."""
    info, info_end = os.pipe()
    ready, ready_end = os.pipe()
    try:
        answer = _call("launch", {**request, "info": info_end, "ready": ready_end}, info_end, ready_end)
        os.close(info_end)
        os.close(ready_end)
        info_end = ready_end = -1
        facts = _read_all(info) if answer.returncode == 0 else b""
        if answer.returncode == 0 and _read_all(ready).strip() == b"ready":
            return int(json.loads(facts)["child-pid"])
        _give_up(facts)
        said = answer.stderr.strip() or b"".join(last_lines(output, 1)).decode("utf-8", "replace").strip()
        raise Unavailable(f"its sandbox cannot be started: {printable(said or 'no reason given', limit=200)}")
    finally:
        for descriptor in (info, ready, info_end, ready_end):
            if descriptor >= 0:
                os.close(descriptor)


def _give_up(facts: bytes) -> None:
    """End what came up without getting ready."""
    if not facts:
        return
    pid = int(json.loads(facts)["child-pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read_all(descriptor: int) -> bytes:
    """Everything until its writers have closed it, or what came in time."""
    content, deadline = b"", time.monotonic() + _START_SECONDS
    while _readable(descriptor, deadline - time.monotonic()):
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        content += piece
    return content


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()  # not select(): a busy gateway has descriptors above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0, int(seconds * 1000))))


def kill(state: SandboxState) -> None:
    """Kill the first process, and the kernel kills everything else inside; returns once it is gone."""
    try:
        process = os.pidfd_open(state.pid)
    except ProcessLookupError:
        return
    try:
        if start_time(state.pid) == state.started:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            _readable(process, 10)
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def last_lines(path: Path, count: int) -> list[bytes]:
    try:
        with path.open("rb") as file:
            # What runs inside can write to its first program's output, and so make this as long as it likes.
            file.seek(max(file.seek(0, os.SEEK_END) - _MOST_LOG, 0))
            return list(deque(file, maxlen=max(count, 0)))
    except FileNotFoundError:
        return []
