"""Tries what images need of a registry: to be let in, to push, to delete, and room. Nothing of it stays there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends import harbor
from backends.registry import Registry, Unsupported
from storage.errors import AshoreError

_REPOSITORY = "doctor/probe"
_NOBODYS = f"sha256:{'0' * 64}"
_GIB = 1024**3
_LITTLE = 5 * _GIB


@dataclass(frozen=True)
class Probed:
    """One thing that was tried; `detail` says what is wrong when it is not `ok`, or why it is not `known`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    known: bool = True


async def probe(registry: Registry) -> Sequence[Probed]:
    """Everything, or the first thing only if nobody answers."""
    try:
        await registry.check()
    except AshoreError as error:
        return [Probed("login", False, error.message, "see [backends.registry]")]
    found = [Probed("login", True, "answers, and takes the user of the settings")]
    pushes = await _pushes(registry)
    found.append(pushes)
    if pushes.known:
        found.append(await _deletes(registry))
    left = await harbor.room(registry, registry.project) if registry.project else None
    if left is not None:
        detail = f"{left / _GIB:.1f} GiB left of its project's quota"
        found.append(Probed("room", left >= _LITTLE, detail, "raise the quota of the project, or delete images"))
    return found


async def _pushes(registry: Registry) -> Probed:
    """An upload is begun and given up."""
    try:
        async with registry.upload(_REPOSITORY):
            return Probed("push", True, "takes images")
    except Unsupported:  # nothing can be deleted then, either
        detail = "it is read only now, as while it gives space back: pushes wait until it has done so"
        return Probed("push", True, detail, "ask again later; if it stays so, see its own settings", known=False)
    except AshoreError as error:
        return Probed("push", False, error.message, "the user of the settings must be allowed to push")


async def _deletes(registry: Registry) -> Probed:
    """A registry that deletes says that there is nothing to delete; one that does not, that it is not supported."""
    try:
        await registry.delete_manifest(_REPOSITORY, _NOBODYS)
    except Unsupported:
        hint = "allow it there: storage.delete.enabled, or REGISTRY_STORAGE_DELETE_ENABLED=true"
        return Probed("delete", False, "it deletes nothing, so deleted images keep their space", hint)
    except AshoreError as error:
        return Probed("delete", False, error.message, "the user of the settings must be allowed to delete")
    return Probed("delete", True, "deletes images")
