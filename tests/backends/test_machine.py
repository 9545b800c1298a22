"""The compute of an existing machine: what the conformance suite cannot ask of every compute."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from backends.compute.contract import HostMount, State, WorkloadSpec
from backends.compute.registry import computes_of
from backends.compute.ssh import links
from backends.compute.ssh.driver import MachineCompute
from backends.settings import BackendSettings, DockerSettings, LocalSettings, MachineSettings
from gateway import health
from storage.database.engine import Database
from storage.errors import BadInput, NotFound, Unavailable
from tests.conformance.conftest import exchange, run
from tests.machines import ACCOUNT, Machine


def settings_of(machine: Machine, **more: Any) -> MachineSettings:
    facts = {
        "address": machine.address, "port": machine.port, "user": ACCOUNT, "host_key": machine.host_key,
        "key_file": str(machine.key_file),
    }  # fmt: skip
    return MachineSettings(**(facts | more))


@pytest.fixture
async def box(machine: Machine) -> AsyncIterator[MachineCompute]:
    compute = MachineCompute("box", settings_of(machine))
    yield compute
    await compute.close()


def spec_of(**more: Any) -> WorkloadSpec:
    return WorkloadSpec(secrets.token_hex(8), "train", "alice", "team", **more)


@asynccontextmanager
async def running(box: MachineCompute, **more: Any) -> AsyncIterator[WorkloadSpec]:
    spec = spec_of(**more)
    await box.create(spec, print)
    await box.start(spec.id, spec, print)
    try:
        yield spec
    finally:
        await box.delete(spec.id)


async def eventually(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.1)


def new_key() -> str:
    words = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()
    return " ".join(words[:2])


# ---- who is there ------------------------------------------------------------------------------------------------
async def test_a_machine_with_another_host_key_gets_nothing(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody stands in between, or the machine was installed anew: said once in the log, and to whoever asks."""
    box = MachineCompute("box", settings_of(machine, host_key=new_key()))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await box.check()
        assert caught.value.message == "the machine 'box' shows another host key than the one in the settings"
        await asyncio.sleep(0.6)
    assert [record.levelname for record in caplog.records if "host key" in record.message] == ["ERROR"]
    assert (await box.inspect("0123456789abcdef")).state is State.UNKNOWN
    await box.close()


async def test_a_machine_without_a_key_of_the_pinned_kind(machine: Machine) -> None:
    """Then it shows one of another kind: the same matter for the operator, and the same words."""
    words = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode().split()
    box = MachineCompute("box", settings_of(machine, host_key=" ".join(words[:2])))
    with pytest.raises(Unavailable, match="another host key"):
        await box.check()
    await box.close()


