"""What every compute must do, asked of each of them."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import aclosing

import pytest

from backends.compute.contract import HasOutput, HasUsage, RegistryAway, State, WorkloadSpec
from backends.compute.tar_stream import Kind, TarStream
from storage.errors import BadInput, Conflict, NotFound
from tests.conformance.conftest import Kit, exchange, run

Up = tuple[Kit, str, WorkloadSpec]
MEGABYTE = 1_000_000
_FILL = "x=$(head -c 40000000 /dev/zero | tr '\\0' a)"
"""Forty megabytes in a shell's variable."""


# ---- life --------------------------------------------------------------------------------------------------------
async def test_states_through_a_life(kit: Kit) -> None:
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    assert (await kit.compute.inspect(handle)).state is State.STOPPED
    await kit.compute.start(handle, spec, print)
    assert (await kit.compute.inspect(handle)).state is State.RUNNING
    await kit.compute.stop(handle, grace=1)
    assert (await kit.compute.inspect(handle)).state is State.STOPPED
    await kit.compute.delete(handle)
    assert (await kit.compute.inspect(handle)).state is State.GONE


async def test_everything_may_be_done_twice(kit: Kit) -> None:
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    assert await kit.compute.create(spec, print) == handle
    await kit.compute.start(handle, spec, print)
    await kit.compute.start(handle, spec, print)
    assert await kit.compute.create(spec, print) == handle
    assert (await kit.compute.inspect(handle)).state is State.RUNNING
    for _ in range(2):
        await kit.compute.stop(handle, grace=1)
    for _ in range(2):
        await kit.compute.delete(handle)


async def test_home_outlives_a_stop(up: Up) -> None:
    kit, handle, spec = up
    assert await run(kit.compute, handle, f"echo kept > {kit.home}/file") == (0, b"")
    await kit.compute.stop(handle, grace=1)
    await kit.compute.start(handle, spec, print)
    assert await run(kit.compute, handle, f"cat {kit.home}/file") == (0, b"kept\n")


async def test_delete_leaves_nothing(kit: Kit) -> None:
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    await kit.compute.start(handle, spec, print)
    await run(kit.compute, handle, f"mkdir -p {kit.home}/a/b; echo x > {kit.home}/a/b/c; chmod 0 {kit.home}/a")
    assert kit.leftovers(spec.id)
    await kit.compute.delete(handle)
    assert not kit.leftovers(spec.id)
    assert spec.id not in [item.environment_id for item in await kit.compute.found()]


async def test_found_tells_label_and_state(up: Up) -> None:
    kit, handle, spec = up
    mine = [item for item in await kit.compute.found() if item.environment_id == spec.id]
    assert [(item.handle, item.state) for item in mine] == [(handle, State.RUNNING)]
    await kit.compute.stop(handle, grace=1)
    mine = [item for item in await kit.compute.found() if item.environment_id == spec.id]
    assert [(item.handle, item.state) for item in mine] == [(handle, State.STOPPED)]


async def test_a_new_driver_finds_what_the_old_one_made(up: Up) -> None:
    kit, handle, spec = up
    await run(kit.compute, handle, f"echo kept > {kit.home}/file")
    await kit.compute.close()
    other = kit.again()
    assert (handle, State.RUNNING) in [(item.handle, item.state) for item in await other.found()]
    assert await run(other, handle, f"cat {kit.home}/file") == (0, b"kept\n")
    assert await other.create(spec, print) == handle
    kit.compute = other


async def test_gone_behind_our_back(kit: Kit) -> None:
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    await kit.compute.start(handle, spec, print)
    await kit.remove(spec.id)
    assert (await kit.compute.inspect(handle)).state is State.GONE
    with pytest.raises(NotFound):
        await kit.compute.start(handle, spec, print)
    with pytest.raises((NotFound, Conflict)):
        await kit.compute.open_pipe(handle, ["true"], {})
    await kit.compute.stop(handle, grace=1)
    again = await kit.compute.create(spec, print)
    await kit.compute.start(again, spec, print)
    assert await run(kit.compute, again, "echo back") == (0, b"back\n")
    await kit.compute.delete(again)
    assert not kit.leftovers(spec.id)


async def test_delete_of_what_is_gone_clears_the_rest(kit: Kit) -> None:
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    await kit.compute.start(handle, spec, print)
    await kit.remove(spec.id)
    await kit.compute.delete(handle)
    assert not kit.leftovers(spec.id)


