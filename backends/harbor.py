"""What Harbor tells beyond the Registry API v2, by its own API 2.0 (api/v2.0/swagger.yaml of goharbor/harbor).

Its `_catalog` is for its administrators only, so a project's repositories are listed here. `repositories` and
`room` give None where the registry is no Harbor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from backends.registry import Registry
from storage.errors import NotFound, Unavailable
from storage.names import printable

_PAGE = 100
"""The most that it gives at once."""
_MOST_PAGES = 1000


async def repositories(registry: Registry, project: str) -> Sequence[str] | None:
    """Full names (`project/…`) of all repositories of a project. NotFound: Harbor has no such project for us."""
    names: list[str] = []
    for page in range(1, _MOST_PAGES + 1):
        path = f"/api/v2.0/projects/{quote(project)}/repositories?page={page}&page_size={_PAGE}&sort=name"
        found = await _get(registry, path, project)
        if found is None:
            return None
        listed, total = found
        if not isinstance(listed, list):
            return None
        names += [str(one["name"]) for one in listed if isinstance(one, dict) and "name" in one]
        if not listed or (len(names) >= total if total is not None else len(listed) < _PAGE):
            return sorted(set(names))
    raise Unavailable(f"the image registry's project '{printable(project, limit=60)}' is too large to be listed")


async def below(registry: Registry) -> Sequence[str]:
    """All repositories below its project, named without it; of any registry, with an empty project all that it has."""
    prefix = f"{registry.project}/" if registry.project else ""
    found = await repositories(registry, registry.project.split("/")[0]) if prefix else None
    if found is None:
        found = await registry.repositories()
    return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]


async def room(registry: Registry, project: str) -> int | None:
    """Bytes that the project's quota leaves; None also if it has no limit, or we may not see it."""
    try:
        found = await _get(registry, f"/api/v2.0/projects/{quote(project)}/summary", project)
    except (NotFound, Unavailable):
        return None
    quota = found[0].get("quota") if found is not None and isinstance(found[0], dict) else None
    if not isinstance(quota, dict):
        return None
    hard, used = (quota.get(one) for one in ("hard", "used"))
    if not isinstance(hard, dict) or not isinstance(used, dict) or int(hard.get("storage", -1)) < 0:
        return None  # -1: without limit
    return max(0, int(hard["storage"]) - int(used.get("storage", 0)))


async def _get(registry: Registry, path: str, project: str) -> tuple[Any, int | None] | None:
    """What is there, and how many there are in all, if it says so."""
    try:
        return await registry.json_of(path)
    except NotFound as error:
        # Harbor says which thing is missing; other registries have no such address at all.
        if "NOT_FOUND" in error.message:
            raise NotFound(f"the image registry has no project '{printable(project, limit=60)}'") from error
        return None
