"""From SSH authentication messages to a Caller.

A key that is merely *offered* proves nothing: `validate_public_key` runs for probes and for signatures alike, so it
only keeps the key as a candidate. The Caller is made once, after asyncssh has verified a signature, and everything
that the user name decided is forgotten when a client changes the name between attempts.
"""

from __future__ import annotations

import logging

import asyncssh

from gateway.target import Target, parse
from storage.access import Caller
from storage.accounts import Accounts, PublicKey
from storage.errors import BadInput, NotAllowed

log = logging.getLogger(__name__)


class Login:
    """The authentication of one connection."""

    def __init__(self, accounts: Accounts, *, address: str, connection: str) -> None:
        self._accounts = accounts
        self._address = address
        self._connection = connection
        self._keys: dict[str, str] = {}
        self._candidate: asyncssh.SSHKey | None = None
        self.name = ""
        """What the client calls itself; nothing is proven by it."""
        self.target: Target | None = None

    async def begin(self, name: str) -> None:
        """A client names itself, for the first time or anew: look up what could prove it."""
        self.name, self.target, self._candidate, self._keys = name, None, None, {}
        try:
            target = parse(name)
        except BadInput:
            return  # a stranger like any other: the same messages, and no key will do
        keys: dict[str, str] = {}
        if not target.is_invite:
            keys = await self._accounts.keys_of(target.user)
        elif await self._accounts.invited_name(target.user) is not None:
            keys = {"*": ""}
        if self.name == name:  # asyncssh takes one request at a time; if it ever did not, these would be another's keys
            self.target, self._keys = target, keys

    def accepts(self, key: asyncssh.SSHKey) -> bool:
        """Whether a signature with `key` would be a login. Called for probes too, so it changes no identity."""
        fingerprint = key.get_fingerprint()
        line = self._keys.get(fingerprint)
        known = "*" in self._keys or (line is not None and line == _line(key))
        self._candidate = key if known else None
        return known

    @property
    def fingerprint(self) -> str:
        """Of the key that was checked last; after `complete`, of the one that is the identity."""
        return "" if self._candidate is None else self._candidate.get_fingerprint()

    async def complete(self) -> Caller:
        """The caller, after the candidate's signature was verified. NotAllowed if it was taken away meanwhile."""
        if self.target is None or self._candidate is None:
            raise NotAllowed("no key was proven")
        fingerprint = self._candidate.get_fingerprint()
        if not self.target.is_invite:
            return await self._accounts.sign_in(
                self.target.user, fingerprint, address=self._address, connection=self._connection
            )
        key = PublicKey(_line(self._candidate), fingerprint, "from an invitation")
        caller = await self._accounts.redeem(self.target.user, key, address=self._address, connection=self._connection)
        self.target = Target(caller.name, is_invite=True)
        return caller


def _line(key: asyncssh.SSHKey) -> str:
    words = key.export_public_key("openssh").decode().split()
    return " ".join(words[:2])
