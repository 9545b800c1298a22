"""A program for `test_local_unprivileged`: one life of a sandbox, run by an ordinary user. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from backends.compute.contract import HostMount, Pipe, WorkloadSpec
from backends.compute.local import LocalCompute
from backends.settings import BackendSettings


async def read(pipe: Pipe) -> str:
    reader, writer = await asyncio.open_unix_connection(sock=pipe.socket)
    writer.write_eof()
    content = (await reader.read()).decode()
    writer.close()
    return f"{content}{await pipe.wait()}"


async def main(directory: Path, guest: Path) -> None:
    compute = LocalCompute(directory, guest, BackendSettings())
    data = directory / "cache" / "version"
    data.mkdir(mode=0o755, parents=True)
    (data / "file").write_text("data")
    (data / "file").chmod(0o444)
    spec = WorkloadSpec(
        "0123456789abcdef", "train", "alice", "default", guest_files={"key": b"secret"},
        mounts=(HostMount(data, "/gemini/data-1"),),
    )  # fmt: skip
    facts: dict[str, object] = {"uid": os.getuid(), "check": await compute.check()}
    handle = await compute.create(spec, lambda line: None)
    await compute.start(handle, spec, lambda line: None)
    script = "id -u; cat /opt/ashore/run/key; echo; grep -E 'NoNewPrivs|CapBnd' /proc/self/status; "
    script += "script -qec tty /dev/null"
    facts["inside"] = await read(await compute.open_pipe(handle, ["/bin/sh", "-c", script], {}))
    facts["seen"] = await read(await compute.open_pipe(handle, ["/bin/ls", str(directory)], {}))
    # The files belong to the very user who runs everything inside: only the mount keeps them.
    script = "cd /gemini/data-1; cat file; chmod 666 file; echo x >> file; rm -f file; echo x > new; ls"
    facts["mounted"] = await read(await compute.open_pipe(handle, ["/bin/sh", "-c", script], {}))
    facts["kept"] = (data / "file").read_text()
    facts["running"] = (await compute.inspect(handle)).state.value
    await compute.stop(handle, grace=2)
    facts["stopped"] = (await compute.inspect(handle)).state.value
    await compute.delete(handle)
    facts["left"] = os.listdir(directory / "environments")
    await compute.close()
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
