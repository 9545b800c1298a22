"""Where too many wait to log in, the one that has waited longest makes room."""

from __future__ import annotations

import pytest

from gateway.doorstep import Doorstep, network_of


class Street:
    """A doorstep, and who was sent away from it."""

    def __init__(self, *, per_network: int, total: int) -> None:
        self.step = Doorstep(per_network=per_network, total=total)
        self.sent_away: list[str] = []

    def come(self, connection: str, network: str) -> None:
        self.step.come(connection, network, lambda: self.sent_away.append(connection))


def test_the_oldest_of_the_same_network_goes() -> None:
    street = Street(per_network=2, total=10)
    for connection, network in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b")):
        street.come(connection, network)
    assert street.sent_away == ["a1"]
    assert len(street.step) == 4


def test_the_oldest_of_all_goes_when_all_are_too_many() -> None:
    street = Street(per_network=10, total=3)
    for number in range(5):
        street.come(f"c{number}", f"n{number}")
    assert street.sent_away == ["c0", "c1"]


def test_who_has_logged_in_waits_no_longer() -> None:
    street = Street(per_network=1, total=10)
    street.come("a1", "a")
    street.step.leave("a1")
    street.come("a2", "a")
    assert street.sent_away == []


def test_leaving_twice_or_without_having_come_changes_nothing() -> None:
    """Each connection leaves at its login and at its end; counting both would lift the limit of its neighbours."""
    street = Street(per_network=2, total=10)
    street.come("a1", "")
    street.step.leave("a1")
    street.step.leave("a1")
    street.step.leave("never")
    for number in range(3):
        street.come(f"b{number}", "")
    assert street.sent_away == ["b0"]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("not an address", "not an address"),
    ],
)
def test_an_ipv6_network_counts_as_one(address: str, network: str) -> None:
    """Whoever has a /64 has 18 million million million addresses to fail from."""
    assert network_of(address) == network
