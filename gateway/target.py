"""What a login name or a jump's host name means. Pure: text in, Target out, BadInput for what cannot be meant.

alice            the gateway itself        invite-3f…   a one-time invitation
alice+train      her environment `train`   train, train.alice   (as the host of a jump)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.errors import BadInput
from storage.names import check_resource, check_user, printable

_INVITE = re.compile(r"invite-[0-9a-f]{24}")


@dataclass(frozen=True)
class Target:
    """Who logs in, and where to: `environment` is empty for the gateway itself."""

    user: str
    environment: str = ""
    is_invite: bool = False
    """Came by a one-time invitation; once it is redeemed, `user` is the person whom it was for."""


def parse(login: str) -> Target:
    """The target of a login name."""
    if login.startswith("invite-"):
        if not _INVITE.fullmatch(login):
            raise BadInput("this is not an invitation")
        return Target(login, is_invite=True)
    user, plus, environment = login.partition("+")
    check_user(user)
    if not plus:
        return Target(user)
    return Target(user, check_resource(environment, kind="environment"))


def parse_host(host: str, user: str) -> str:
    """The environment that a jump's host name means for `user`: `train` and `train.alice` are both alice's `train`."""
    name = host.lower()
    if len(name) > 100:
        raise BadInput(f"'{printable(host, limit=40)}…' is too long for an environment's name")
    return check_resource(name.removesuffix(f".{user}"), kind="environment")