async def test_create_that_fails_leaves_nothing(kit: Kit) -> None:
    spec = kit.spec(image="missing" if kit.name == "memory" else "ashore.invalid/no-such-image:1")
    with pytest.raises((BadInput, RegistryAway)) as caught:
        await kit.compute.create(spec, print)
    assert "image" in caught.value.message
    assert not kit.leftovers(spec.id)


async def test_stop_ends_everything(up: Up) -> None:
    kit, handle, _ = up
    meek = await kit.compute.open_pipe(handle, ["sleep", "1000"], {})
    stubborn = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", "trap '' TERM HUP; sleep 1000; sleep 1000"], {})
    with meek.socket, stubborn.socket:
        await asyncio.sleep(0.3)
        await kit.compute.stop(handle, grace=1)
        async with asyncio.timeout(10):
            await asyncio.gather(meek.wait(), stubborn.wait())
    assert (await kit.compute.inspect(handle)).state is State.STOPPED
    with pytest.raises(Conflict):
        await kit.compute.open_pipe(handle, ["true"], {})


async def test_stop_lets_programs_end_by_themselves(up: Up) -> None:
    kit, handle, spec = up
    script = f"trap 'echo ended > {kit.home}/end; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    pipe = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", script], {})
    with pipe.socket:
        assert await asyncio.get_running_loop().sock_recv(pipe.socket, 100) == b"ready\n"
        await kit.compute.stop(handle, grace=5)
    await kit.compute.start(handle, spec, print)
    assert await run(kit.compute, handle, f"cat {kit.home}/end") == (0, b"ended\n")


async def test_a_name_may_hold_everything_that_names_may_hold(kit: Kit) -> None:
    spec = kit.spec(name="a" * 20 + "_b.c-" + "9" * 23, workspace="team_1.x-y")
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        assert await run(kit.compute, handle, "exit 3") == (3, b"")
    finally:
        await kit.compute.delete(handle)


# ---- inside ------------------------------------------------------------------------------------------------------
async def test_guest_files_are_there_and_private(up: Up) -> None:
    kit, handle, spec = up
    assert await run(kit.compute, handle, f"cat {kit.run}/secret") == (0, spec.guest_files["secret"])
    assert await run(kit.compute, handle, f"stat -c %a {kit.run}/secret") == (0, b"600\n")


async def test_a_start_brings_new_guest_files(up: Up) -> None:
    kit, handle, spec = up
    fresh = WorkloadSpec(**{**spec.__dict__, "guest_files": {"secret": b"another"}})
    await kit.compute.start(handle, fresh, print)
    assert await run(kit.compute, handle, f"cat {kit.run}/secret") == (0, b"another")


async def test_variables(up: Up) -> None:
    kit, handle, _ = up
    output = await run(kit.compute, handle, 'printf "%s|%s" "$COLOUR" "$MORE"', variables={"MORE": "a 'b' \"c\" $d"})
    assert output == (0, b"deep blue|a 'b' \"c\" $d")


async def test_logs_tell_that_it_started(up: Up) -> None:
    kit, handle, _ = up
    lines = b"".join([piece async for piece in kit.compute.logs(handle, tail=10)])
    assert b"is up" in lines


async def test_check_names_the_engine(kit: Kit) -> None:
    line = await kit.compute.check()
    assert line
    assert "\n" not in line


# ---- pipes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [0, 1, 7, 42, 255])
async def test_exit_status(up: Up, status: int) -> None:
    kit, handle, _ = up
    assert await run(kit.compute, handle, f"exit {status}") == (status, b"")


async def test_exit_status_of_what_cannot_run(up: Up) -> None:
    kit, handle, _ = up
    for program, status in (("/no/such/program", 127), ("/etc/passwd", 126)):
        pipe = await kit.compute.open_pipe(handle, [program], {})
        assert await exchange(pipe) == b""
        assert await pipe.wait() == status
        assert program in pipe.complaint()


async def test_arguments_arrive_untouched(up: Up) -> None:
    kit, handle, _ = up
    words = ["", "a b", "'", '"', "$HOME", "*", "é", "-n", "\\", "\t"]
    pipe = await kit.compute.open_pipe(handle, ["printf", "%s|", *words], {})
    assert await exchange(pipe) == "".join(f"{word}|" for word in words).encode()


async def test_binary_echo(up: Up) -> None:
    kit, handle, _ = up
    data = bytes(range(256)) * 4096
    assert await run(kit.compute, handle, "cat", data) == (0, data)


