"""Which GPUs an environment gets, and what is said when there are none left. Pure: no database, no engine, no driver.

Every card is given out by its UUID. `exclusive` takes whole cards, `shared` a card together with a few others, `mig` a
device of a card in MIG mode. Whoever holds a card holds its MIG devices, and the other way round: a card whose mode was
changed while somebody held it is not given out twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from storage.names import printable
from storage.records import GpuMode

_MOST = 64
_MOST_MODEL = 64
_MOST_NAMES = 3
SOMEBODY = "somebody of another workspace"


@dataclass(frozen=True)
class GpuHolder:
    """An environment that has a card."""

    id: str
    name: str
    owner: str
    workspace_id: str
    mode: GpuMode
    due: str = ""
    """Until when, as things stand, such as `20:00 UTC (its schedule)`; empty: nobody knows."""


@dataclass(frozen=True)
class Card:
    """One card, or one MIG device, and who has it."""

    uuid: str
    model: str
    memory: int
    """Bytes."""
    parent: str = ""
    profile: str = ""
    is_present: bool = True
    holders: Sequence[GpuHolder] = ()

    @property
    def is_mig(self) -> bool:
        return bool(self.parent)

    @property
    def words(self) -> str:
        """Its model, with the size of a MIG device."""
        return f"{self.model} {self.profile}".strip()


@dataclass(frozen=True)
class GpuNeed:
    """What an environment wants. `count` 0 goes with the mode `none`."""

    count: int = 0
    mode: GpuMode = GpuMode.NONE
    model: str = ""
    workspace_id: str = ""
    """Whose people may be told who holds a card."""
    environment_id: str = ""
    """Itself, when it is there already: what it holds is not in its own way."""
    before: Collection[str] = ()
    """UUIDs that it had last; it gets them again if they are free."""


def asked(count: int, model: str, mode: str) -> tuple[GpuNeed, Sequence[str]]:
    """What somebody typed as a need, and what is wrong with it. A model or a mode alone means one GPU."""
    shown = printable(mode, limit=20)
    if mode and mode not in set(GpuMode):
        return GpuNeed(), [f"there is no GPU mode '{shown}': use exclusive, shared, mig or none"]
    if not 0 <= count <= _MOST:
        return GpuNeed(), [f"the number of GPUs must be between 0 and {_MOST}"]
    if len(model) > _MOST_MODEL or not model.isprintable():
        return GpuNeed(), [f"a GPU model is up to {_MOST_MODEL} letters of its name"]
    if mode == GpuMode.NONE:
        wrong = ["the GPU mode 'none' goes with no GPUs and no model"] if count or model else []
        return GpuNeed(), wrong
    if not count and not model and not mode:
        return GpuNeed(), ()
    return GpuNeed(count or 1, GpuMode(mode or GpuMode.EXCLUSIVE), model), ()


def pick(cards: Sequence[Card], need: GpuNeed, shares: int) -> Sequence[Card]:
    """As many of `cards` as it needs, or none if there are not enough. The same cards give the same choice.

    Those that it had before come first, then those of one model, the smallest that fit; of shared ones the fullest, so
    that others stay whole.
    """
    free = _free(cards, need, shares)
    if not need.count or len(free) < need.count:
        return ()
    in_use = {card.uuid: len(_others(card, need)) for card in free}
    of_model = Counter(card.words for card in free)

    def rank(card: Card) -> tuple[bool, bool, int, str, int, str]:
        is_alone = of_model[card.words] < need.count
        return card.uuid not in need.before, is_alone, card.memory, card.words, -in_use[card.uuid], card.uuid

    return sorted(free, key=rank)[: need.count]


def impossible(cards: Sequence[Card], need: GpuNeed) -> str:
    """Why these cards can never do, whoever has them; empty if they can."""
    if not need.count:
        return ""
    there = _fitting(cards, need)
    if len(there) >= need.count:
        return ""
    if there:
        return f"it has {len(there)} {_noun(need, 's' if len(there) > 1 else '')}, {need.count} needed"
    return f"it has no {_noun(need)}"


def lacks(cards: Sequence[Card], need: GpuNeed, shares: int) -> str:
    """What of `need` is not left, and who has it, for people; empty if it fits."""
    if not need.count or pick(cards, need, shares):
        return ""
    there, free = _fitting(cards, need), _free(cards, need, shares)
    present = [card for card in there if card.is_present]
    said = f"{_noun(need, 's')}: {len(free)} of {len(there)} left, {need.count} needed"
    by_id = {one.id: one for card in present for one in _in_the_way(card, cards, need)}
    names = list(dict.fromkeys(_name(one, need.workspace_id) for one in by_id.values()))
    if not names:
        return f"{said}, GPU lost" if len(present) < len(there) else said
    shown = " and ".join(names[:_MOST_NAMES])
    shown = f"{shown} and others" if len(names) > _MOST_NAMES else shown
    if len(by_id) > 1:
        return f"{said}, held by {shown} until one of them stops"
    (holder,) = by_id.values()
    return f"{said}, held by {shown} until {holder.due or 'that stops'}"


def lost(cards: Mapping[str, object], present: Collection[str]) -> Sequence[str]:
    """UUIDs of an environment's cards that its host does not show any more."""
    return [uuid for uuid in cards if uuid not in present]


def lost_words(uuids: Sequence[str]) -> str:
    """`GPU lost: GPU-…`; empty if none is."""
    return f"GPU lost: {', '.join(uuids)}" if uuids else ""


def _fitting(cards: Sequence[Card], need: GpuNeed) -> list[Card]:
    """Those that are of the right kind, whether free or not."""
    wanted, is_mig = need.model.casefold().split(), need.mode is GpuMode.MIG
    return [card for card in cards if card.is_mig is is_mig and all(word in card.words.casefold() for word in wanted)]


def _free(cards: Sequence[Card], need: GpuNeed, shares: int) -> list[Card]:
    return [card for card in _fitting(cards, need) if card.is_present and _has_room(card, cards, need, shares)]


def _has_room(card: Card, cards: Sequence[Card], need: GpuNeed, shares: int) -> bool:
    holders = _in_the_way(card, cards, need)
    if need.mode is not GpuMode.SHARED:
        return not holders
    return len(holders) < shares and all(one.mode is GpuMode.SHARED for one in holders)


def _in_the_way(card: Card, cards: Sequence[Card], need: GpuNeed) -> list[GpuHolder]:
    """Others who hold it, the card that it is a part of, or a part of it."""
    relatives = [other for other in cards if other.uuid == card.parent or other.parent == card.uuid]
    return [holder for one in (card, *relatives) for holder in _others(one, need)]


def _others(card: Card, need: GpuNeed) -> list[GpuHolder]:
    return [holder for holder in card.holders if holder.id != need.environment_id]


def _noun(need: GpuNeed, ending: str = "") -> str:
    kind = ("MIG device" if need.mode is GpuMode.MIG else "GPU") + ending
    return f"{kind} '{printable(need.model, limit=_MOST_MODEL)}'" if need.model else kind


def _name(holder: GpuHolder, workspace_id: str) -> str:
    return f"{holder.owner}'s '{holder.name}'" if holder.workspace_id == workspace_id else SOMEBODY
