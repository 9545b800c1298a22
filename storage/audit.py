"""The audit trail: a chain of hashes over everything that was done, tried or refused.

`record` waits until the event is durable; events that come together share a commit. `add` puts an event into a
transaction that changes something, so that neither exists without the other. Nothing is ever updated or removed.
Never put a password, a private key or a token into an event.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update

from storage.access import Action, Caller, require
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import Unavailable
from storage.names import printable
from storage.records import AuditEvent, AuditHead

log = logging.getLogger(__name__)
_GENESIS = "0" * 64
_LINGER = 0.05
_HASHED = ("action", "outcome", "actor", "thing", "address", "connection", "detail")
Link = dict[str, Any]
"""The columns of one event, by name."""


@dataclass(frozen=True)
class Event:
    """What happened. `outcome` is ok, refused or failed; `detail` holds facts (counts, paths, reasons)."""

    action: str
    outcome: str = "ok"
    actor: str = "system"
    thing: str = ""
    address: str = ""
    connection: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def by(cls, caller: Caller, action: str, *, thing: str = "", outcome: str = "ok", **detail: object) -> Event:
        """An event of a caller."""
        return cls(action, outcome, caller.name, thing, caller.address, caller.connection, detail)


@dataclass(frozen=True)
class Verdict:
    """What a verification found: how many events hold together, and the first that does not."""

    events: int
    broken_at: int | None = None
    problem: str = ""


class AuditTrail:
    """Writes and reads the chain."""

    def __init__(self, database: Database, clock: Clock = now) -> None:
        self._database = database
        self._clock = clock
        self._waiting: list[tuple[Link, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def start(self) -> None:
        self._writer = asyncio.create_task(self._write_waiting(), name="audit writer")

    async def close(self) -> None:
        """Write what waits, then stop. What comes later is refused: nobody would ever write it."""
        while self._waiting:
            self.hurry()
            await asyncio.wait([future for _, future in self._waiting])
        self._closed = True
        if self._writer is not None:
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer

    async def record(self, event: Event, *, lazily: bool = False) -> None:
        """Return when `event` is durable; Unavailable if it cannot be written.

        `lazily`: nobody waits for it, so it may linger for a moment and be written with many others.
        """
        if self._closed:
            raise Unavailable("the audit trail is closed: the gateway is being stopped")
        if self._writer is None:
            async with self._database.writing() as tx:
                await self.add(tx, event)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._link(event), future))
        if not lazily:
            self.hurry()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER, self.hurry)
        await asyncio.shield(future)

    def hurry(self) -> None:
        """Write what lingers now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake.set()

    async def add(self, tx: Transaction, event: Event) -> None:
        """Put `event` into a writing transaction; it is durable when that commits."""
        await self._append(tx, [self._link(event)])

    async def search(
        self,
        caller: Caller,
        *,
        actor: str = "",
        action: str = "",
        since: datetime | None = None,
        limit: int = 200,
    ) -> Sequence[AuditEvent]:
        """The newest events first, for administrators."""
        require(caller, Action.AUDIT_SEARCH)
        query = select(AuditEvent).order_by(AuditEvent.seq.desc()).limit(limit)
        if actor:
            query = query.where(AuditEvent.actor == actor)
        if action:
            query = query.where(AuditEvent.action.startswith(action, autoescape=True))
        if since is not None:
            query = query.where(AuditEvent.time >= since)
        async with self._database.reading() as tx:
            return (await tx.scalars(query)).all()

    async def verify(self) -> Verdict:
        """Walk the whole chain."""
        previous, count = _GENESIS, 0
        async with self._database.reading() as tx:
            head = await tx.get(AuditHead, 1)
            async for event in await tx.stream_scalars(select(AuditEvent).order_by(AuditEvent.seq)):
                count += 1
                if event.seq != count:
                    return Verdict(count - 1, count, f"event {count} is missing")
                if event.hash != _digest(_as_link(event), previous):
                    return Verdict(count - 1, count, f"event {count} was changed")
                previous = event.hash
        if head is None or (head.seq, head.hash) != (count, previous):
            return Verdict(count, count + 1, "events were cut off at the end")
        return Verdict(count)

    def _link(self, event: Event) -> Link:
        return {
            "time": self._clock(),
            "action": str(event.action),
            "outcome": event.outcome,
            "actor": printable(event.actor, limit=64)[:64],
            "thing": printable(event.thing),
            "address": event.address,
            "connection": event.connection,
            "detail": _clean(event.detail),
        }

    async def _append(self, tx: Transaction, events: Sequence[Link]) -> None:
        # The head row is the lock that writers of all processes take turns on.
        turn = update(AuditHead).where(AuditHead.id == 1).values(seq=AuditHead.seq + len(events))
        head = (await tx.execute(turn.returning(AuditHead.seq, AuditHead.hash))).one()
        sequence, previous = head.seq - len(events), head.hash
        for event in events:
            sequence += 1
            event["seq"] = sequence
            event["hash"] = previous = _digest(event, previous)
        await tx.execute(insert(AuditEvent), list(events))
        await tx.execute(update(AuditHead).where(AuditHead.id == 1).values(hash=previous))

    async def _write_waiting(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            if not batch:  # hurried although nothing was waiting
                continue
            if not await self._write(batch) and len(batch) > 1:
                for event in batch:
                    await self._write([event])

    async def _write(self, batch: Sequence[tuple[Link, asyncio.Future[None]]]) -> bool:
        """Write a batch and tell those who wait; False if it has to be tried event by event."""
        try:
            async with self._database.writing() as tx:
                await self._append(tx, [event for event, _ in batch])
        except Unavailable as error:
            _settle(batch, error)
        except Exception:
            # A wall: an event that no database takes must not end the writer, or everybody would wait for ever.
            log.exception("the audit trail refused an event")
            if len(batch) > 1:
                return False
            _settle(batch, Unavailable("the audit trail does not take this event"))
        else:
            _settle(batch, None)
        return True


def _settle(batch: Sequence[tuple[Link, asyncio.Future[None]]], error: Exception | None) -> None:
    for _, future in batch:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _clean(detail: dict[str, Any]) -> dict[str, Any]:
    return {key: printable(value) if isinstance(value, str) else value for key, value in detail.items()}


def _digest(link: Link, previous: str) -> str:
    facts = [previous, link["seq"], link["time"].isoformat(), *(link[name] for name in _HASHED)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _as_link(event: AuditEvent) -> Link:
    return {name: getattr(event, name) for name in ("seq", "time", *_HASHED)}
