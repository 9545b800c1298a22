"""Harbor, as far as it can be had here: a server that answers as its API description says (api/v2.0/swagger.yaml of
goharbor/harbor), in front of a real docker-registry, which has the part that is the Registry API."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from backends import harbor
from backends.image_care import ImageCare
from backends.images import Images
from backends.registry import Registry
from backends.registry_probe import probe
from backends.settings import RegistrySettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import NotFound, Unavailable
from tests.backends.test_image_registry import put_image
from tests.conformance import registries

ROBOT = "robot$ashore"
GIB = 1024**3
_OF_THE_LINE = ("Host", "Content-Length", "Transfer-Encoding", "Connection")


class Harbor:
    """Projects, their repositories and quotas; `_catalog` is for its administrators."""

    def __init__(self, behind: RegistrySettings) -> None:
        self._behind = behind
        self.projects: dict[str, list[str]] = {"ashore": []}
        self.quota: dict[str, Any] = {"hard": {"storage": 20 * GIB}, "used": {"storage": 12 * GIB}}
        self.pages: list[int] = []
        self.app = web.Application(client_max_size=1 << 30)
        self.app.router.add_get("/api/v2.0/projects/{name}/repositories", self._repositories)
        self.app.router.add_get("/api/v2.0/projects/{name}/summary", self._summary)
        self.app.router.add_get("/v2/_catalog", self._catalog)
        self.app.router.add_route("*", "/v2/{rest:.*}", self._pass_on)

    async def _repositories(self, request: web.Request) -> web.Response:
        self._require_login(request)
        found = self._project(request)
        page, size = int(request.query.get("page", "1")), int(request.query.get("page_size", "10"))
        assert size <= 100
        self.pages.append(page)
        listed = [
            {"id": number, "project_id": 2, "name": name, "artifact_count": 1, "pull_count": 0}
            for number, name in enumerate(found)
        ]
        return web.json_response(
            listed[(page - 1) * size : page * size], headers={"X-Total-Count": str(len(listed))}
        )  # fmt: skip

    async def _summary(self, request: web.Request) -> web.Response:
        self._require_login(request)
        return web.json_response({"repo_count": len(self._project(request)), "quota": self.quota})

    async def _catalog(self, request: web.Request) -> web.Response:
        raise _refused(web.HTTPUnauthorized, "UNAUTHORIZED", "unauthorized to list catalog")

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name not in _OF_THE_LINE}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, self._behind.url + request.raw_path, headers=headers, data=await request.read() or None
            ) as answer,
        ):
            passed = {name: value for name, value in answer.headers.items() if name not in _OF_THE_LINE}
            if "Location" in passed:
                passed["Location"] = passed["Location"].replace(self._behind.url, f"http://{request.host}")
            return web.Response(status=answer.status, headers=passed, body=await answer.read())

    def _project(self, request: web.Request) -> list[str]:
        name = request.match_info["name"]
        if name not in self.projects:
            raise _refused(web.HTTPNotFound, "NOT_FOUND", f"project {name} not found")
        return self.projects[name]

    def _require_login(self, request: web.Request) -> None:
        login = base64.b64encode(f"{ROBOT}:{registries.PASSWORD}".encode()).decode()
        written = request.headers.get("Authorization", "")
        if written != f"Basic {login}":
            raise _refused(web.HTTPUnauthorized, "UNAUTHORIZED", "unauthorized")


def _refused(kind: type[web.HTTPException], code: str, message: str) -> web.HTTPException:
    return kind(
        text=f'{{"errors":[{{"code":"{code}","message":"{message}"}}]}}', content_type="application/json"
    )  # fmt: skip


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[RegistrySettings]:
    with registries.served(tmp_path, user=ROBOT) as settings:
        yield settings


@pytest.fixture
async def house(behind: RegistrySettings) -> AsyncIterator[tuple[Harbor, RegistrySettings]]:
    pretended = Harbor(behind)
    runner = web.AppRunner(pretended.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield pretended, behind.model_copy(update={"url": f"http://127.0.0.1:{port}", "project": "ashore"})
    await runner.cleanup()


@pytest.fixture
async def registry(house: tuple[Harbor, RegistrySettings]) -> AsyncIterator[Registry]:
    registry = Registry(house[1])
    yield registry
    await registry.close()


async def test_what_is_kept_in_a_project_is_listed(
    house: tuple[Harbor, RegistrySettings], registry: Registry, database: Database, audit: AuditTrail,
    changes: Changes, admin: Caller,
) -> None:  # fmt: skip
    """By the robot account, which may not read `_catalog`; over pages, and other projects are none of ours."""
    pretended, settings = house
    await put_image(registry, "w/i/model")
    pretended.projects = {
        "ashore": ["ashore/w/i/model", *(f"ashore/w/{number:03}/empty" for number in range(250))],
        "other": ["other/secret"],
    }
    assert len(await harbor.repositories(registry, "ashore") or ()) == 251
    assert pretended.pages == [1, 2, 3]
    pretended.projects["ashore"] = ["ashore/w/i/model", "ashore/w/i/empty"]
    care = ImageCare(database, audit, Images(database, audit, changes, settings), {}, registry)
    found = {one.repository: one.tags for one in await care.stored(admin)}
    assert found == {"w/i/model": ["v1"], "w/i/empty": ()}


async def test_a_project_that_is_not_there_is_named(house: tuple[Harbor, RegistrySettings], registry: Registry) -> None:
    with pytest.raises(NotFound, match="the image registry has no project 'nothing'"):
        await harbor.repositories(registry, "nothing")
    wrong = Registry(house[1].model_copy(update={"user": "robot$other"}))
    with pytest.raises(Unavailable, match="user and password"):
        await harbor.repositories(wrong, "ashore")
    await wrong.close()


async def test_another_registry_is_no_harbor(behind: RegistrySettings) -> None:
    """Its repositories are listed as the Registry API has it."""
    plain = Registry(behind)
    assert await harbor.repositories(plain, "ashore") is None
    assert await harbor.room(plain, "ashore") is None
    await plain.close()


async def test_doctor_tells_what_the_quota_leaves(house: tuple[Harbor, RegistrySettings], registry: Registry) -> None:
    pretended, _ = house
    room = (await probe(registry))[-1]
    assert (room.name, room.ok, room.detail) == ("room", True, "8.0 GiB left of its project's quota")
    pretended.quota["used"]["storage"] = 19 * GIB
    assert not (await probe(registry))[-1].ok
    pretended.quota = {"hard": {"storage": -1}, "used": {"storage": 19 * GIB}}
    assert [one.name for one in await probe(registry)] == ["login", "push", "delete"]
