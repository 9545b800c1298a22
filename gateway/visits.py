"""One connection to a published port: both of its ends, and its ledger.

Anybody may connect, so nothing of it counts as a sign of life of the owner's. It counts until both ends are gone, and
one that does not go is cut off: else whoever stops reading would keep file descriptors of the gateway for good.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol

import asyncssh

from backends.published import OpenPort
from backends.services import Services
from gateway.forward import ChannelEnd, SocketEnd
from storage.errors import AshoreError

_INSIDE = "127.0.0.1"
_LINGER_SECONDS = 60.0
"""How long an end may take what is left for it after the other one is gone."""


class Listener(Protocol):
    """The published port that it came to."""

    services: Services
    port: OpenPort

    def spawn(self, work: Awaitable[None], name: str) -> None: ...

    def forget(self, visit: Visit) -> None: ...

    def refused(self, address: str, reason: str) -> None: ...

    def record(self, address: str, outcome: str, **facts: object) -> None: ...


class _VisitorEnd(SocketEnd):
    """The end of whoever connected. It reads nothing before the other end is there."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._visit = visit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.pause_reading()
        peer = transport.get_extra_info("peername")
        self._visit.begin(str(peer[0]) if peer else "")


class Visit:
    """A `gateway.forward.Ledger`. `against`: why it is turned away at once; empty: it is welcome."""

    def __init__(self, listener: Listener, against: str) -> None:
        self._listener = listener
        self._reason = against
        self._ended = ""
        self._address = ""
        self._started = self._moved = time.monotonic()
        self._is_joining = False
        self._is_over = False
        self._is_recorded = False
        self._far: ChannelEnd | SocketEnd | None = None
        self.visitor = _VisitorEnd(self)

    def begin(self, address: str) -> None:
        """The visitor is there."""
        self._address = address
        if self._reason:
            self.visitor.abort()
            return
        self._is_joining = True
        self._listener.spawn(self._join(), f"published port {self._listener.port.external_port}")

    def end(self) -> None:
        self.visitor.close()

    def end_if_idle(self, limit: float) -> None:
        """Cut it off if nothing went through for `limit` seconds, or less when it is on its way out."""
        limit = min(limit, _LINGER_SECONDS) if self._is_over else limit
        if time.monotonic() - self._moved < limit:
            return
        self._ended = self._ended or ("" if self._is_over else "idle")
        self.visitor.abort()
        if self._far is not None:
            self._far.abort()

    # ---- what the ends call ----------------------------------------------------------------------------------
    def carried(self, size: int) -> None:
        self._moved = time.monotonic()

    def over(self) -> None:
        """Once for each end that is gone, and when joining is done."""
        if not self._is_over:
            self._is_over, self._moved = True, time.monotonic()
            self.visitor.close()
            if self._far is not None:
                self._far.close()
        is_far_open = self._far is not None and self._far.is_open
        if self._is_recorded or self._is_joining or self.visitor.is_open or is_far_open:
            return
        self._is_recorded = True
        self._listener.forget(self)
        if self._reason:
            self._listener.refused(self._address, self._reason)
            return
        self._listener.record(
            self._address, "ok", **({"ended": self._ended} if self._ended else {}),
            bytes_in=self.visitor.received, bytes_out=self._far.received if self._far is not None else 0,
            seconds=round(time.monotonic() - self._started, 3),
        )  # fmt: skip

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _join(self) -> None:
        try:
            await self._dial()
        except AshoreError as error:
            self._reason = error.message
        except (OSError, asyncssh.Error):
            self._reason = f"nothing answers on port {self._listener.port.port}"
        except BaseException:
            self._reason = "it could not be joined"
            raise
        finally:
            self._is_joining = False
            if self._is_over and self._far is not None:
                self._far.close()
            if self._is_over or self._reason:
                self.over()
        self.visitor.resume_reading()

    async def _dial(self) -> None:
        services, port = self._listener.services, self._listener.port
        owner = await services.accounts.caller_for(port.environment.owner_name, connection="published")
        dialled = await services.environments.dial(owner, port.environment, _INSIDE, port.port)
        if dialled is not None:
            far = SocketEnd(self)
            self._pair(far)
            await asyncio.get_running_loop().create_connection(lambda: far, sock=dialled)
            return
        guest = await services.guests.connect(owner, port.environment)
        channel = ChannelEnd(self)
        self._pair(channel)
        await guest.create_connection(lambda: channel, _INSIDE, port.port)

    def _pair(self, far: ChannelEnd | SocketEnd) -> None:
        self._far = far
        far.other, self.visitor.other = self.visitor, far
