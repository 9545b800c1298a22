"""A program of its own: starts a sandbox, or enters one. Never imported by the gateway; only the standard library.

    python -I -S sandbox_helper.py launch|probe|enter|end FD        FD delivers the request as JSON, see below

It runs in its own process because namespaces, user ids and limits belong to a process, and changing them in the
gateway would change the gateway. Everything it needs is imported before it moves: afterwards, the interpreter's own
files may be out of sight.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import warnings  # noqa: F401 -- os.execvpe imports it late, when it may be out of sight
from typing import NoReturn, TypedDict

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV = 2, 4
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_NS_GET_USERNS = 0xB701
_JOINED = ("ipc", "uts", "net", "pid", "mnt")
_INFO, _ARGUMENTS = 4, 5
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
# Machine → its name in audit.h, and what no program inside needs: add_key, request_key and keyctl (keyrings know no
# namespace), perf_event_open, bpf, userfaultfd and io_uring (a history of kernel holes).
_REFUSED = {
    "x86_64": (0xC000003E, (248, 249, 250, 298, 321, 323, 425, 426, 427)),
    "aarch64": (0xC00000B7, (217, 218, 219, 241, 280, 282, 425, 426, 427)),
}
_X32 = 0x40000000
_BPF_LOAD, _BPF_JUMP_EQUAL, _BPF_JUMP_ABOVE, _BPF_RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


class Confinement(TypedDict):
    """Who a sandbox runs as on the host (null: as we are), its cgroups, and limits where there are none."""

    uid: int | None
    cgroups: list[str]
    processes: int
    data: int
    cores: int
    first_core: int


class Launch(Confinement):
    """Start bubblewrap; `folders` (name → path) are bound below `stage`, if that is not empty, before uids change."""

    stage: str
    folders: dict[str, str]
    program: str
    arguments: list[str]
    """Options of bubblewrap; handed over in a pipe, so that nobody inside reads them from its command line."""
    main: list[str]
    output: str
    ready: int
    info: int


class Enter(Confinement):
    """Run a program in the sandbox whose first process is `pid`, begun at `started` (clock ticks since boot)."""

    pid: int
    started: int
    argv: list[str]
    variables: dict[str, str]
    folder: str


class End(Enter):
    """TERM to everything inside but the first two processes; wait for them at most `grace` seconds."""

    grace: float


def main() -> None:
    with os.fdopen(int(sys.argv[2])) as source:
        request = json.load(source)
    try:
        if sys.argv[1] == "launch":
            _launch(request)
        elif sys.argv[1] == "probe":
            _probe(request)
        elif sys.argv[1] == "enter":
            _enter(request, None)
        else:
            _enter(request, request["grace"])
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        sys.exit(125)


# ---- launching -------------------------------------------------------------------------------------------------
def _launch(request: Launch) -> None:
    _limit(request)
    if request["stage"]:
        _make_stage(request["stage"], request["folders"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _become(request["uid"])
    if os.fork() > 0:
        return
    os.setsid()
    _reset_signals()
    _restrict()
    arguments, writing = os.pipe()
    os.write(writing, b"".join(os.fsencode(word) + b"\0" for word in request["arguments"]))
    os.close(writing)
    silence = os.open(os.devnull, os.O_RDONLY)
    _arrange([silence, output, output, request["ready"], request["info"], arguments])
    options = ["--args", str(_ARGUMENTS), "--info-fd", str(_INFO), "--", *request["main"]]
    os.execv(request["program"], [request["program"], *options])


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _restrict() -> None:
    """No new rights through setuid programs, and no system calls that nothing inside needs; for good."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if os.uname().machine in _REFUSED:
        code = _filter(*_REFUSED[os.uname().machine])
        program = _Program(len(code) // 8, code)
        _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def _filter(architecture: int, refused: tuple[int, ...]) -> bytes:
    """A BPF program over `struct seccomp_data`: calls of other architectures and the refused ones give EPERM."""
    steps = [
        (_BPF_LOAD, 0, 0, 4),
        (_BPF_JUMP_EQUAL, 0, len(refused) + 2, architecture),
        (_BPF_LOAD, 0, 0, 0),
        (_BPF_JUMP_ABOVE, len(refused), 0, _X32),
        *((_BPF_JUMP_EQUAL, len(refused) - index, 0, number) for index, number in enumerate(refused)),
        (_BPF_RETURN, 0, 0, _ALLOW),
        (_BPF_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _reset_signals() -> None:
    """Undo what the interpreter set up for itself; what is ignored stays so in everything that comes."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _arrange(descriptors: list[int]) -> None:
    """Make these the descriptors 0, 1, 2 …, inherited by what comes, and close every other one."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in descriptors]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number)
    os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))


def _probe(request: Launch) -> None:
    """Whether this machine lets us do all that; answers with bubblewrap's own exit status and words."""
    if request["stage"]:
        _make_stage(request["stage"], request["folders"])
    _become(request["uid"])
    os.execv(request["program"], [request["program"], *request["arguments"]])


def _make_stage(stage: str, folders: dict[str, str]) -> None:
    """Show `folders` at a place that the sandbox's user can reach, to this process and its children alone."""
    _check(_LIBC.unshare(_CLONE_NEWNS))
    _mount(b"none", "/", b"", _MS_REC | _MS_PRIVATE, b"")
    _mount(b"tmpfs", stage, b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0755,size=64k")
    for name, path in folders.items():
        target = f"{stage}/{name}"
        os.mkdir(target)
        _mount(os.fsencode(path), target, b"", _MS_BIND, b"")


def _mount(source: bytes, target: str, kind: bytes, flags: int, options: bytes) -> None:
    _check(_LIBC.mount(source, os.fsencode(target), kind or None, ctypes.c_ulong(flags), options or None))


def _become(uid: int | None) -> None:
    if uid is None:
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _limit(request: Confinement) -> None:
    for path in request["cgroups"]:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
    _lower(resource.RLIMIT_NPROC, request["processes"])
    # Not the address space: Node, Go and Java reserve far more of it than they ever use.
    _lower(resource.RLIMIT_DATA, request["data"])
    _lower(resource.RLIMIT_CORE, 0, always=True)
    if request["cores"]:
        os.sched_setaffinity(0, _some(sorted(os.sched_getaffinity(0)), request["cores"], request["first_core"]))


def _some(cores: list[int], count: int, first: int) -> list[int]:
    """`count` neighbours of `cores`: the same for all programs of a sandbox, others for other sandboxes."""
    start = first % len(cores)
    return (cores[start:] + cores[:start])[:count]


def _lower(kind: int, value: int, *, always: bool = False) -> None:
    if not value and not always:
        return
    _, hard = resource.getrlimit(kind)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (limit, limit))


# ---- entering --------------------------------------------------------------------------------------------------
def _enter(request: Enter, grace: float | None) -> None:
    spaces = _open_spaces(request["pid"], request["started"])
    _limit(request)
    _become(request["uid"])
    # bubblewrap nests two user namespaces: the outer owns all the others, the inner holds the user. Each step needs
    # the rights that the one before has given.
    outer = fcntl.ioctl(spaces["mnt"], _NS_GET_USERNS)
    nested = os.fstat(outer).st_ino != os.fstat(spaces["user"]).st_ino
    _setns(outer)
    for name in _JOINED:
        _setns(spaces[name])
    if nested:
        _setns(spaces["user"])
    for descriptor in (*spaces.values(), outer):
        os.close(descriptor)
    child = os.fork()
    if child > 0:
        os._exit(_watch(child) if grace is None else _status(os.waitpid(child, 0)[1]))
    if grace is None:
        _run(request)
    _end_all(grace)


def _open_spaces(pid: int, started: int) -> dict[str, int]:
    spaces = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in (*_JOINED, "user")}
    # Checked after opening: the number may have been given to another process in between.
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    if int(fields[19]) != started:
        raise OSError(0, "the sandbox has ended")
    return spaces


