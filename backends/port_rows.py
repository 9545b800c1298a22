"""Published ports as they are asked for: what speaks against one, and which port of the gateway it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from backends.settings import PortSettings
from storage.access import Action, Caller
from storage.audit import AuditTrail, Event
from storage.clock import Clock
from storage.database.transaction import Transaction
from storage.errors import AlreadyExists, BadInput, Unavailable
from storage.records import Environment, PublishedPort

_NONE_OFFERED = (
    "this gateway publishes no ports: they would be open without SSH, so the operator must set backends.ports first"
)


def refusals(settings: PortSettings, ports: Sequence[int], *, machine: str = "") -> Sequence[str]:
    """What speaks against publishing these, whoever asks; `machine` is the existing machine that they are on, if so."""
    if not ports:
        return []
    if machine:
        return [f"'{machine}' publishes no ports: they would lead to what others run on that machine, too"]
    if not settings.first:
        return [_NONE_OFFERED]
    found = [f"{port} is no port: write 1 to 65535" for port in ports if not 0 < port < 65536]
    if len(set(ports)) < len(ports):
        found.append("a port was chosen twice")
    if len(ports) > settings.per_environment:
        found.append(f"an environment may publish {settings.per_environment} ports at most")
    return found


async def begin_ports(
    tx: Transaction,
    audit: AuditTrail,
    settings: PortSettings,
    caller: Caller,
    environment: Environment,
    ports: Sequence[int],
    clock: Clock,
) -> Sequence[PublishedPort]:
    """Publish them in the transaction that makes or holds `environment`.

    AlreadyExists: it is published. BadInput: too many. Unavailable: none is left.
    """
    if not ports:
        return []
    taken = set(await tx.scalars(select(PublishedPort.external_port)))
    mine = set(await tx.scalars(select(PublishedPort.port).where(PublishedPort.environment_id == environment.id)))
    made: list[PublishedPort] = []
    for port in ports:
        if port in mine:
            raise AlreadyExists(f"port {port} of '{environment.name}' is published already")
        if len(mine) >= settings.per_environment:
            raise BadInput(f"an environment may publish {settings.per_environment} ports at most")
        external = next((one for one in range(settings.first, settings.last + 1) if one not in taken), None)
        if external is None:
            raise Unavailable("all ports that this gateway may publish are taken: an administrator can add more")
        taken.add(external)
        mine.add(port)
        made.append(
            PublishedPort(
                environment_id=environment.id, port=port, external_port=external, published=clock(), by=caller.name
            )
        )
        facts: dict[str, Any] = {"owner": environment.owner_name, "port": port, "external_port": external}
        await audit.add(tx, Event.by(caller, Action.PORT_PUBLISH, thing=environment.name, **facts))
    tx.add_all(made)
    try:
        await tx.flush()
    except IntegrityError as error:
        raise Unavailable("somebody else was given the same port at the same moment, try again") from error
    return made
