"""Sandboxes of `local` beyond what every compute does: isolation, bounds, and lives longer than the gateway's."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from backends.compute import sandbox_helper, sandbox_limits
from backends.compute.contract import Pipe, State, WorkloadSpec
from backends.compute.local import LocalCompute
from backends.compute.sandbox_process import last_lines
from backends.compute.sandbox_state import SandboxFolder, free_uid
from backends.settings import BackendSettings
from storage.errors import BadInput, Conflict, NotFound, Unavailable

ROOT = Path(__file__).parents[2]
SPEC = WorkloadSpec(secrets.token_hex(8), "train", "alice", "default", guest_files={"key": b"secret"})


async def up(compute: LocalCompute, spec: WorkloadSpec = SPEC) -> str:
    handle = await compute.create(spec, _silent)
    await compute.start(handle, spec, _silent)
    return handle


async def output(pipe: Pipe) -> tuple[str, int | None]:
    reader, writer = await asyncio.open_unix_connection(sock=pipe.socket)
    content = (await reader.read()).decode()
    status = await pipe.wait()
    writer.close()
    await writer.wait_closed()
    return content, status


async def sh(compute: LocalCompute, handle: str, script: str) -> str:
    return (await output(await compute.open_pipe(handle, ["/bin/sh", "-c", script], {})))[0]


def _silent(line: str) -> None:
    assert line


async def test_it_says_what_it_is(local: LocalCompute) -> None:
    assert (await local.check()).startswith("bubblewrap ")


async def test_a_machine_without_bubblewrap_says_what_to_install(
    local: LocalCompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="install the package bubblewrap"):
        await local.check()


async def test_an_image_is_refused(local: LocalCompute) -> None:
    with pytest.raises(BadInput, match="no image"):
        await local.create(WorkloadSpec("1", "train", "alice", "default", image="debian"), _silent)


async def test_nothing_of_this_machine_but_its_system_is_seen(local: LocalCompute, data_dir: Path) -> None:
    handle = await up(local)
    secret = data_dir / "vault.key"
    secret.write_text("secret")
    assert await sh(local, handle, f"cat {secret} /etc/shadow /root/.profile 2>/dev/null; ls /home") == "developer\n"
    assert "usr" in (await sh(local, handle, "ls /")).split()
    seen = (await sh(local, handle, "for p in /proc/[0-9]*; do echo $(basename $p); done")).split()
    assert len(seen) < 6
    assert os.getpid() not in map(int, seen)
    assert await sh(local, handle, "cat /etc/group | grep -c tty") == "0\n"
    denied = await sh(local, handle, "touch /usr/x /etc/x /x /opt/ashore/run/x /opt/ashore/guest/x 2>&1; ls /x")
    assert denied.count("Read-only file system") == 5


async def test_programs_have_no_rights_and_cannot_get_any(local: LocalCompute) -> None:
    handle = await up(local)
    status = await sh(local, handle, "cat /proc/self/status")
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Uid:\t1000\t1000"):
        assert line in status
    assert "failed" in await sh(local, handle, "unshare -U true 2>&1")
    keyctl, bpf = (250, 321) if os.uname().machine == "x86_64" else (219, 280)
    script = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print([libc.syscall(number, 0, 0, 0, 0, 0) and ctypes.get_errno() for number in ({keyctl}, {bpf}, 425)])
"""
    content, _ = await output(await local.open_pipe(handle, ["python3", "-c", script], {}))
    assert content == f"{[errno.EPERM] * 3}\n"
    assert await sh(local, handle, "ls -l /proc/self/fd | grep -vE 'socket|pipe|/proc/' | tail -n +2") == ""


async def test_each_sandbox_has_a_loopback_of_its_own(local: LocalCompute) -> None:
    handle = await up(local)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; print(socket.socket().connect_ex(('127.0.0.1', {port})))"
        pipe = await local.open_pipe(handle, ["/usr/bin/python3", "-c", script], {})
        assert (await output(pipe))[0].strip() == "111"
    assert "127.0.0.1" in await sh(local, handle, "getent hosts localhost; cat /etc/hosts")


