"""Links to single files that anybody may open until they expire: the use case, with its check and its audit event.

The link itself is a secret for as long as it lives. It is given to the person who asked and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from storage.access import Caller
from storage.audit import AuditTrail, Event
from storage.clock import Clock, now
from storage.errors import BadInput
from storage.namespace import DataTree
from storage.objects.links import LinkSigner
from storage.settings import ObjectSettings

DEFAULT_SECONDS = 3600


@dataclass(frozen=True)
class Link:
    """`only_here`: it opens on the gateway's own machine and nowhere else."""

    url: str
    path: str
    size: int
    expires: datetime
    host: str
    only_here: bool


class Links:
    """Makes links."""

    def __init__(self, tree: DataTree, audit: AuditTrail, settings: ObjectSettings, clock: Clock = now) -> None:
        self._tree = tree
        self._audit = audit
        self._longest = settings.link_max_hours * 3600
        # A house without a store, as in some tests, makes no links.
        self._signer: Callable[[], LinkSigner] = lambda: LinkSigner(settings)
        self._clock = clock

    async def url(self, caller: Caller, path: str, seconds: int = DEFAULT_SECONDS) -> Link:
        """A link to a file of the data tree. NotFound for what the caller may not read."""
        if not 1 <= seconds <= self._longest:
            raise BadInput(f"a link lives between one second and {self._longest // 3600} hours")
        facts = await self._tree.locate(caller, path)
        signer = self._signer()
        expires = self._clock() + timedelta(seconds=seconds)
        # First the trail, then the link: none is out that nobody knows of.
        await self._audit.record(
            Event.by(caller, "file.link", thing=path, bytes=facts.size, expires=expires.isoformat(), host=signer.host)
        )
        return Link(signer.sign(facts.key, seconds), path, facts.size, expires, signer.host, signer.only_here)