async def test_our_end_of_file_is_not_the_end(up: Up) -> None:
    kit, handle, _ = up
    data = b"x" * (3 * MEGABYTE)
    assert await run(kit.compute, handle, "wc -c; sleep 0.2; echo late; exit 7", data) == (7, b"3000000\nlate\n")


async def test_its_end_of_file_comes_with_its_exit(up: Up) -> None:
    kit, handle, _ = up
    pipe = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", "echo bye; exit 5"], {})
    loop = asyncio.get_running_loop()
    with pipe.socket:
        output = b""
        while piece := await loop.sock_recv(pipe.socket, 100):  # our own half stays open
            output += piece
    assert output == b"bye\n"
    assert await pipe.wait() == 5


async def test_stderr_stays_apart(up: Up) -> None:
    kit, handle, _ = up
    pipe = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", "echo out; echo oops >&2; exit 1"], {})
    assert await exchange(pipe) == b"out\n"
    assert await pipe.wait() == 1
    assert pipe.complaint() == "oops"


async def test_endless_complaints_do_not_pile_up(up: Up) -> None:
    kit, handle, _ = up
    script = "i=0; while [ $i -lt 20000 ]; do echo complaint number $i >&2; i=$((i+1)); done; echo done"
    pipe = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", script], {})
    assert await exchange(pipe) == b"done\n"
    await pipe.wait()
    assert pipe.complaint().endswith("complaint number 19999")
    assert len(pipe.complaint()) <= 8192


async def test_a_hundred_megabytes_arrive_whole(up: Up) -> None:
    kit, handle, _ = up
    size = 100 * MEGABYTE
    script = f"head -c {size} /dev/urandom | tee /tmp/big-{handle}; sha256sum < /tmp/big-{handle}; rm /tmp/big-{handle}"
    status, output = await run(kit.compute, handle, script)
    assert status == 0
    assert len(output) == size + 68
    assert hashlib.sha256(output[:size]).hexdigest().encode() == output[size:].split()[0]


async def test_a_hundred_megabytes_go_in_whole(up: Up) -> None:
    kit, handle, _ = up
    data = hashlib.sha256(b"seed").digest() * (100 * MEGABYTE // 32)
    status, output = await run(kit.compute, handle, "sha256sum", data)
    assert (status, output.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest())


async def test_a_reader_that_stands_still_loses_nothing(up: Up) -> None:
    kit, handle, _ = up
    pipe = await kit.compute.open_pipe(handle, ["head", "-c", str(20 * MEGABYTE), "/dev/zero"], {})
    await asyncio.sleep(1)
    assert len(await exchange(pipe)) == 20 * MEGABYTE
    assert await pipe.wait() == 0


async def test_fifty_pipes_at_once(up: Up) -> None:
    kit, handle, _ = up

    async def one(number: int) -> None:
        data = str(number).encode() * 10_000
        assert await run(kit.compute, handle, f"cat; exit {number}", data) == (number, data)

    await asyncio.gather(*(one(number) for number in range(50)))


@pytest.mark.parametrize("script", ["sleep 1001", "while :; do echo more; done", "cat; sleep 1001"])
async def test_nothing_stays_behind_a_closed_pipe(up: Up, script: str) -> None:
    kit, handle, _ = up
    pipe = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", f"echo started; {script}; exit 0"], {})
    assert (await asyncio.get_running_loop().sock_recv(pipe.socket, 8)).startswith(b"started")
    pipe.socket.close()
    async with asyncio.timeout(20):
        await pipe.wait()
    counting = "n=0; for p in /proc/[0-9]*; do case $(tr '\\0' ' ' < $p/cmdline 2>/dev/null) in"
    counting += " *'echo started'*) n=$((n+1));; esac; done; echo $n"
    # The counting program itself holds the words as well.
    status, output = await run(kit.compute, handle, counting)
    assert (status, output) == (0, b"1\n")


async def test_closing_after_half_closing(up: Up) -> None:
    kit, handle, _ = up
    pipe = await kit.compute.open_pipe(handle, ["sleep", "1001"], {})
    pipe.socket.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.5)
    pipe.socket.close()
    async with asyncio.timeout(20):
        await pipe.wait()