async def test_for_root_each_sandbox_is_another_user_of_the_host(local: LocalCompute, data_dir: Path) -> None:
    other = WorkloadSpec(secrets.token_hex(8), "other", "bob", "default")
    owners = set()
    for spec in (SPEC, other):
        await up(local, spec)
        owners.add((data_dir / "environments" / spec.id / "home").stat().st_uid)
    if os.geteuid() != 0:
        assert owners == {os.geteuid()}
        return
    assert len(owners) == 2
    assert all(owner >= 0x7000_0000 for owner in owners)


def test_host_users_are_never_given_twice(tmp_path: Path) -> None:
    first = free_uid("a", tmp_path)
    assert first == free_uid("a", tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "state.json").write_text(json.dumps({"id": "b", "name": "b", "uid": first}))
    assert free_uid("a", tmp_path) == first + 1


async def test_bytes_half_close_and_exit_status_pass(local: LocalCompute) -> None:
    handle = await up(local)
    pipe = await local.open_pipe(handle, ["/bin/sh", "-c", "wc -c; echo $X >&2; exit 9"], {"X": "\x1b[31mred"})
    reader, writer = await asyncio.open_unix_connection(sock=pipe.socket)
    writer.write(b"x" * 1_000_000)
    await writer.drain()
    writer.write_eof()
    assert await reader.read() == b"1000000\n"
    assert await pipe.wait() == 9
    assert pipe.complaint() == "\ufffd[31mred"
    writer.close()
    await writer.wait_closed()


async def test_a_program_that_does_not_exist_is_named(local: LocalCompute) -> None:
    handle = await up(local)
    pipe = await local.open_pipe(handle, ["/no/such"], {})
    assert (await output(pipe))[1] == 127
    assert "No such file" in pipe.complaint()


async def test_a_stubborn_program_ends_with_its_pipe(local: LocalCompute) -> None:
    handle = await up(local)
    pipe = await local.open_pipe(handle, ["/bin/sh", "-c", "trap '' TERM HUP; while :; do sleep 1; done"], {})
    await asyncio.sleep(0.3)
    pipe.socket.close()
    assert await pipe.wait() == 128 + signal.SIGKILL


async def test_stop_lets_programs_end_and_keeps_the_home(local: LocalCompute) -> None:
    handle = await up(local)
    script = "trap 'echo ended > ~/note; exit' TERM; echo up; while :; do sleep 0.05; done"
    pipe = await local.open_pipe(handle, ["/bin/sh", "-c", script], {})
    reader, writer = await asyncio.open_unix_connection(sock=pipe.socket)
    await reader.readline()
    await local.stop(handle, grace=5)
    writer.close()
    await writer.wait_closed()
    assert (await local.inspect(handle)).state is State.STOPPED
    await local.start(handle, SPEC, _silent)
    assert await sh(local, handle, "cat /workspace/note") == "ended\n"


async def test_a_program_that_ignores_term_is_killed_after_the_grace(local: LocalCompute) -> None:
    handle = await up(local)
    await sh(local, handle, "(trap '' TERM; exec sleep 8888) >/dev/null 2>&1 </dev/null & sleep 0.2")
    await local.stop(handle, grace=0.5)
    listed = subprocess.run(["pgrep", "-f", "sleep 888[8]"], capture_output=True, text=True)
    assert listed.stdout == ""


async def test_a_killed_sandbox_is_seen_and_can_be_started_again(local: LocalCompute, data_dir: Path) -> None:
    handle = await up(local)
    state = SandboxFolder(data_dir / "environments" / handle).read()
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    for _ in range(100):
        if (status := await local.inspect(handle)).state is State.STOPPED:
            break
        await asyncio.sleep(0.02)
    assert (status.state, status.reason) == (State.STOPPED, "its first process was ended")
    with pytest.raises(Conflict):
        await local.open_pipe(handle, ["/bin/true"], {})
    await local.start(handle, SPEC, _silent)
    assert (await local.inspect(handle)).state is State.RUNNING


async def test_another_process_with_the_same_number_is_not_taken_for_it(local: LocalCompute, data_dir: Path) -> None:
    handle = await up(local)
    path = data_dir / "environments" / handle / "state.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"pid": os.getpid()}))
    assert (await local.inspect(handle)).state is State.STOPPED
    path.write_text(json.dumps(facts | {"boot": "another"}))
    assert (await local.inspect(handle)).reason == "this machine was started anew"
    path.write_text(json.dumps(facts))


