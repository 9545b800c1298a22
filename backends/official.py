"""Images of the registry that everybody is offered: what its listing said last, kept in a file.

`reconcilers.official` writes it, every process of the house reads it; nobody waits for the registry to see the list,
and it outlives a registry that is away. Which repositories are meant is `backends.registry.official_from`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from backends.settings import OfficialImageSettings

log = logging.getLogger(__name__)
_LIST = TypeAdapter(tuple[OfficialImageSettings, ...])


class OfficialList:
    """The file, read again when it is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (0, 0)
        self._known: Mapping[str, OfficialImageSettings] = {}

    @classmethod
    def in_directory(cls, data: Path) -> OfficialList:
        return cls(data / "official-images.json")

    def known(self) -> Mapping[str, OfficialImageSettings]:
        """By name; each reference has its host and its digest. Empty before the registry has ever answered."""
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            return {}
        if (facts.st_ino, facts.st_mtime_ns) != self._seen:
            try:
                found = _LIST.validate_json(self._path.read_bytes())
            except (OSError, ValidationError):
                log.warning("the list of official images cannot be read; it is made anew soon")
                return self._known
            self._known = {one.name: one for one in found}
            self._seen = (facts.st_ino, facts.st_mtime_ns)
        return self._known

    def keep(self, found: Sequence[OfficialImageSettings]) -> None:
        """What the registry has now."""
        if tuple(found) == tuple(self.known().values()) and self._path.exists():
            return
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps([one.model_dump(mode="json") for one in found]))
        os.replace(draft, self._path)
