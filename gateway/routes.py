"""Which door a request leads to. Pure: the target of the login and what the client asked for, and nothing else.

No permission is asked here; the use case behind each door does that.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum

from gateway.target import Target

LONGEST_COMMAND = 32 * 1024
"""Characters of a gateway command: splitting one takes more than linear time, on the event loop."""
_DIGESTS = frozenset({"md5sum", "sha1sum", "sha256sum", "df", "echo"})


class Door(StrEnum):
    """Where a session goes; the value is the kind that session lists and audit events show."""

    MENU = "menu"
    COMMAND = "command"
    DATA = "data"
    """SFTP on the data tree."""
    SCP = "scp"
    """The old scp protocol on the data tree."""
    DIGEST = "digest"
    """md5sum and its kin on the data tree."""
    HOLD = "hold"
    """Neither PTY nor command: the connection is held for its forwards."""
    WELCOME = "welcome"
    """An invitation was redeemed, and neither PTY nor command wanted: nothing is left to do on this connection."""
    SHELL = "shell"
    EXEC = "exec"
    SFTP = "sftp"
    REFUSED = "refused"


@dataclass(frozen=True)
class Asked:
    """What a client asked for on a session channel. All empty: a shell."""

    has_terminal: bool
    command: str | None = None
    subsystem: str | None = None


@dataclass(frozen=True)
class Route:
    """The door, and what it needs to know; `reason` says why for REFUSED."""

    door: Door
    command: str = ""
    reason: str = ""


def resolve(target: Target, asked: Asked) -> Route:
    """The route of a session."""
    if target.environment:
        return _into_environment(asked)
    route = _at_gateway(asked)
    return Route(Door.WELCOME) if target.is_invite and route.door is Door.HOLD else route


def _into_environment(asked: Asked) -> Route:
    if asked.subsystem == "sftp":
        return Route(Door.SFTP)
    if asked.subsystem is not None:
        return Route(Door.REFUSED, reason="only the subsystem 'sftp' is offered")
    if asked.command is not None:
        return Route(Door.EXEC, asked.command)
    return Route(Door.SHELL)


def _at_gateway(asked: Asked) -> Route:
    if asked.subsystem == "sftp":
        return Route(Door.DATA)
    if asked.subsystem is not None:
        return Route(Door.REFUSED, reason="only the subsystem 'sftp' is offered")
    if asked.command is None:
        return Route(Door.MENU if asked.has_terminal else Door.HOLD)
    if len(asked.command) > LONGEST_COMMAND:
        return Route(Door.REFUSED, reason=f"a gateway command may have {LONGEST_COMMAND} characters")
    words = _words(asked.command)
    if words[:1] == ["scp"] and ("-t" in words or "-f" in words):
        return Route(Door.SCP, asked.command)
    if words and words[0] in _DIGESTS:
        return Route(Door.DIGEST, asked.command)
    return Route(Door.COMMAND, asked.command)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return []
