"""Connections that have not logged in yet: how many may wait, in all and from one network.

Where too many wait, the one that has waited longest goes, not the one that comes: a login takes a moment, so whoever
means it still gets in while somebody fills the port with idle connections. Pure, and in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address


def network_of(address: str) -> str:
    """What stands for one client: an IPv4 address, or the /64 that an IPv6 one gives itself addresses in."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


class Doorstep:
    """Who waits outside."""

    def __init__(self, *, per_network: int, total: int) -> None:
        self._per_network = per_network
        self._total = total
        self._waiting: OrderedDict[str, tuple[str, Callable[[], None]]] = OrderedDict()
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def come(self, connection: str, network: str, send_away: Callable[[], None]) -> None:
        """`connection` (an id) waits from now on; `send_away` ends it, and is called at most once."""
        self._waiting[connection] = (network, send_away)
        self._counts[network] = self._counts.get(network, 0) + 1
        if self._counts[network] > self._per_network:
            self._send_away(next(one for one, (home, _) in self._waiting.items() if home == network))
        elif len(self._waiting) > self._total:
            self._send_away(next(iter(self._waiting)))

    def leave(self, connection: str) -> None:
        """It has logged in, or is gone. No-op for one that was sent away."""
        if connection not in self._waiting:
            return
        network, _ = self._waiting.pop(connection)
        left = self._counts.pop(network, 1) - 1
        if left > 0:
            self._counts[network] = left

    def _send_away(self, connection: str) -> None:
        _, send_away = self._waiting[connection]
        self.leave(connection)
        send_away()