async def test_a_key_that_is_not_let_in(machine: Machine, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    box = MachineCompute("box", settings_of(machine, key_file=str(key)))
    with pytest.raises(Unavailable, match="does not let 'trainer' in with the gateway's key"):
        await box.check()
    await box.close()


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [(None, 0, "cannot be read"), (b"", 0o644, "may be read by others"), (b"no key", 0o600, "no private key")],
)
async def test_key_files_that_do_not_serve(
    machine: Machine, tmp_path: Path, content: bytes | None, mode: int, said: str
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
        key.chmod(mode)
    box = MachineCompute("box", settings_of(machine, key_file=str(key)))
    with pytest.raises(Unavailable, match=said):
        await box.check()
    await box.close()


async def test_the_agent_of_whoever_started_the_gateway_is_not_used(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a gateway that was started by hand would work until its operator logs out."""
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", str(tmp_path / "agent"), stdout=-3)
    try:
        await eventually((tmp_path / "agent").exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        adding = await asyncio.create_subprocess_exec("ssh-add", "-q", str(machine.key_file))
        assert await adding.wait() == 0
        key = tmp_path / "key"
        key.touch(0o600)
        key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        box = MachineCompute("box", settings_of(machine, key_file=str(key)))
        with pytest.raises(Unavailable, match="does not let"):
            await box.check()
        await box.close()
    finally:
        agent.terminate()
        await agent.wait()


async def test_root_is_no_account_for_people(machine: Machine) -> None:
    machine.run("sh", "-c", "mkdir -p -m 700 /root/.ssh; cp /keys/login.pub /root/.ssh/authorized_keys")
    box = MachineCompute("box", settings_of(machine, user="root"))
    with pytest.raises(Unavailable, match="give Ashore an ordinary account"):
        await box.check()
    await box.close()


async def test_check_tells_what_is_there(box: MachineCompute) -> None:
    line = await box.check()
    assert line.startswith("OpenSSH_")
    assert "Linux" in line
    assert line.endswith("as trainer")


# ---- away and back -----------------------------------------------------------------------------------------------
async def test_lost_connections_are_made_anew(machine: Machine, box: MachineCompute) -> None:
    async with running(box) as spec:
        pipe = await box.open_pipe(spec.id, ["sleep", "1000"], {})
        machine.hang_up()
        with pipe.socket:
            assert await asyncio.get_running_loop().sock_recv(pipe.socket, 1) == b""
        # It does not look at its input, so it would stay: it is ended over the next connection.
        assert await pipe.wait() is None
        assert "sleep 1000" not in machine.run("ps", "-eo", "args")
        assert await run(box, spec.id, "echo back") == (0, b"back\n")


async def test_a_machine_that_is_away_and_comes_back(
    machine: Machine, box: MachineCompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cable that is pulled closes nothing: what hangs is given up, later questions are answered at once."""
    monkeypatch.setattr(links, "CONNECT_SECONDS", 1.0)
    async with running(box) as spec:
        machine.leave()
        try:
            assert (await box.inspect(spec.id)).state is State.UNKNOWN
            for _ in range(3):
                with pytest.raises(Unavailable, match="does not answer|cannot be reached|cannot be talked to"):
                    await box.found()
        finally:
            machine.come_back()

        async def is_back() -> bool:
            return (await box.inspect(spec.id)).state is State.RUNNING

        async with asyncio.timeout(40):
            while not await is_back():  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.2)


async def test_machines_join_when_they_answer_and_are_told_until_then(
    machine: Machine, database: Database, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.compute.registry.LOOK_SECONDS", 0.1)
    key = tmp_path / "later"
    settings = BackendSettings(
        local=LocalSettings(enabled=False), docker=DockerSettings(enabled=False),
        machines={"box": settings_of(machine, key_file=str(key))},
    )  # fmt: skip
    async with computes_of(settings, data_dir) as computes:
        assert computes == {}
        found = {one.name: one for one in await health.of_house(database, None, computes, None)}
        assert not found["compute box"].ok
        assert (
            found["compute box"].detail == "the key file of the machine 'box' cannot be read: No such file or directory"
        )
        shutil.copy(machine.key_file, tmp_path / "copy")
        (tmp_path / "copy").rename(key)
        await eventually(lambda: "box" in computes)
        found = {one.name: one for one in await health.of_house(database, None, computes, None)}
        assert found["compute box"].ok
        assert found["compute box"].detail.startswith("OpenSSH_")


async def test_a_machine_that_does_not_answer_does_not_keep_the_start_waiting(
    machine: Machine, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.compute.registry.FIRST_SECONDS", 0.3)
    settings = BackendSettings(
        local=LocalSettings(enabled=False), docker=DockerSettings(enabled=False), machines={"box": settings_of(machine)}
    )
    machine.leave()
    try:
        async with computes_of(settings, data_dir) as computes:
            assert computes == {}
            assert computes.absent == {"box": "it does not answer"}
    finally:
        machine.come_back()


# ---- sessions ----------------------------------------------------------------------------------------------------
async def test_more_pipes_than_one_connection_takes(machine: Machine, box: MachineCompute) -> None:
    """OpenSSH refuses the eleventh session of a connection."""
    async with running(box) as spec:
        pipes = [await box.open_pipe(spec.id, ["cat"], {}) for _ in range(25)]
        listed = machine.run("ps", "-eo", "args")
        assert listed.count(f"sshd: {ACCOUNT}@") == 3
        for pipe in pipes:
            assert await exchange(pipe, b"x") == b"x"
            assert await pipe.wait() == 0


async def test_a_machine_that_allows_fewer_sessions(machine: Machine) -> None:
    """What is refused is asked for again on another connection."""
    machine.run("/usr/sbin/sshd", "-r", "-f", "/etc/ssh/sshd_config", "-p", "23", "-o", "MaxSessions=2")
    few = MachineCompute("few", settings_of(machine, address=machine.inner_address, port=23))
    async with running(few) as spec:
        outputs = await asyncio.gather(*(run(few, spec.id, f"echo {number}") for number in range(8)))
        assert outputs == [(0, f"{number}\n".encode()) for number in range(8)]
    await few.close()


# ---- what stands on the machine ----------------------------------------------------------------------------------
async def test_two_environments_have_homes_of_their_own(machine: Machine, box: MachineCompute) -> None:
    async with running(box) as one, running(box) as other:
        await run(box, one.id, "echo mine > ~/file; echo mine > .profile")
        assert (await run(box, other.id, "cat ~/file"))[0] == 1
        assert machine.run("stat", "-c", "%a %U", machine.folder(one.id)) == f"700 {ACCOUNT}"
        assert machine.run("cat", f"/home/{ACCOUNT}/.profile") != "mine"


async def test_delete_removes_its_folder_and_nothing_behind_links(machine: Machine, box: MachineCompute) -> None:
    """Links in the home lead to the account's own files; a folder that is a link itself is unlinked, not followed."""
    machine.run("sh", "-c", "mkdir -p ~trainer/kept && echo 1 > ~trainer/kept/file && chown -R trainer ~trainer/kept")
    async with running(box) as spec:
        await run(box, spec.id, "ln -s ~trainer/kept link; mkdir -p a/b; ln -s ~trainer/kept a/b; chmod 0 a")
    assert machine.run("cat", f"/home/{ACCOUNT}/kept/file") == "1"
    spec = spec_of()
    machine.run("ln", "-s", f"/home/{ACCOUNT}/kept", machine.folder(spec.id), user=ACCOUNT)
    assert (await box.inspect(spec.id)).state is State.GONE
    with pytest.raises(NotFound):
        await box.start(spec.id, spec, print)
    await box.delete(spec.id)
    assert machine.run("cat", f"/home/{ACCOUNT}/kept/file") == "1"
    assert spec.id not in machine.run("ls", "-a", f"/home/{ACCOUNT}/.ashore")


async def test_what_has_no_label_is_not_ours(machine: Machine, box: MachineCompute) -> None:
    spec = spec_of()
    machine.run("mkdir", "-p", machine.folder(spec.id), user=ACCOUNT)
    assert spec.id not in [item.environment_id for item in await box.found()]
    with pytest.raises(Exception, match="not Ashore's"):
        await box.create(spec, print)
    machine.run("rmdir", machine.folder(spec.id))


async def test_stop_finds_programs_that_left_their_session(machine: Machine, box: MachineCompute) -> None:
    """A daemon has no parent and no terminal any more; the home in its environment tells whose it is."""
    async with running(box) as one, running(box) as other:
        for spec, seconds in ((one, 4721), (other, 4722)):
            await run(box, spec.id, f"setsid -f sleep {seconds} </dev/null >/dev/null 2>&1")
        await box.stop(one.id, grace=1)
        listed = machine.run("ps", "-eo", "args")
        assert "sleep 4721" not in listed
        assert "sleep 4722" in listed


async def test_nothing_runs_after_the_machine_was_started_anew(machine: Machine, box: MachineCompute) -> None:
    async with running(box) as spec:
        machine.run("sh", "-c", f"echo 'running 00000000-another-boot' > {machine.folder(spec.id)}/state")
        status = await box.inspect(spec.id)
        assert (status.state, status.reason) == (State.STOPPED, "the machine was started anew")
        await box.start(spec.id, spec, print)
        assert await run(box, spec.id, "echo up") == (0, b"up\n")


async def test_start_up_files_that_talk_spoil_nothing(machine: Machine, box: MachineCompute) -> None:
    """bash reads ~/.bashrc for commands over SSH too; what it says there must not be taken for an answer."""
    bashrc = f"/home/{ACCOUNT}/.bashrc"
    machine.run("sh", "-c", f"cp {bashrc} /tmp/bashrc; printf 'echo state gone; echo oops >&2\\n' > {bashrc}")
    try:
        async with running(box) as spec:
            assert (await box.inspect(spec.id)).state is State.RUNNING
            assert b"".join([line async for line in box.logs(spec.id, tail=9)]).count(b"\n") == 1
            pipe = await box.open_pipe(spec.id, ["/bin/sh", "-c", "echo real >&2; exit 3"], {})
            await exchange(pipe)
            assert await pipe.wait() == 3
            assert pipe.complaint() == "real"
    finally:
        machine.run("cp", "/tmp/bashrc", bashrc)


async def test_variables_are_not_on_command_lines(machine: Machine, box: MachineCompute) -> None:
    """Everybody on the machine can list processes; a token of alice's is none of their business."""
    async with running(box, variables={"TOKEN": "geheim"}, guest_files={"key": b"secret-too"}) as spec:
        pipe = await box.open_pipe(spec.id, ["/bin/sh", "-c", 'test "$TOKEN" = geheim && echo ok; sleep 100'], {})
        with pipe.socket:
            assert await asyncio.get_running_loop().sock_recv(pipe.socket, 10) == b"ok\n"
            # The word in the test itself is an argument of the program; the assignment is not.
            assert "TOKEN=geheim" not in machine.run("ps", "-eo", "args")
        assert machine.run("stat", "-c", "%a", f"{machine.folder(spec.id)}/run/variables") == "600"


async def test_what_a_machine_does_not_have(box: MachineCompute, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="takes no image"):
        await box.create(spec_of(image="debian"), print)
    with pytest.raises(BadInput, match="takes no data sets"):
        await box.create(spec_of(mounts=(HostMount(tmp_path, "/gemini/data-1"),)), print)


async def test_no_descriptor_stays(box: MachineCompute) -> None:
    async with running(box) as spec:
        await run(box, spec.id, "true")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            pipe = await box.open_pipe(spec.id, ["sleep", "1000"], {})
            pipe.socket.close()
            await pipe.wait()
            with pytest.raises(NotFound):
                await box.open_pipe("0123456789abcdef", ["true"], {})
        await asyncio.sleep(0.2)
        assert len(os.listdir("/proc/self/fd")) <= before
