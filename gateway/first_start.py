"""The first start: who becomes the administrator of a house that nobody has entered yet.

Whoever starts Ashore and has SSH keys of their own is that person; otherwise the first key that comes with a one-time
login name is. Nothing happens as soon as there is any user.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from storage.accounts import Accounts, PublicKey
from storage.errors import AlreadyExists, BadInput
from storage.keys import parse_public_key
from storage.names import check_user

log = logging.getLogger(__name__)
_LONGEST_FILE = 64 * 1024


async def first_start(
    accounts: Accounts, *, home: Path, user: str, host: str = "localhost", port: int = 2022
) -> list[str]:
    """Make the first administrator, and return the lines that tell the operator; none if there are users already.

    `home` and `user` are the operator's; `host` and `port` only appear in the lines. The lines may carry an invitation:
    show them, do not log them.
    """
    if not await accounts.is_empty():
        return []
    name = _user_name(user)
    keys = await asyncio.to_thread(own_keys, home)
    if keys:
        try:
            await accounts.add_user(name, keys, is_admin=True, actor="operator")
        except AlreadyExists:
            return []  # another process that started with this one was faster
        found = "the key" if len(keys) == 1 else f"the {len(keys)} keys"
        return [
            f"{name} is the administrator, with {found} in {home / '.ssh'}.",
            f"Log in with: ssh -p {port} {name}@{host}",
        ]
    login = await accounts.invite(name, is_admin=True, actor="operator")
    return [
        "There is no administrator yet. Whoever first logs in with this command and an SSH key becomes it, as"
        f" {name} ('ssh-keygen' makes a key):",
        f"ssh -p {port} {login}@{host}",
    ]


def own_keys(home: Path) -> list[PublicKey]:
    """The public keys in `home/.ssh/*.pub`, each once; what is no key is passed over."""
    keys: dict[str, PublicKey] = {}
    for path in sorted((home / ".ssh").glob("*.pub")):
        try:
            if path.stat().st_size > _LONGEST_FILE:
                continue
            key = parse_public_key(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BadInput) as error:
            log.info("%s is not used: %s", path.name, error)
            continue
        keys[key.fingerprint] = key
    return list(keys.values())


def _user_name(user: str) -> str:
    try:
        return check_user(user.lower())
    except BadInput:
        return "admin"
