"""A program for `test_rootless_buildah`: builds by an ordinary account. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from pydantic import SecretStr

from backends.builders.buildah import BuildahBuilder
from backends.builders.contract import LABEL, Order, StepFailed
from backends.dockerfiles.reading import parse
from backends.dockerfiles.recipes import recipe
from backends.settings import BuildSettings, RegistrySettings
from storage.errors import AshoreError


async def main(folder: Path, url: str, user: str, password: str) -> None:
    settings = RegistrySettings(url=url, user=user, password=SecretStr(password))
    builder = BuildahBuilder(folder, settings, BuildSettings())
    facts: dict[str, object] = {"uid": os.getuid()}
    try:
        facts["check"] = (await builder.check()).detail
        await builder.recover()
        log = bytearray()
        # Another owner than root: that is what an account with one id only could not make.
        order = make(settings, "RUN : > /file && chown 33:33 /file && echo of 33\n")
        image = await builder.build(order, log.extend)
        facts["digest"] = await builder.push(order, image, log.extend)
        facts["log"] = log.decode()
        try:
            await builder.build(make(settings, "RUN exit 3\n"), lambda data: None)
        except StepFailed as error:
            facts["failed"] = error.step
        await cancelled(builder, make(settings, "RUN echo begun; while :; do :; done\n"))
        again = bytearray()
        await builder.build(order, again.extend)
        facts["cached"] = again.count(b"Using cache")
        await asyncio.sleep(1.1)
        facts["pruned"] = await builder.prune(days=0) > 0
    except AshoreError as error:
        facts["error"] = error.message
    sys.stdout.write(json.dumps(facts))


def make(settings: RegistrySettings, text: str) -> Order:
    base = f"{settings.prefix}base/tiny-rootless:v1"
    return Order(os.urandom(8).hex(), recipe(parse(text), base, {LABEL: "1"}), f"{settings.prefix}tests/rootless:v1")


async def cancelled(builder: BuildahBuilder, order: Order) -> None:
    """Return when nothing of it runs any more."""
    log, begun = bytearray(), asyncio.Event()

    def write(data: bytes) -> None:
        log.extend(data)
        if b"\nbegun" in log:
            begun.set()

    task = asyncio.create_task(builder.build(order, write))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    assert begun.is_set(), log.decode()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
