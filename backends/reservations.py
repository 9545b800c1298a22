"""What hosts have left, read and taken in the transaction that makes or starts an environment.

The reservation is a column of the environment (`reserves`), set here and taken back by the reconciler in the
transaction that says that nothing runs any more; so nothing can leak, and two at once never get the same room. The
choice itself is `placement`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from backends.limits import Limits, Machine
from backends.placement import Choice, Need, Offer, Room, choose, objection
from backends.settings import BackendSettings
from storage.database.transaction import Transaction
from storage.records import Environment, Host, HostState

_NEW = "it has not answered yet"


@dataclass(frozen=True)
class Ask:
    """What an environment wants of a host. 0: what the settings give on that host."""

    cpus: float
    memory: int
    must_be_here: bool = False
    """It has data sets or models."""


class Reservations:
    """Rooms of hosts. `hold` first, where something is going to be taken."""

    def __init__(self, settings: BackendSettings) -> None:
        self._placement = settings.placement
        self._limits = settings.environments

    async def hold(self, tx: Transaction, compute: str) -> None:
        """Nobody else takes room on these hosts until `tx` ends. On SQLite there is one writer anyway."""
        await tx.execute(select(Host.name).where(Host.compute == compute).order_by(Host.name).with_for_update())

    async def rooms(self, tx: Transaction, compute: str, hosts: Collection[str]) -> Sequence[Room]:
        """Those of `hosts`, by name; one without a record has not answered yet."""
        rows = {row.name: row for row in await tx.scalars(select(Host).where(Host.compute == compute))}
        query = (
            select(Environment.host, func.sum(Environment.cpus), func.sum(Environment.memory), func.count())
            .where(Environment.compute == compute, Environment.reserves.is_(True))
            .group_by(Environment.host)
        )
        used = {host: (float(cpus), int(memory), int(count)) for host, cpus, memory, count in await tx.execute(query)}
        return [self._room(name, rows.get(name), used.get(name, (0.0, 0, 0))) for name in sorted(hosts)]

    async def choose(self, tx: Transaction, compute: str, hosts: Collection[str], ask: Ask) -> Choice:
        """One of `hosts` that has room."""
        offers = [self._offer(room, ask) for room in await self.rooms(tx, compute, hosts)]
        return choose(offers, self._placement.policy, must_be_here=ask.must_be_here)

    async def objection(self, tx: Transaction, compute: str, host: str, ask: Ask) -> str:
        """Why something that was given its CPUs and memory before cannot start there; empty if it can."""
        (room,) = await self.rooms(tx, compute, [host])
        return objection(Offer(room, Need(ask.cpus, ask.memory)), must_be_here=ask.must_be_here)

    def _offer(self, room: Room, ask: Ask) -> Offer:
        if not room.cpus or not room.memory:  # it has never answered, and is offline
            return Offer(room, Need(ask.cpus, ask.memory))
        limits = Limits.of(self._limits, Machine(int(room.cpus) or 1, room.memory))
        cpus, memory = limits.filled(ask.cpus, ask.memory)
        return Offer(room, Need(cpus, memory), limits.refusals(cpus, memory))

    def _room(self, name: str, row: Host | None, used: tuple[float, int, int]) -> Room:
        cpus, memory, count = used
        taken = {"used_cpus": round(cpus, 6), "used_memory": memory, "environments": count}
        if row is None:
            return Room(name, HostState.OFFLINE, _NEW, **taken)  # type: ignore[arg-type]
        reason = row.drain_reason if row.is_drained else row.reason
        return Room(
            name, row.state, reason, row.is_here, row.cpus, row.memory, self._placement.cpu_overcommit,
            **taken,  # type: ignore[arg-type]
        )  # fmt: skip