# ---- what it takes -----------------------------------------------------------------------------------------------
async def test_usage_tells_cores_memory_and_processes(up: Up) -> None:
    kit, handle, _ = up
    if not kit.isolates or not _measures(kit):
        return
    assert isinstance(kit.compute, HasUsage)
    before = await kit.compute.usage(handle)
    assert before is not None
    work = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo done"
    assert await run(kit.compute, handle, work) == (0, b"done\n")
    pipe = await kit.compute.open_pipe(handle, ["/bin/sh", "-c", f"{_FILL}; echo up; sleep 1000"], {})
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(pipe.socket, 10) == b"up\n"
    after = await kit.compute.usage(handle)
    pipe.socket.close()
    assert after is not None
    assert after.cpu > before.cpu
    assert after.processes > before.processes
    assert after.memory > before.memory + 30 * MEGABYTE


async def test_what_does_not_run_takes_nothing(up: Up) -> None:
    kit, handle, _ = up
    if not _measures(kit):
        return
    assert isinstance(kit.compute, HasUsage)
    await kit.compute.stop(handle, grace=1)
    assert await kit.compute.usage(handle) is None
    await kit.compute.delete(handle)
    assert await kit.compute.usage(handle) is None


def _measures(kit: Kit) -> bool:
    """All but existing machines tell what their workloads take."""
    assert isinstance(kit.compute, HasUsage) or kit.name == "box"
    return isinstance(kit.compute, HasUsage)


# ---- what it leaves ----------------------------------------------------------------------------------------------
async def _left(kit: Kit, handle: str) -> dict[str, tuple[Kind, bytes]]:
    """The output by the paths below it."""
    assert isinstance(kit.compute, HasOutput)
    async with aclosing(kit.compute.output(handle)) as pieces:
        stream = TarStream(pieces)
        top = await stream.next()
        assert top is not None
        assert top.kind is Kind.FOLDER
        found = {}
        while (entry := await stream.next()) is not None:
            assert entry.name.startswith(f"{top.name}/")
            content = b"".join([bytes(piece) async for piece in stream.content()])
            found[entry.name.removeprefix(f"{top.name}/")] = (entry.kind, content)
    return found


async def test_output_of_a_stopped_workload(up: Up) -> None:
    kit, handle, _ = up
    script = (
        f"mkdir -p {kit.home}/output/deep && cd {kit.home}/output && echo 1 > deep/a && ln -s /etc/passwd link && "
        "head -c 3000000 /dev/zero > zeros && ln deep/a second"
    )
    assert await run(kit.compute, handle, script) == (0, b"")
    await kit.compute.stop(handle, grace=1)
    left = await _left(kit, handle)
    names = {left["deep/a"][0], left["second"][0]}
    assert names == {Kind.FILE, Kind.HARD_LINK}
    assert left["deep"] == (Kind.FOLDER, b"")
    assert left["link"] == (Kind.LINK, b"")
    assert left["zeros"] == (Kind.FILE, bytes(3_000_000))
    assert b"1\n" in {left["deep/a"][1], left["second"][1]}
    again = await _left(kit, handle)
    assert again.keys() == left.keys()


async def test_output_that_nobody_reads_to_its_end(up: Up) -> None:
    kit, handle, _ = up
    script = f"mkdir -p {kit.home}/output && head -c 30000000 /dev/zero > {kit.home}/output/zeros"
    assert await run(kit.compute, handle, script) == (0, b"")
    await kit.compute.stop(handle, grace=1)
    assert isinstance(kit.compute, HasOutput)
    for _ in range(3):
        async with aclosing(kit.compute.output(handle)) as pieces:
            assert await anext(pieces)
    assert len((await _left(kit, handle))["zeros"][1]) == 30_000_000


async def test_output_that_is_a_link(up: Up) -> None:
    """It may lead anywhere; it is not taken for an output that is not there, whose home could go."""
    kit, handle, _ = up
    follows = kit.name == "podman"  # inside the container, so what its owner pointed to is kept
    await run(kit.compute, handle, f"rm -rf {kit.home}/output && ln -s / {kit.home}/output")
    await kit.compute.stop(handle, grace=1)
    assert isinstance(kit.compute, HasOutput)
    try:
        async with aclosing(kit.compute.output(handle)) as pieces:
            stream = TarStream(pieces)
            first = await stream.next()
            assert first is not None
            assert (first.kind is Kind.FOLDER) == follows
            assert follows or await stream.next() is None
    except Conflict:
        return


async def test_output_that_is_not_there(up: Up) -> None:
    kit, handle, _ = up
    await run(kit.compute, handle, f"rm -rf {kit.home}/output")
    await kit.compute.stop(handle, grace=1)
    with pytest.raises(NotFound):
        await _left(kit, handle)
    with pytest.raises(NotFound):
        await _left(kit, handle.replace(handle[-8:], "00000000"))