def _run(request: Enter) -> NoReturn:
    os.setsid()
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break
    _restrict()
    _reset_signals()
    try:
        os.chdir(request["folder"])
        os.execvpe(request["argv"][0], request["argv"], request["variables"])
    except OSError as error:
        sys.stderr.write(f"{request['argv'][0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _watch(child: int) -> int:
    """Wait for the program; end it when the other end of the pipe is closed (not merely shut for writing)."""
    process = os.pidfd_open(child)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(0, 0)
    os.close(1)
    sent = [(1.0, 0), (1.0, signal.SIGTERM), (2.0, signal.SIGKILL)]
    ready = dict(poll.poll())
    if process not in ready:
        poll.unregister(0)
        for seconds, number in sent:
            if number:
                _signal_group(child, number)
            if poll.poll(seconds * 1000):
                break
    return _status(os.waitpid(child, 0)[1])


def _signal_group(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except ProcessLookupError:
        os.kill(child, number)


def _end_all(grace: float) -> NoReturn:
    kept = {1, 2, os.getpid()}
    deadline = time.monotonic() + grace
    try:
        os.kill(-1, signal.SIGTERM)
    except ProcessLookupError:
        os._exit(0)
    while time.monotonic() < deadline:
        if {int(name) for name in os.listdir("/proc") if name.isdigit()} <= kept:
            os._exit(0)
        time.sleep(0.05)
    os._exit(1)


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _setns(descriptor: int) -> None:
    _check(_LIBC.setns(descriptor, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
