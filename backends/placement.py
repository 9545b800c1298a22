"""Which host a new environment gets. Pure: no database and no engine here.

A host has what its machine has, and what environments reserved is taken from it; cores and memory may be promised
several times, and GPUs by `gpus`. Something new fits or it does not; among those where it fits the policy chooses. What
asks for no GPU goes to a host with cards only where there is room nowhere else: they would stand idle beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.gpus import Card, GpuNeed, impossible, lacks, pick
from storage.quota_limits import size_words
from storage.records import HostState

_EPSILON = 1e-9


@dataclass(frozen=True)
class Need:
    """What an environment takes of its host while it runs."""

    cpus: float
    memory: int
    """Bytes."""
    gpus: GpuNeed = GpuNeed()


@dataclass(frozen=True)
class Room:
    """One host, and what is taken of it."""

    host: str
    state: HostState
    reason: str = ""
    """Why it is not online."""
    is_here: bool = False
    """It is the gateway's own machine."""
    cpus: float = 0.0
    """Cores of its machine."""
    memory: int = 0
    overcommit: float = 1.0
    """How many times its cores may be promised."""
    memory_overcommit: float = 1.0
    used_cpus: float = 0.0
    used_memory: int = 0
    environments: int = 0
    """How many hold something of it."""
    cards: Sequence[Card] = ()
    shares: int = 1
    """How many may share a card."""

    @property
    def cpus_to_promise(self) -> float:
        return self.cpus * self.overcommit

    @property
    def cards_in_use(self) -> int:
        return sum(bool(card.holders) for card in self.cards)

    @property
    def memory_to_promise(self) -> int:
        return int(self.memory * self.memory_overcommit)

    @property
    def fullness(self) -> float:
        """How much of that which is scarcest is taken, 0 to 1."""
        if not self.cpus or not self.memory:
            return 1.0
        cards = self.cards_in_use / len(self.cards) if self.cards else 0.0
        return max(self.used_cpus / self.cpus_to_promise, self.used_memory / self.memory_to_promise, cards)

    def lacks(self, need: Need) -> str:
        """What of `need` it has not left, for people; empty if it fits."""
        cpus, memory = self.cpus_to_promise - self.used_cpus, self.memory_to_promise - self.used_memory
        if need.cpus > cpus + _EPSILON:
            left = max(0.0, round(cpus, 6))
            return f"CPUs: {left:g} of {self.cpus_to_promise:g} left, {need.cpus:g} needed"
        if need.memory > memory:
            room, needed = size_words(max(0, memory)), size_words(need.memory)
            return f"memory: {room} of {size_words(self.memory_to_promise)} left, {needed} needed"
        return lacks(self.cards, need.gpus, self.shares)


@dataclass(frozen=True)
class Offer:
    """A host, what the environment would take there, and why it may never have that there."""

    room: Room
    need: Need
    refusals: Sequence[str] = ()

    @property
    def cards(self) -> Sequence[Card]:
        """Those that it would get there."""
        return pick(self.room.cards, self.need.gpus, self.room.shares)

    @property
    def never(self) -> Sequence[str]:
        """Everything that it can never have there."""
        gpus = impossible(self.room.cards, self.need.gpus) if self.room.cpus else ""
        return [*self.refusals, *([gpus] if gpus else [])]


@dataclass(frozen=True)
class Choice:
    """Where it goes, or why nowhere: a few words for each host."""

    offer: Offer | None
    objections: Sequence[tuple[str, str]] = ()
    is_never: bool = False
    """No host can ever give that much."""

    @property
    def sentence(self) -> str:
        """`no available host (gpu1: offline; gpu2: CPUs: 2 of 8 left, 4 needed)`; of a single host its own words."""
        if self.is_never and len(self.objections) == 1:
            return self.objections[0][1]
        return f"no available host ({'; '.join(f'{host}: {against}' for host, against in self.objections)})"


_POLICIES: dict[str, Callable[[Room], tuple[float, float, str]]] = {
    "least-used": lambda room: (room.fullness, room.environments, room.host),
    "pack": lambda room: (-room.fullness, -room.environments, room.host),
    "spread": lambda room: (room.environments, room.fullness, room.host),
}


def choose(offers: Sequence[Offer], policy: str) -> Choice:
    """The best of `offers` by `policy` of those that have room. The same offers give the same choice."""
    against = {offer.room.host: objection(offer) for offer in offers}
    fitting = [offer for offer in offers if not against[offer.room.host]]
    if not fitting:
        return Choice(None, sorted(against.items()), is_never=bool(offers) and all(offer.never for offer in offers))
    rank = _POLICIES[policy]
    return Choice(min(fitting, key=lambda offer: (_wastes_cards(offer), rank(offer.room))))


def _wastes_cards(offer: Offer) -> bool:
    return bool(offer.room.cards) and not offer.need.gpus.count


def objection(offer: Offer) -> str:
    """Why it cannot go there, in a few words; empty if it can."""
    room = offer.room
    if room.state is HostState.MAINTENANCE:
        return f"in maintenance, {room.reason}" if room.reason else "in maintenance"
    if room.state is HostState.OFFLINE:
        return f"offline, {room.reason}" if room.reason else "offline"
    return "; ".join(offer.never) or room.lacks(offer.need)
