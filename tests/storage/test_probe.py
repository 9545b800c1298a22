"""The probe of an S3 endpoint: against the real store, against one behind real TLS, and against one with gaps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from storage.objects.probe import Check, State, probe
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from tests.storage.tls import Authority, Change, proxy, tls_in_front_of, unchanged


def _by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


async def test_the_real_store_has_all_that_the_engine_needs(object_settings: ObjectSettings, store: S3Store) -> None:
    checks = await probe(object_settings)
    assert [check for check in checks if check.state is State.MISSING] == []
    assert set(_by_name(checks)) == {
        "TLS", "clock", "endpoint", "bucket", "objects", "names", "metadata", "multipart", "copy of parts",
        "conditional put", "conditional completion", "self-copy", "unfinished uploads",
    }  # fmt: skip
    assert [facts.key async for page in store.list("") for facts in page if not facts.key.endswith("/")] == []


async def test_a_missing_bucket_is_made(object_settings: ObjectSettings) -> None:
    found = _by_name(await probe(object_settings))["bucket"]
    assert (found.state, found.detail) == (State.OK, f"'{object_settings.bucket}' was made")


async def test_wrong_keys_are_named_as_such(object_settings: ObjectSettings) -> None:
    checks = await probe(object_settings.model_copy(update={"access_key": "somebody-else"}))
    assert checks[-1].name == "bucket"
    assert checks[-1].state is State.MISSING
    assert "keys" in checks[-1].detail


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "ftp://127.0.0.1", "https://127.0.0.1:9"])
async def test_an_endpoint_that_is_not_there(object_settings: ObjectSettings, endpoint: str) -> None:
    checks = await probe(object_settings.model_copy(update={"endpoint": endpoint}))
    assert [(check.name, check.state) for check in checks] == [("endpoint", State.MISSING)]


async def test_a_bucket_that_cannot_be_is_named_as_such(object_settings: ObjectSettings) -> None:
    (found,) = await probe(object_settings.model_copy(update={"bucket": "b"}))
    assert (found.state, "objects.bucket" in found.detail) == (State.MISSING, True)


# ---- TLS -------------------------------------------------------------------------------------------------------
async def test_a_certificate_is_verified_by_the_authority_that_is_set(
    object_settings: ObjectSettings, tmp_path: Path
) -> None:
    authority = Authority.made_in(tmp_path)
    async with tls_in_front_of(object_settings.endpoint, authority) as address:
        secure = object_settings.model_copy(update={"endpoint": address})

        (refused,) = await probe(secure)
        assert (refused.name, refused.state) == ("TLS", State.MISSING)
        assert "not trusted" in refused.detail

        trusted = await probe(secure.model_copy(update={"ca_file": str(authority.ca_file)}))
        assert [check for check in trusted if check.state is State.MISSING] == []
        assert str(authority.ca_file) in _by_name(trusted)["TLS"].detail

        insecure = await probe(secure.model_copy(update={"insecure": True}))
        assert [check.name for check in insecure if check.state is State.MISSING] == ["TLS"]

        (lost,) = await probe(secure.model_copy(update={"ca_file": str(tmp_path / "nothing.pem")}))
        assert "no file" in lost.detail


async def test_a_certificate_of_another_host_is_refused(object_settings: ObjectSettings, tmp_path: Path) -> None:
    authority = Authority.made_in(tmp_path, name="elsewhere.example.org")
    async with tls_in_front_of(object_settings.endpoint, authority) as address:
        secure = object_settings.model_copy(update={"endpoint": address, "ca_file": str(authority.ca_file)})
        (refused,) = await probe(secure)
        assert (refused.name, refused.state) == ("TLS", State.MISSING)


async def test_the_store_itself_works_over_verified_tls(object_settings: ObjectSettings, tmp_path: Path) -> None:
    authority = Authority.made_in(tmp_path)
    async with tls_in_front_of(object_settings.endpoint, authority) as address:
        store = S3Store(object_settings.model_copy(update={"endpoint": address, "ca_file": str(authority.ca_file)}))
        await store.start()
        await store.put("a b+c", b"over TLS")
        assert await store.get("a b+c") == b"over TLS"
        await store.close()


# ---- endpoints with gaps ---------------------------------------------------------------------------------------
@asynccontextmanager
async def changed(
    settings: ObjectSettings, request: Change = unchanged, answer: Change = unchanged
) -> AsyncIterator[ObjectSettings]:
    async with proxy(settings.endpoint, request=request, answer=answer) as port:
        yield settings.model_copy(update={"endpoint": f"http://127.0.0.1:{port}"})


async def test_ignored_conditions_are_told(object_settings: ObjectSettings) -> None:
    hide: Change = lambda data: data.replace(b"If-None-Match: *", b"X-None-Such-No: *")  # noqa: E731
    async with changed(object_settings, hide) as settings:
        checks = _by_name(await probe(settings))
    assert checks["conditional put"].state is State.MISSING
    assert checks["conditional completion"].state is State.MISSING
    assert "the later one wins" in checks["conditional put"].detail
    assert checks["multipart"].state is State.OK


async def test_a_clock_that_is_wrong_is_told(object_settings: ObjectSettings) -> None:
    def old(data: bytes) -> bytes:
        head, separator, rest = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        dated = [b"Date: Sat, 01 Jan 2000 00:00:00 GMT" if line.startswith(b"Date: ") else line for line in lines]
        return b"\r\n".join(dated) + separator + rest

    async with changed(object_settings, answer=old) as settings:
        checks = _by_name(await probe(settings))
    assert checks["clock"].state is State.MISSING
    assert "ahead of the endpoint" in checks["clock"].detail


async def test_minio_is_known_by_its_name_and_what_to_set_is_said(object_settings: ObjectSettings) -> None:
    name: Change = lambda data: data.replace(b"Server: SeaweedFS ", b"Server: MinIO     ")  # noqa: E731
    async with changed(object_settings, answer=name) as settings:
        checks = _by_name(await probe(settings))
    found = checks["unfinished uploads"]
    assert found.state is State.UNKNOWN
    assert "stale_uploads_expiry=192h" in found.hint
