"""What hosts have left, read and taken in the transaction that makes or starts an environment.

The reservation is a column of the environment (`reserves`), set here and taken back by the reconciler in the
transaction that says that nothing runs any more; so nothing can leak, and two at once never get the same room. GPUs
are held with it: which ones is the column `cards`. The choice itself is `placement`, that of the cards `gpus`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select

from backends.gpus import Card, GpuHolder, GpuNeed, impossible, lacks, lost, pick
from backends.lifecycle import until_words
from backends.limits import Limits, Machine
from backends.placement import Choice, Need, Offer, Room, choose, objection
from backends.settings import BackendSettings
from storage.clock import Clock, now
from storage.database.transaction import Transaction
from storage.records import Environment, Gpu, Host, HostState

_NEW = "it has not answered yet"


@dataclass(frozen=True)
class Ask:
    """What an environment wants of a host. 0: what the settings give on that host."""

    cpus: float
    memory: int
    gpus: GpuNeed = GpuNeed()
    only_here: str = ""
    """Why it can run on the gateway's own machine only; empty: it can run elsewhere."""


class Reservations:
    """Rooms of hosts. `hold` first, where something is going to be taken."""

    def __init__(self, settings: BackendSettings, clock: Clock = now) -> None:
        self._clock = clock
        self._lifecycle = settings.lifecycle
        self._placement = settings.placement
        self._limits = settings.environments
        self._shares = settings.gpus.shares

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
        cards = await self._cards(tx, hosts)
        return [
            self._room(name, rows.get(name), used.get(name, (0.0, 0, 0)), cards.get(name, ())) for name in sorted(hosts)
        ]

    async def _cards(self, tx: Transaction, hosts: Collection[str]) -> Mapping[str, Sequence[Card]]:
        """The cards of each host, with who holds them."""
        query = select(Environment).where(Environment.reserves.is_(True), Environment.gpus > 0)
        holders: defaultdict[str, list[GpuHolder]] = defaultdict(list)
        moment = self._clock()
        for row in (await tx.scalars(query.order_by(Environment.owner_name, Environment.name))).all():
            due = until_words(row, self._lifecycle, moment)
            for uuid in row.cards:
                holders[uuid].append(GpuHolder(row.id, row.name, row.owner_name, row.workspace_id, row.gpu_mode, due))
        cards: defaultdict[str, list[Card]] = defaultdict(list)
        for gpu in (await tx.scalars(select(Gpu).where(Gpu.host.in_(hosts)).order_by(Gpu.uuid))).all():
            facts = (gpu.uuid, gpu.model, gpu.memory, gpu.parent, gpu.profile, gpu.is_present)
            cards[gpu.host].append(Card(*facts, holders[gpu.uuid]))
        return cards

    async def choose(self, tx: Transaction, compute: str, hosts: Collection[str], ask: Ask) -> Choice:
        """One of `hosts` that has room."""
        offers = [self._offer(room, ask) for room in await self.rooms(tx, compute, hosts)]
        return choose(offers, self._placement.policy, only_here=ask.only_here)

    async def again(self, tx: Transaction, compute: str, host: str, ask: Ask) -> tuple[Offer, str]:
        """The same for something that was given its CPUs and memory before; and why it cannot start, or nothing."""
        (room,) = await self.rooms(tx, compute, [host])
        offer = Offer(room, Need(ask.cpus, ask.memory, ask.gpus))
        return offer, objection(offer, only_here=ask.only_here)

    async def lost(self, tx: Transaction, environment: Environment) -> Sequence[str]:
        """UUIDs of its GPUs that its host does not show any more."""
        if not environment.cards:
            return ()
        return lost(environment.cards, await self.present(tx))

    async def present(self, tx: Transaction) -> frozenset[str]:
        """UUIDs of all GPUs that their hosts showed when they were asked last."""
        return frozenset((await tx.scalars(select(Gpu.uuid).where(Gpu.is_present.is_(True)))).all())

    async def replace_lost(self, tx: Transaction, environment: Environment) -> str:
        """Give it other GPUs for those that are lost, if any is; why that cannot be, or nothing.

        Only while nothing of it runs: what it had may be given to others at once.
        """
        if not await self.lost(tx, environment):
            return ""
        await self.hold(tx, environment.compute)
        (room,) = await self.rooms(tx, environment.compute, [environment.host])
        need = gpu_need(environment)
        if cards := pick(room.cards, need, room.shares):
            environment.cards = {card.uuid: card.words for card in cards}
            return ""
        return impossible(room.cards, need) or lacks(room.cards, need, room.shares)

    def _offer(self, room: Room, ask: Ask) -> Offer:
        if not room.cpus or not room.memory:  # it has never answered, and is offline
            return Offer(room, Need(ask.cpus, ask.memory, ask.gpus))
        limits = Limits.of(self._limits, Machine(int(room.cpus) or 1, room.memory))
        cpus, memory = limits.filled(ask.cpus, ask.memory)
        return Offer(room, Need(cpus, memory, ask.gpus), limits.refusals(cpus, memory))

    def _room(self, name: str, row: Host | None, used: tuple[float, int, int], cards: Sequence[Card]) -> Room:
        cpus, memory, count = used
        room = Room(
            name, HostState.OFFLINE, _NEW, used_cpus=round(cpus, 6), used_memory=memory, environments=count,
            cards=cards, shares=self._shares,
        )  # fmt: skip
        if row is None:
            return room
        reason = row.drain_reason if row.is_drained else row.reason
        return replace(
            room, state=row.state, reason=reason, is_here=row.is_here, cpus=row.cpus, memory=row.memory,
            overcommit=self._placement.cpu_overcommit, memory_overcommit=self._placement.memory_overcommit,
        )  # fmt: skip


def gpu_need(environment: Environment) -> GpuNeed:
    """What an environment that is there already needs."""
    return GpuNeed(
        environment.gpus, environment.gpu_mode, environment.gpu_model, environment.workspace_id, environment.id,
        frozenset(environment.cards),
    )  # fmt: skip
