"""The watch over quotas: posts to the operator's webhook when somebody's usage crosses the threshold.

Each crossing is told once, also over a restart; falling below and crossing again is told again. Only the operator
names the address, in the settings: nobody can make the gateway ask another one, and redirects are not followed. The
address may hold a token, so it never gets into a log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from sqlalchemy import delete, select

from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import AshoreError, Unavailable
from storage.names import printable
from storage.quota_limits import QuotaLine
from storage.quotas import Quotas
from storage.records import Holder, QuotaWarning
from storage.settings import QuotaSettings

log = logging.getLogger(__name__)
_TOPICS = ("environment", "quota", "upload", "build", "image")
_PAUSE = 60.0
_LEAST_PAUSE = 15.0
_WAITS = (1.0, 5.0)
"""Before the second and the third attempt, seconds. After that it is tried again with the next look."""
_LONGEST_LINE = 4096
Key = tuple[Holder, str, str]


class QuotaWatch:
    """Looks at everybody's usage every minute, and sooner when something has changed."""

    def __init__(
        self, database: Database, changes: Changes, quotas: Quotas, settings: QuotaSettings, clock: Clock = now
    ) -> None:
        self._database = database
        self._changes = changes
        self._quotas = quotas
        self._settings = settings
        self._clock = clock
        self._waits: Sequence[float] = _WAITS
        self._tls: ssl.SSLContext | None = None

    async def run(self) -> None:
        """Until cancelled; returns at once where no webhook is set."""
        if not self._settings.webhook.get_secret_value():
            return
        with self._changes.subscribe(*_TOPICS) as hints:
            while True:
                try:
                    await self.look()
                except AshoreError as error:
                    log.warning("quotas cannot be looked at: %s", error.message)
                await asyncio.sleep(_LEAST_PAUSE)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE - _LEAST_PAUSE):
                        await hints.get()
                while not hints.empty():
                    hints.get_nowait()

    async def look(self) -> int:
        """Tell what has crossed the threshold and was not told; how much that was."""
        lines = {_key(line): line for line in await self._quotas.everybody() if self.is_over(line)}
        async with self._database.reading() as tx:
            rows = (await tx.scalars(select(QuotaWarning))).all()
        told = {(row.holder, row.holder_id, row.resource) for row in rows}
        await self._forget(told - set(lines))
        count = 0
        for key in [key for key in lines if key not in told]:
            if not await self._tell(lines[key]):
                break
            async with self._database.writing() as tx:
                tx.add(QuotaWarning(holder=key[0], holder_id=key[1], resource=key[2], told=self._clock()))
            count += 1
        return count

    def is_over(self, line: QuotaLine) -> bool:
        """Whether it has crossed the threshold."""
        if line.allowed is None or line.used <= 0:
            return False
        return line.used >= line.allowed * self._settings.warn_percent / 100

    async def _forget(self, keys: set[Key]) -> None:
        for holder, holder_id, resource in keys:
            mine = (QuotaWarning.holder == holder, QuotaWarning.holder_id == holder_id)
            async with self._database.writing() as tx:
                await tx.execute(delete(QuotaWarning).where(*mine, QuotaWarning.resource == resource))

    async def _tell(self, line: QuotaLine) -> bool:
        """Whether the webhook took it; tried a few times, a failure is logged."""
        body = json.dumps(message(line)).encode()
        for wait in (*self._waits, None):
            try:
                async with asyncio.timeout(self._settings.webhook_seconds):
                    await self._post(body)
            except (OSError, ValueError, EOFError, Unavailable, TimeoutError) as error:
                why = error.message if isinstance(error, Unavailable) else type(error).__name__
            else:
                return True
            if wait is not None:
                await asyncio.sleep(wait)
        log.warning("the quota webhook did not take a message, it is sent again later: %s", why)
        return False

    async def _post(self, body: bytes) -> None:
        parts = urlsplit(self._settings.webhook.get_secret_value())
        if parts.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        tls = self._tls if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if tls else 80), ssl=tls, limit=_LONGEST_LINE
        )
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            host = parts.netloc
            writer.write(
                f"POST {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ashore\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii")
                + body
            )
            await writer.drain()
            status = (await reader.readline()).split()
        finally:
            writer.close()
        if len(status) < 2 or not status[1].isdigit() or not 200 <= int(status[1]) < 300:
            answer = status[1].decode("ascii", "replace") if len(status) > 1 else "nothing"
            raise Unavailable(f"it answered {printable(answer, limit=20)}")


def message(line: QuotaLine) -> dict[str, object]:
    """What is posted. `text` is what chat services show; memory, storage and parked are bytes."""
    assert line.allowed is not None
    words, subject = line.resource.words, line.subject
    percent = round(100 * line.used / line.allowed) if line.allowed else 100
    text = (
        f"Ashore: the {subject.holder.value} {subject.name} uses {words(line.used)} of {words(line.allowed)} "
        f"({line.resource.noun}, {percent} %)"
    )
    return {
        "event": "quota.warning", "of": subject.holder.value, "name": subject.name, "resource": line.resource.value,
        "used": line.used, "allowed": line.allowed, "percent": percent, "text": text,
    }  # fmt: skip


def _key(line: QuotaLine) -> Key:
    return line.subject.holder, line.subject.id, line.resource.value
