"""Asks this machine's GPU driver, which may hang for ever: by one thread at most, and nobody waits for long.

A call into a hung driver cannot be ended. So all questions of a process share one thread, the same question is asked
once for all who want to know, and whoever waits is told after a few seconds that the driver does not answer; while it
goes on hanging, at once. The thread is a daemon: it does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from storage.errors import Unavailable

_PATIENCE = 5.0
SILENT = "the GPU driver does not answer"
T = TypeVar("T")


class GpuDesk:
    """One queue of questions, and the thread that asks them while there are any."""

    def __init__(self, *, patience: float = _PATIENCE) -> None:
        """`patience`: seconds that one question may take, and that anybody waits."""
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._flights: dict[Callable[[], object], Future[Any]] = {}
        self._thread: threading.Thread | None = None
        self._since = 0.0
        """When the question that is being asked was begun, by the monotonic clock."""

    async def ask(self, question: Callable[[], T]) -> T:
        """Its answer, or what it raises. Unavailable: it takes too long, or another one before it does."""
        flight = self._flight(question)
        if flight is None:
            raise Unavailable(SILENT)
        answer = asyncio.wrap_future(flight)
        # Whoever gives up must leave the question to the others; what comes of it then, nobody hears.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait({answer}, timeout=self._patience)
        if not done:
            raise Unavailable(SILENT)
        return cast("T", answer.result())

    def _flight(self, question: Callable[[], object]) -> Future[Any] | None:
        """The question on its way; None: the driver hangs."""
        with self._lock:
            if self._thread is not None and time.monotonic() - self._since > self._patience:
                return None
            flight = self._flights.get(question)
            if flight is None:
                flight = self._flights[question] = Future()
                flight.set_running_or_notify_cancel()  # from now on nobody's giving up can cancel it for the others
                self._waiting.append(question)
            if self._thread is None:
                self._since = time.monotonic()
                self._thread = threading.Thread(target=self._work, name="GPU driver", daemon=True)
                self._thread.start()
            return flight

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                question, self._since = self._waiting.popleft(), time.monotonic()
            answer, error = None, None
            try:
                answer = question()
            except BaseException as raised:  # handed to whoever asked
                error = raised
            with self._lock:
                flight = self._flights.pop(question)
            if error is None:
                flight.set_result(answer)
            else:
                flight.set_exception(error)


HERE = GpuDesk()
"""The one of this process: there is one driver."""
