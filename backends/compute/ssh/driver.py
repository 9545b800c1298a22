"""The compute of one existing machine: environments as folders of an account that is reached over SSH.

Nothing is installed there. The guest is the machine's own OpenSSH server, run by the account as `sshd -i` at the end of
an exec channel, with keys and a configuration of Ashore's: so terminals, signals, half-close, SFTP and forwards are the
same as everywhere, whatever the machine's own sshd allows, and its limit of 10 sessions for each connection does not
matter, as one such pipe carries all channels of a user and an environment. (Talking to the machine's sshd directly
would have saved the second encryption, and brought back all of these.)

What follows from the account: all environments of a machine share it, so they are kept apart by their folders and not
by rights, and the settings say who may come. A program that gives up its environment (`env -i`, ssh-agent) is not found
by `stop`. There are no limits of cores and memory, no image, and no mounts. See `scripts` for what stands on the
machine, `links` for the connections, `pipe` for the bytes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace

from backends.compute.contract import Found, Pipe, Progress, State, Status, WorkloadSpec
from backends.compute.ssh import scripts
from backends.compute.ssh.links import Answer, Links
from backends.compute.ssh.pipe import ProgramStream
from backends.settings import MachineSettings
from storage.errors import AshoreError, BadInput, Conflict, NotFound, Unavailable
from storage.names import printable

log = logging.getLogger(__name__)

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")
_ASK_SECONDS = 20.0
_REMOVE_SECONDS = 600.0
_PIECE = 256 * 1024
_SETTLE_SECONDS = 2.0
"""How long a program may go on after its output has ended before it is killed."""
_GONE = "its folder on the machine was removed"
_REBOOTED = "the machine was started anew"
_STATES = {"running": State.RUNNING, "stopped": State.STOPPED, "rebooted": State.STOPPED, "gone": State.GONE}


class MachineCompute:
    """One machine. Make it inside a running event loop; `close` it at the end."""

    def __init__(self, name: str, settings: MachineSettings) -> None:
        self.name = name
        self._settings = settings
        self._base = settings.folder
        self._links = Links(name, settings)
        self._streams: dict[asyncio.Task[int | None], tuple[str, ProgramStream]] = {}

    @property
    def account(self) -> str:
        """See `contract.OnAccount`."""
        return self._settings.user

    # ---- life ------------------------------------------------------------------------------------------------
    async def create(self, spec: WorkloadSpec, progress: Progress) -> str:
        if spec.image:
            raise BadInput(f"'{self.name}' takes no image: it is a machine as it is")
        if spec.mounts:
            raise BadInput(f"'{self.name}' takes no data sets and models yet: nothing is copied to other machines")
        if not _ID.fullmatch(spec.id):
            raise BadInput("the environment's id cannot name a folder")
        progress("making its home")
        answer = await self._do(scripts.create(self._base, spec), _ASK_SECONDS)
        if answer.status == scripts.IN_THE_WAY:
            raise Conflict("something on the machine that is not Ashore's has its folder's name")
        self._expect(answer, "its home cannot be made")
        return spec.id

    async def start(self, handle: str, spec: WorkloadSpec, progress: Progress) -> None:
        progress("starting")
        answer = await self._do(scripts.start(self._base, spec), _ASK_SECONDS)
        if answer.status == scripts.GONE:
            raise NotFound(_GONE)
        self._expect(answer, "it cannot be started")

    async def stop(self, handle: str, *, grace: float) -> None:
        seconds = math.ceil(grace)
        answer = await self._do(scripts.stop(self._base, _checked(handle), grace=seconds), seconds + _ASK_SECONDS)
        if answer.status == scripts.ALIVE:
            raise Unavailable("some of its programs cannot be ended")
        self._expect(answer, "it cannot be stopped")
        # The guest's own server does not show whose it is; it ends with its pipe.
        mine = [(watch, stream) for watch, (owner, stream) in self._streams.items() if owner == handle]
        for _, stream in mine:
            stream.finished.cancel()
        if mine:
            await asyncio.wait([watch for watch, _ in mine], timeout=_ASK_SECONDS)

    async def delete(self, handle: str) -> None:
        await self.stop(handle, grace=0)
        answer = await self._do(scripts.delete(self._base, handle), _REMOVE_SECONDS)
        self._expect(answer, "its files cannot be removed")

    # ---- questions -------------------------------------------------------------------------------------------
    async def inspect(self, handle: str) -> Status:
        try:
            answer = await self._do(scripts.inspect(self._base, _checked(handle)), _ASK_SECONDS)
            self._expect(answer, "it cannot be looked at")
        except AshoreError as error:
            return Status(State.UNKNOWN, error.message)
        word = next((words[1] for words in _said(answer, "state")), "")
        if word not in _STATES:
            return Status(State.UNKNOWN, "the machine gave no answer that could be understood")
        return Status(_STATES[word], {"rebooted": _REBOOTED, "gone": _GONE}.get(word, ""))

    async def found(self) -> Sequence[Found]:
        answer = await self._do(scripts.found(self._base), _ASK_SECONDS)
        self._expect(answer, "its environments cannot be listed")
        return [
            Found(words[1], words[1], _STATES.get(words[2], State.UNKNOWN))
            for words in _said(answer, "found")
            if len(words) == 3 and _ID.fullmatch(words[1])
        ]

    async def logs(self, handle: str, *, tail: int) -> AsyncIterator[bytes]:
        answer = await self._do(scripts.logs(self._base, _checked(handle), lines=tail), _ASK_SECONDS)
        if answer.status == scripts.GONE:
            raise NotFound(_GONE)
        self._expect(answer, "its log cannot be read")
        for line in answer.output.splitlines():
            yield line.encode() + b"\n"

    async def output(self, handle: str) -> AsyncGenerator[bytes]:
        stream = ProgramStream(await self._links.start(scripts.output(self._base, _checked(handle))), handle)
        try:
            words = await self._marked(stream)
            if words == ["away"]:  # a disk that is not mounted after a reboot, for example
                raise Unavailable(f"the folder of environments is not there on the machine '{self.name}'")
            if words == ["link"]:
                raise Conflict("its output is a link, and links are not followed")
            if words == ["missing"]:
                raise Conflict(f"the machine '{self.name}' has no tar, so its output cannot be read")
            while piece := await asyncio.get_running_loop().sock_recv(stream.inner, _PIECE):
                yield piece
            if not await stream.ended(_ASK_SECONDS) or stream.status is None:
                raise Unavailable("its output cannot be read: the connection was lost")
            if stream.status != 0:
                raise Conflict(f"its output cannot be read: {printable(stream.complaint, limit=200)}")
        finally:
            await stream.close()
            stream.inner.close()

    async def check(self) -> str:
        answer = await self._do(scripts.probe(self._base), _ASK_SECONDS)
        self._expect(answer, f"the machine '{self.name}' has no place for environments")
        facts = {words[0]: " ".join(words[1:]) for words in _said(answer, "uid", "sshd", "system")}
        if facts.get("uid") == "0":
            raise Unavailable(f"'{self.account}' is root on the machine '{self.name}': give Ashore an ordinary account")
        if "sshd" not in facts:
            raise Unavailable(f"the machine '{self.name}' has no sshd that '{self.account}' may run")
        return f"{facts['sshd'] or 'OpenSSH'}, {printable(facts.get('system', ''), limit=80)}, as {self.account}"

    # ---- pipes -----------------------------------------------------------------------------------------------
    async def open_pipe(self, handle: str, argv: Sequence[str], variables: Mapping[str, str]) -> Pipe:
        """As the account; what `variables` say can be read on the machine by everybody, as `argv` can."""
        line = scripts.pipe(self._base, _checked(handle), argv, variables)
        stream = ProgramStream(await self._links.start(line), handle)
        try:
            words = await self._marked(stream)
        except BaseException:
            await stream.close()
            stream.inner.close()
            raise
        watch = asyncio.create_task(self._watch(stream, words), name=f"program watch {handle}")
        self._streams[watch] = (handle, stream)
        watch.add_done_callback(self._forget)

        async def wait() -> int | None:
            await asyncio.wait([watch])
            return None if watch.cancelled() else watch.result()

        return Pipe(stream.inner, wait, lambda: stream.complaint)

    async def close(self) -> None:
        watches = list(self._streams)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self._links.close()

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _marked(self, stream: ProgramStream) -> Sequence[str]:
        """Process id and begin of a program that was started. NotFound, Conflict: it was not."""
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                words = await stream.mark()
        except TimeoutError as error:
            raise Unavailable(f"the machine '{self.name}' does not answer") from error
        if words == ["gone"]:
            raise NotFound(_GONE)
        if words == ["stopped"]:
            raise Conflict("it does not run")
        return words

    async def _watch(self, stream: ProgramStream, words: Sequence[str]) -> int | None:
        """The exit status once the stream has ended; kills the program if it does not end by itself."""
        try:
            await asyncio.wait([stream.finished])
            if stream.is_abandoned:
                stream.hang_up()
            if await stream.ended(_SETTLE_SECONDS):
                return stream.status
            await self._reap(words)
            await stream.ended(_SETTLE_SECONDS)
            return stream.status
        finally:
            await stream.close()

    async def _reap(self, words: Sequence[str]) -> None:
        if len(words) != 2 or not all(word.isdigit() for word in words):
            return
        try:
            await self._do(scripts.reap(int(words[0]), int(words[1])), _ASK_SECONDS)
        except AshoreError as error:
            log.info("a program on '%s' could not be ended: %s", self.name, error.message)

    async def _do(self, script: bytes, seconds: float) -> Answer:
        answer = await self._links.run(script, seconds=seconds)
        return replace(answer, output=answer.output.partition(scripts.ANSWER)[2].lstrip("\n"))

    def _expect(self, answer: Answer, otherwise: str) -> None:
        if answer.status != 0:
            last = answer.complaint.splitlines()[-1:]
            said = printable(last[0], limit=200) if last else f"status {answer.status}"
            raise Unavailable(f"{otherwise}: {said}")

    def _forget(self, watch: asyncio.Task[int | None]) -> None:
        del self._streams[watch]
        if not watch.cancelled() and (error := watch.exception()) is not None:
            log.error("watching a program failed", exc_info=error)


def _checked(handle: str) -> str:
    if not _ID.fullmatch(handle):
        raise NotFound(_GONE)
    return handle


def _said(answer: Answer, *keys: str) -> Sequence[Sequence[str]]:
    """The words of the lines that begin with one of these."""
    lines = (line.split() for line in answer.output.splitlines())
    return [words for words in lines if words and words[0] in keys]
