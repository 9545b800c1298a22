"""Which hosts an import may reach: public addresses, and what the operator names. Keeps imports out of the network.

The gateway stands inside: whoever could make it ask `http://10.0.0.7/` or a cloud's metadata service would read what
is not theirs. So a name is resolved once, every address is looked at, and the connection goes to that address and no
other; a redirect goes through all of it again. No I/O but the resolver.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from backends.settings import ImportSettings
from backends.sources.contract import SourceAway
from storage.errors import BadInput, NotAllowed
from storage.names import printable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_NOT_PUBLIC = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
"""What looks public and is not: protocol assignments (Oracle's metadata among them), 6to4 relays, Azure's service."""
_UNICAST = ipaddress.IPv6Network("2000::/3")
_LONGEST_URL = 4000


@dataclass(frozen=True)
class Host:
    """A host that may be asked, and where it is."""

    name: str
    port: int
    secure: bool
    addresses: tuple[str, ...]


class Guard:
    """The rules of one house. `trusted`: URLs of the operator's own settings, whose hosts are allowed."""

    def __init__(self, settings: ImportSettings, *trusted: str) -> None:
        self._settings = settings
        self._allowed = {entry.strip().lower() for entry in settings.allow_hosts}
        for url in trusted:
            address = urlsplit(url)
            self._allowed.add(f"{address.hostname}:{address.port or _DEFAULT_PORTS.get(address.scheme, 443)}".lower())

    def check(self, url: str) -> SplitResult:
        """The parts of a URL that may be asked as far as its text tells. BadInput or NotAllowed otherwise."""
        address = parse(url)
        name, port = _place(address)
        if self._is_allowed(name, port):
            return address
        if address.scheme != "https" and not self._settings.plain_http:
            raise NotAllowed("imports go over https: plain http is not allowed here")
        if port not in self._settings.ports:
            raise NotAllowed(f"imports from port {port} are not allowed here")
        return address

    def resolve(self, url: str) -> Host:
        """Where to connect for `url`; blocks while the name is looked up. NotAllowed if any address is not public."""
        address = self.check(url)
        name, port = _place(address)
        found = addresses_of(name, port)
        if not self._is_allowed(name, port):
            for one in found:
                if not is_public(one):
                    raise NotAllowed(f"'{printable(name, limit=100)}' has a private address: imports come from outside")
        return Host(name, port, address.scheme == "https", tuple(map(str, found)))

    def _is_allowed(self, name: str, port: int) -> bool:
        written = f"[{name}]" if ":" in name else name
        return bool(self._allowed & {name, written, f"{name}:{port}", f"{written}:{port}"})


def parse(url: str) -> SplitResult:
    """The parts of an http or https URL; BadInput for anything else. The message never shows the URL's query."""
    if len(url) > _LONGEST_URL or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise BadInput("this address is too long or has blanks in it: write blanks as %20")
    try:
        address = urlsplit(url)
        address.port  # noqa: B018 - raises for what is no port
    except ValueError as error:
        raise BadInput("this is no address that can be imported from") from error
    if address.scheme not in _DEFAULT_PORTS or not address.hostname:
        raise BadInput("an address to import from begins with https://, s3:// or hf://")
    if address.username is not None or address.password is not None:
        raise BadInput("no names or passwords in addresses: they would be seen by others")
    return address


def addresses_of(name: str, port: int) -> Sequence[Address]:
    """Every address of a host; SourceAway if it has none now."""
    try:
        found = socket.getaddrinfo(name.encode("idna").decode(), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceAway(f"the host '{printable(name, limit=100)}' cannot be found") from error
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def is_public(address: Address) -> bool:
    """Whether packets to this address leave for the Internet, whatever is packed inside it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return False
        inner = _packed(address)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    elif any(address in network for network in _NOT_PUBLIC):
        return False
    refused = (
        address.is_multicast, address.is_private, address.is_loopback, address.is_link_local, address.is_reserved,
        address.is_unspecified,
    )  # fmt: skip
    return address.is_global and not any(refused)


def _packed(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a translator or tunnel on the way would make of it."""
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _place(address: SplitResult) -> tuple[str, int]:
    return (address.hostname or "").lower().rstrip("."), address.port or _DEFAULT_PORTS[address.scheme]
