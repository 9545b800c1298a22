"""What a builder can do: make an image of a recipe, push it, and leave nothing behind.

A builder knows no people, no images of the catalogue and no queue: `reconcilers.builds` calls it with an order, and
ends a build by cancelling the call. Foreign errors become `storage.errors`, chained; no password gets into one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from backends.dockerfiles.recipes import Recipe
from storage.errors import AshoreError
from storage.names import printable

LABEL = "ashore.built"
"""Every layer that was made here has it; by it old ones are found and removed."""
Write = Callable[[bytes], None]
"""Takes output as it comes, in pieces of any size; never waits."""
_BUSY_SECONDS = 0.01
_STEP = re.compile(r"step (\d{1,4})/(\d{1,4}) ?: ", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """One build. `target` is `HOST/repository:tag`; `id` is our own and unlike any other."""

    id: str
    recipe: Recipe
    target: str


class StepFailed(AshoreError):
    """What a step of the recipe said was wrong. `step` counts from 1, FROM being the first; 0: before any step."""

    code = "step-failed"

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def refuse_triggers(on_build: Sequence[str] | None) -> None:
    """StepFailed if a base says ONBUILD: that would run in this build, and no rule for Dockerfiles has seen it."""
    if on_build:
        raise StepFailed("this base has ONBUILD instructions, and such a base cannot be used here", 1)


def no_base(base: str) -> StepFailed:
    """For a base that was not given. What the engine said goes into the log, for those who know registries."""
    host = printable(base.partition("/")[0], limit=100)
    return StepFailed(
        f"the base '{printable(base, limit=200)}' cannot be fetched: see 'image list' and how it is spelt, or ask an "
        f"administrator whether this gateway reaches {host}", 1,
    )  # fmt: skip


@dataclass(frozen=True)
class BuilderState:
    """What a builder is: `advice` is empty if nothing is to be made better."""

    detail: str
    advice: str = ""


class Builder(Protocol):
    """One program that builds. Make it inside a running event loop; `close` it at the end."""

    name: str

    async def check(self) -> BuilderState:
        """Whether it could build now; Unavailable with what is missing. Builds may run meanwhile."""
        ...

    async def recover(self) -> None:
        """End and remove what builds of a process before this one have left. Once, before the first `build`: nothing of
        ours may run then. Finished layers stay, for they are the cache."""
        ...

    async def build(self, order: Order, write: Write) -> str:
        """Make the image and return its local id. StepFailed: the recipe did not work out; Unavailable: the builder
        does not.

        The base is fetched and looked at first, and what was seen is what is built on: none with ONBUILD. The login of
        our registry goes with it only if it is kept there as an image of ours.

        Cancelling the call ends the build: when it returns, nothing of it runs, and no container of it is there. After
        a crash of our process nothing runs on for long either, and calling it again with the same order is right: what
        was finished comes from the cache.
        """
        ...

    async def push(self, order: Order, image: str, write: Write) -> str:
        """Bring an image that `build` returned to the order's target, and return the digest of its manifest,
        `sha256:…`. Cancelling and calling it again is right at any time. Unavailable: the registry does not take it.

        The login goes to our registry only: a target of before may be at an address that is somebody else's by now."""
        ...

    async def prune(self, *, days: float, keep: Collection[str] = ()) -> int:
        """Remove images and layers made here more than `days` ago that nothing uses; how many. No build may run.
        Cancelling the call ends what it runs.

        `keep`: digests of manifests that environments may be made from. Where those run on the builder's own engine,
        an image with one of them stays: it was brought there beforehand, and its label is that of another builder.
        """
        ...

    async def close(self) -> None: ...


class Fair:
    """Writes, and leaves two thirds of the time to everybody else in the process, however much a build prints."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._busy = 0.0

    async def write(self, data: bytes) -> None:
        began = time.monotonic()
        self._write(data)
        self._busy += time.monotonic() - began
        if self._busy > _BUSY_SECONDS:
            busy, self._busy = self._busy, 0.0
            await asyncio.sleep(2 * busy)


class Steps:
    """Finds in the output of a builder at which step it is."""

    def __init__(self) -> None:
        self.step = self.steps = 0
        self._rest = b""

    def see(self, data: bytes) -> None:
        """A piece of output, as it came; only the beginnings of lines count."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:4096]
        for line in lines:
            match = _STEP.match(line[:64].decode("ascii", "replace"))
            if match is not None:
                self.step, self.steps = int(match[1]), int(match[2])
