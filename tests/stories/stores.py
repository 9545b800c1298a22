"""A store that has bad days: SeaweedFS in a directory of its own, and before it an address at which trouble is made.

The store is no child of the gateway, so it outlives one that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.objects.embedded import EmbeddedStore
from tests.storage.store_proxy import StoreProxy

COMPLETE = re.compile(rb"POST \S+[?&]uploadId=")
"""The beginning of a CompleteMultipartUpload request."""


class BadStore:
    """The store and its proxy on a loop of their own; every method may be called from a test."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="store of the stories")
        self._store = EmbeddedStore(directory)
        self._proxy: StoreProxy | None = None
        self._directory = directory

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(60)

    async def _start(self) -> None:
        await self._store.start()
        self._proxy = StoreProxy(self._store.settings.endpoint)
        await self._proxy.start()

    def close(self) -> None:
        try:
            self.signal(signal.SIGCONT)
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(60)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _close(self) -> None:
        await self.proxy.close()
        await self._store.close()

    @property
    def proxy(self) -> StoreProxy:
        assert self._proxy is not None
        return self._proxy

    def settings(self, **more: object) -> str:
        """The `[objects]` group of a gateway that reaches the store through the proxy; parts of 5 MiB."""
        own = self._store.settings
        values = {
            "endpoint": self.proxy.address, "access_key": own.access_key,
            "secret_key": own.secret_key.get_secret_value(), "part_mib": 5, **more,
        }  # fmt: skip
        lines = [
            f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in values.items()
        ]
        return "\n".join(["[objects]", *lines]) + "\n"

    # ---- trouble ---------------------------------------------------------------------------------------------
    def busy(self) -> None:
        """Every request is answered with 503."""
        self._now(lambda: setattr(self.proxy, "is_busy", True))

    def away(self) -> None:
        """Nothing is open, and nothing can be opened."""

        def go() -> None:
            self.proxy.is_away = True
            self.proxy.cut()

        self._now(go)

    def stall(self) -> None:
        """Connections stay, and nothing passes."""
        self._now(self.proxy.stall)

    def hold_complete(self) -> None:
        """The store completes multipart uploads, and nobody hears of it."""

        def go() -> None:
            self.proxy.withheld = 0
            self.proxy.withhold = COMPLETE

        self._now(go)

    @property
    def has_completed(self) -> bool:
        return self.proxy.withheld > 0

    def recover(self) -> None:
        """A good day again."""

        def go() -> None:
            self.proxy.is_busy = self.proxy.is_away = False
            if self.proxy.withhold is not None:
                self.proxy.withhold = None
                self.proxy.cut()
            self.proxy.flow()

        self._now(go)

    def signal(self, number: int) -> None:
        """To the store's own process; one that was killed is started again by its keeper."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._directory / "pid").read_text()), number)

    def _now(self, act: Callable[[], None]) -> None:
        async def call() -> None:
            act()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)


@contextlib.contextmanager
def bad_store(directory: Path) -> Iterator[BadStore]:
    store = BadStore(directory)
    store.start()
    try:
        yield store
    finally:
        store.close()
