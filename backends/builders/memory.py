"""A builder for tests: it runs nothing, and says what it is told to by the RUN lines of a recipe.

`RUN echo WORDS` writes a line, `RUN sleep SECONDS` waits, `RUN exit STATUS` fails; anything else is written down.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from backends.builders.contract import BuilderState, Order, StepFailed, Write
from storage.errors import NotFound


@dataclass
class MemoryEngine:
    """What outlives a builder: layers by their text, images, and what has been pushed, by target."""

    layers: dict[str, float] = field(default_factory=dict)
    images: dict[str, Order] = field(default_factory=dict)
    pushed: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)


class MemoryBuilder:
    """Builds in `engine`."""

    name = "memory"

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine

    async def check(self) -> BuilderState:
        return BuilderState("in memory")

    async def recover(self) -> None:
        self._engine.running.clear()

    async def build(self, order: Order, write: Write) -> str:
        self._engine.running.add(order.id)
        try:
            return await self._build(order, write)
        finally:
            self._engine.running.discard(order.id)

    async def _build(self, order: Order, write: Write) -> str:
        steps = [line for line in order.recipe.text.splitlines() if not line.startswith("#")]
        digest = hashlib.sha256()
        for number, step in enumerate(steps, 1):
            write(f"Step {number}/{len(steps)} : {step}\n".encode())
            digest.update(step.encode())
            if digest.hexdigest() in self._engine.layers:
                write(b" ---> Using cache\n")
                continue
            await _run(step, number, write)
            self._engine.layers[digest.hexdigest()] = asyncio.get_running_loop().time()
        self._engine.images[digest.hexdigest()] = order
        return digest.hexdigest()

    async def push(self, order: Order, image: str, write: Write) -> str:
        if image not in self._engine.images:
            raise NotFound("there is no such image")
        write(f"pushing {order.target}\n".encode())
        await asyncio.sleep(0)
        self._engine.pushed[order.target] = f"sha256:{image}"
        return f"sha256:{image}"

    async def prune(self, *, days: float, keep: Collection[str] = ()) -> int:
        before = asyncio.get_running_loop().time() - days * 86400
        old = [layer for layer, made in self._engine.layers.items() if made < before and f"sha256:{layer}" not in keep]
        for layer in old:
            del self._engine.layers[layer]
            self._engine.images.pop(layer, None)
        return len(old)

    async def close(self) -> None:
        return


async def _run(step: str, number: int, write: Write) -> None:
    for command in step.removeprefix("RUN ").split(" && ") if step.startswith("RUN ") else ():
        word, _, rest = command.strip().partition(" ")
        if word == "sleep":
            await asyncio.sleep(float(rest))
        elif word == "exit":
            raise StepFailed(f"exit status {rest}", number)
        elif word == "echo":
            write(f"{rest}\n".encode())