async def test_sandboxes_outlive_a_gateway_that_is_killed(local: LocalCompute, data_dir: Path, guest: Path) -> None:
    """A process starts one and is killed with SIGKILL, its whole process group with it."""
    program = f"""
import asyncio, os, signal
from pathlib import Path
from backends.compute.contract import WorkloadSpec
from backends.compute.local import LocalCompute
from backends.settings import BackendSettings
async def main():
    compute = LocalCompute(Path({str(data_dir)!r}), Path({str(guest)!r}), BackendSettings())
    spec = WorkloadSpec({SPEC.id!r}, "train", "alice", "default")
    handle = await compute.create(spec, print)
    await compute.start(handle, spec, print)
    await compute.open_pipe(handle, ["/bin/sleep", "9999"], {{}})
    await asyncio.sleep(0.3)
    os.killpg(0, signal.SIGKILL)
asyncio.run(main())
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, start_new_session=True, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert [(found.handle, found.state) for found in await local.found()] == [(SPEC.id, State.RUNNING)]
    for _ in range(100):
        if "sleep 9999" not in await sh(local, SPEC.id, "ps -eo args"):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the pipe's program stayed behind")
    assert (await local.inspect(SPEC.id)).state is State.RUNNING


async def test_create_and_start_may_come_again(local: LocalCompute) -> None:
    handle = await up(local)
    before = await sh(local, handle, "cat /proc/1/stat | cut -d' ' -f22")
    changed = WorkloadSpec(SPEC.id, "train", "alice", "default", guest_files={"key": b"fresh"})
    assert await up(local, changed) == handle
    assert await sh(local, handle, "cat /proc/1/stat | cut -d' ' -f22") == before
    assert await sh(local, handle, "cat /opt/ashore/run/key") == "fresh"


async def test_two_who_start_it_at_once_start_one(local: LocalCompute, data_dir: Path, guest: Path) -> None:
    handle = await local.create(SPEC, _silent)
    second = LocalCompute(data_dir, guest, BackendSettings())
    await asyncio.gather(*(compute.start(handle, SPEC, _silent) for compute in (local, second, local)))
    assert [found.state for found in await second.found()] == [State.RUNNING]
    await second.close()


async def test_delete_removes_what_was_made_hard_to_remove(local: LocalCompute, data_dir: Path) -> None:
    handle = await up(local)
    victim = data_dir / "victim"
    victim.mkdir()
    (victim / "file").write_text("stays")
    await sh(local, handle, f"cd; mkdir -p a/b; touch a/b/c; chmod 0 a/b a; ln -s {victim} link; ln -s / root")
    await local.delete(handle)
    await local.delete(handle)
    assert not (data_dir / "environments" / handle).exists()
    assert (victim / "file").read_text() == "stays"
    assert (await local.inspect(handle)).state is State.GONE
    with pytest.raises(NotFound):
        await local.start(handle, SPEC, _silent)


async def test_logs_are_what_its_first_program_said(local: LocalCompute) -> None:
    handle = await up(local)
    lines = [line async for line in local.logs(handle, tail=5)]
    assert len(lines) == 1
    assert lines[0].endswith(b" train is up\n")
    assert [line async for line in local.logs(handle, tail=0)] == []


async def test_memory_is_bounded(local: LocalCompute) -> None:
    handle = await up(local, WorkloadSpec(SPEC.id, "train", "alice", "default", memory=64 << 20, cpus=0.5))
    script = "x = bytearray(256 << 20); print('had it all')"
    content, status = await output(await local.open_pipe(handle, ["/usr/bin/python3", "-c", script], {}))
    assert "had it all" not in content
    assert status != 0
    assert (await local.inspect(handle)).state is State.RUNNING


def test_bounds_become_rlimits_where_there_is_no_cgroup(tmp_path: Path) -> None:
    bounds = sandbox_limits.bound("x", cpus=1.5, memory=1 << 30, processes=4096, root=tmp_path)
    assert bounds == sandbox_limits.Bounds((), 4096, 1 << 30, 2)
    assert not (tmp_path / "memory").exists()


_RESERVES_AND_TAKES = """
import mmap, sys
from backends.compute import sandbox_helper
sandbox_helper._limit({"cgroups": [], "processes": 0, "data": 256 << 20, "cores": 1, "first_core": 7})
mmap.mmap(-1, 8 << 30, prot=0, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print("reserved")
x = bytearray(512 << 20)
print("had it all")
"""


def test_without_a_cgroup_memory_is_bounded_and_reserving_costs_nothing() -> None:
    """Node, Go and Java reserve gigabytes of addresses at their start; they must run in a small environment."""
    done = subprocess.run([sys.executable, "-c", _RESERVES_AND_TAKES], cwd=ROOT, capture_output=True, check=False)
    assert done.stdout == b"reserved\n", done.stderr
    assert b"MemoryError" in done.stderr


def test_sandboxes_do_not_crowd_the_same_cores() -> None:
    cores = list(range(8))
    assert sandbox_helper._some(cores, 4, 6) == [6, 7, 0, 1]
    assert sandbox_helper._some(cores, 99, 3) == [3, 4, 5, 6, 7, 0, 1, 2]
    assert sandbox_helper._some([2, 5], 1, 1_000_001) == [5]


def test_bounds_are_written_to_cgroups_of_version_2(tmp_path: Path) -> None:
    group = tmp_path / "ashore" / "x"
    group.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    for name in ("pids.max", "memory.max", "cpu.max"):
        (group / name).write_text("")
    bounds = sandbox_limits.bound("x", cpus=1.5, memory=1 << 30, processes=4096, root=tmp_path)
    assert bounds == sandbox_limits.Bounds((group,), 0, 0, 0)
    assert (group / "cpu.max").read_text() == "150000 100000"
    assert (group / "memory.max").read_text() == str(1 << 30)


def test_an_ordinary_user_has_all_of_this(guest: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("plain")
    command = [_python(), str(ROOT / "tests/backends/unprivileged.py"), str(directory), str(guest)]
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    if os.geteuid() == 0:
        for parent in (guest.parent, *guest.parents[1:]):
            if parent == Path("/tmp"):
                break
            parent.chmod(parent.stat().st_mode | 0o011)
        os.chown(directory, 4242, 4242)
        # The repository may lie where others may not go, such as /root: it gets a second place.
        code = str(tmp_path_factory.mktemp("code"))
        command = [part.replace(f"{ROOT}/", f"{code}/") for part in command]
        path = os.pathsep.join(part.replace(str(ROOT), code) for part in path.split(os.pathsep))
        command = [
            "unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", str(ROOT), code,
            "setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups", *command,
        ]  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, cwd="/")
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert facts["uid"] == (4242 if os.geteuid() == 0 else os.getuid())
    inside = facts["inside"].split()
    assert inside[:2] == ["1000", "secret"]
    assert inside[2:6] == ["CapBnd:", "0000000000000000", "NoNewPrivs:", "1"]
    assert inside[6].startswith("/dev/pts/")
    assert (facts["seen"], facts["running"], facts["stopped"], facts["left"]) == ("2", "running", "stopped", [])
    assert (facts["mounted"], facts["kept"]) == ("datafile\n0", "data")


def _python() -> str:
    """An interpreter that an ordinary user may run; the one that runs the tests may be below /root."""
    return "/usr/bin/python3" if Path(sys.executable).resolve().is_relative_to("/root") else sys.executable


async def test_delete_gives_back_the_cgroup_of_a_sandbox_whose_folder_was_lost(
    local: LocalCompute, data_dir: Path
) -> None:
    handle = await up(local)
    state = SandboxFolder(data_dir / "environments" / handle).read()
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    await asyncio.sleep(0.3)
    shutil.rmtree(data_dir / "environments" / handle)
    await local.delete(handle)
    assert list(Path("/sys/fs/cgroup").glob(f"**/ashore/{handle}")) == []


def test_a_log_of_any_length_is_read_from_its_end(tmp_path: Path) -> None:
    """Programs inside can write to the first one's output: a log of gigabytes must not come into our memory."""
    log = tmp_path / "output.log"
    with log.open("wb") as file:
        file.truncate(3 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert last_lines(log, 1) == [b"last\n"]
    assert sum(map(len, last_lines(log, 1 << 40))) <= 4 << 20
    assert last_lines(tmp_path / "none", 5) == []
