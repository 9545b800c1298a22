"""Asks an S3 endpoint for everything that the upload engine needs, and says in plain words what is missing.

    for check in await probe(settings):
        check.name, check.state, check.detail, check.hint

All of it happens below `.ashore-probe/` in the bucket and is removed again; about 5 MiB travel. Requests have the
shape that `storage.objects.s3` gives them; what that has no method for is signed here. Nothing is configured here.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import xml.etree.ElementTree as ElementTree
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, urlsplit

from urllib3.exceptions import HTTPError

from storage.errors import AshoreError, Conflict, NotFound, Unavailable
from storage.names import printable
from storage.objects.contract import NoSuchUpload
from storage.objects.s3 import S3Store, pool_of
from storage.objects.signing import Signer
from storage.records import new_id
from storage.settings import ObjectSettings

log = logging.getLogger(__name__)
_MIB = 1024 * 1024
_PART = 5 * _MIB
_SMALL = b"ashore " * 100
_SKEW_SECONDS = 60
_NAMES = ("two words", "plus+sign", "per%20cent %", "中文 文件", "é (NFC) ü", "tilde~'quote\"&=?#;,@!")
_KEEP_DAYS = 7
"""How long the engine keeps the parts of a broken upload unless told otherwise."""


class State(StrEnum):
    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """One thing that the engine needs. `detail`: what was found and means; `hint`: what to do about it."""

    name: str
    state: State
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def code(self) -> str:
        """S3's word for an error, else the HTTP status."""
        return next(iter(_texts(self.data, "Code")), str(self.status))


async def probe(settings: ObjectSettings) -> list[Check]:
    """Every check, in the order in which one would repair them; never an exception for what the endpoint does."""
    try:
        store = S3Store(settings)
    except AshoreError as error:
        return [Check("endpoint", State.MISSING, error.message, "see [objects] endpoint")]
    wire = _Wire(settings)
    try:
        return await _Probe(settings, store, wire).run()
    finally:
        await wire.close()
        await store.close()


class _Probe:
    def __init__(self, settings: ObjectSettings, store: S3Store, wire: _Wire) -> None:
        self._settings = settings
        self._store = store
        self._wire = wire
        self._root = f".ashore-probe/{new_id()}/"
        self._server = ""
        self._object = ""
        """A finished object of at least one part, once there is one."""

    async def run(self) -> list[Check]:
        checks = await self._of_endpoint()
        if checks[-1].state is not State.OK:
            return checks
        bucket = await self._guarded("bucket", self._bucket, "see the keys and the bucket in [objects]")
        checks.append(bucket)
        if bucket.state is not State.OK:
            return checks
        try:
            for name, ask, hint in (
                ("objects", self._objects, "the engine cannot work with this service"),
                ("names", self._names, "files with such names cannot be stored here; another S3 service can"),
                ("metadata", self._metadata, "modification times are then known to Ashore's database only"),
                ("multipart", self._multipart, "files larger than one part cannot be stored"),
                ("copy of parts", self._copied_parts, "appending to a file then reads and sends it as a whole"),
                ("conditional put", self._new_put, _CONDITION_HINT),
                ("conditional completion", self._new_complete, _CONDITION_HINT),
                ("self-copy", self._self_copy, "a time that is set later is known to Ashore's database only"),
            ):
                checks.append(await self._guarded(name, ask, hint))
            checks.append(await self._expiry())
        finally:
            await self._tidy()
        return checks

    async def _guarded(self, name: str, ask: Callable[[], Awaitable[str]], hint: str) -> Check:
        """`ask` returns what it found, or raises: what is then missing, in words."""
        try:
            return Check(name, State.OK, await ask())
        except _Missing as found:
            return Check(name, State.MISSING, found.message, hint)
        except _Unknown as found:
            return Check(name, State.UNKNOWN, found.message)
        except AshoreError as error:
            return Check(name, State.MISSING, error.message, hint)

    # ---- the connection --------------------------------------------------------------------------------------
    async def _of_endpoint(self) -> list[Check]:
        """TLS, reachability and clock; the last one is not OK if there is no point in going on."""
        settings, checks = self._settings, []
        secure = urlsplit(settings.endpoint).scheme == "https"
        if settings.ca_file and not await asyncio.to_thread(Path(settings.ca_file).is_file):
            missing = f"there is no file {printable(settings.ca_file)}"
            return [Check("TLS", State.MISSING, missing, "see [objects] ca_file")]
        try:
            answer = await self._wire.send("GET", "", query={"max-keys": "1"})
        except _Untrusted as error:
            return [Check("TLS", State.MISSING, error.message, "set [objects] ca_file to the authority's PEM file")]
        except AshoreError as error:
            return [Check("endpoint", State.MISSING, error.message, "see whether it runs, and [objects] endpoint")]
        self._server = answer.headers.get("server", "")
        checks.append(_of_tls(secure, settings))
        checks.append(_of_clock(answer))
        words = f"answers as {printable(self._server, limit=60)}" if self._server else "answers"
        return [*checks, Check("endpoint", State.OK, words)]

    # ---- what the engine does --------------------------------------------------------------------------------
    async def _bucket(self) -> str:
        try:
            await self._store.check()
        except Unavailable as error:
            if "has no bucket" not in error.message:
                raise
            await self._store.start()
            return f"'{self._settings.bucket}' was made"
        return f"'{self._settings.bucket}' is there"

    async def _objects(self) -> str:
        key = self._root + "object"
        etag = await self._store.put(key, _SMALL)
        if await self._store.get(key) != _SMALL or await self._store.get(key, offset=7, size=6) != b"ashore":
            raise _Missing("an object came back with other bytes")
        facts = await self._store.head(key)
        if facts.size != len(_SMALL) or facts.etag != etag:
            raise _Missing("HEAD tells another size or ETag than PUT")
        try:
            await self._store.get(key, etag="0" * 32)
        except Conflict:
            pinned = True
        else:
            pinned = False
        await self._store.delete(key)
        try:
            await self._store.head(key)
        except NotFound:
            pass
        else:
            raise _Missing("an object was still there after its deletion")
        if not pinned:
            raise _Missing("If-Match on GET is ignored: who reads a file while it is replaced may get a mixture")
        return "put, get, ranges, If-Match, head and delete work"

    async def _names(self) -> str:
        wanted = {self._root + "names/" + name for name in _NAMES}
        for key in wanted:
            await self._store.put(key, key.encode())
        found = {facts.key async for page in self._store.list(self._root + "names/") for facts in page}
        lost = sorted(key.rpartition("/")[2] for key in wanted - found)
        if lost:
            raise _Missing(f"listings do not show these names as they are: {', '.join(map(repr, lost))}")
        for key in wanted:
            if await self._store.get(key) != key.encode():
                raise _Missing(f"{key.rpartition('/')[2]!r} came back with other bytes")
        return "spaces, plus, per cent and Chinese come back as they are"

    async def _metadata(self) -> str:
        key = self._root + "metadata"
        await self._store.put(key, _SMALL, metadata={"mtime": "1700000000"})
        if (await self._store.head(key)).metadata.get("mtime") != "1700000000":
            raise _Missing("user metadata of an upload is not kept")
        return "kept with the object"

    async def _multipart(self) -> str:
        key, body = self._root + "multipart", bytes(_PART)
        upload = await self._store.create_upload(key, metadata={"mtime": "1700000000"})
        sent = [
            (1, await self._store.put_part(key, upload, 1, body)),
            (2, await self._store.put_part(key, upload, 2, _SMALL)),
        ]
        listed = [(part.number, part.etag, part.size) for part in await self._store.list_parts(key, upload)]
        if listed != [(*sent[0], _PART), (*sent[1], len(_SMALL))]:
            raise _Missing("ListParts does not tell which parts are stored, so broken uploads cannot be gone on with")
        await self._store.complete_upload(key, upload, sent)
        if (await self._store.head(key)).size != _PART + len(_SMALL):
            raise _Missing("the finished object has not the size of its parts")
        self._object = key
        gone = await self._store.create_upload(self._root + "aborted")
        await self._store.abort_upload(self._root + "aborted", gone)
        try:
            await self._store.put_part(self._root + "aborted", gone, 1, _SMALL)
        except NoSuchUpload:
            return "create, put, ListParts, complete and abort work"
        except AshoreError as error:
            raise _Missing(f"an aborted upload is answered with: {error.message}") from error
        raise _Missing("an aborted upload still takes parts, which nobody would ever remove")

    async def _copied_parts(self) -> str:
        """UploadPartCopy with a range, into an upload whose part numbers have a gap."""
        if not self._object:
            raise _Unknown("cannot be tried without multipart uploads")
        key = self._root + "copied"
        upload = await self._store.create_upload(key)
        first = await self._copy_part(key, upload, f"bytes=0-{_PART - 1}")
        third = await self._store.put_part(key, upload, 3, _SMALL)
        try:
            await self._store.complete_upload(key, upload, [(1, first), (3, third)])
        except AshoreError as error:
            await self._store.abort_upload(key, upload)
            raise _Missing(f"part numbers with a gap cannot be completed: {error.message}") from error
        if await self._store.get(key, offset=_PART) != _SMALL:
            raise _Missing("an object made of a copied and a sent part has other bytes")
        return "ranges are copied inside the store, part numbers may have gaps"

    async def _copy_part(self, key: str, upload: str, byte_range: str) -> str:
        answer = await self._wire.send(
            "PUT",
            key,
            query={"uploadId": upload, "partNumber": "1"},
            headers={"x-amz-copy-source": self._source(self._object), "x-amz-copy-source-range": byte_range},
        )
        etag = _texts(answer.data, "ETag")
        if answer.status != 200 or not etag:
            await self._store.abort_upload(key, upload)
            raise _Missing(f"UploadPartCopy is refused ({printable(answer.code, limit=60)})")
        return etag[0].strip('"')

    async def _new_put(self) -> str:
        key = self._root + "conditional"
        await self._store.put(key, b"first", only_new=True)
        try:
            await self._store.put(key, b"second", only_new=True)
        except Conflict:
            return "If-None-Match is honoured"
        raise _Missing("If-None-Match on PUT is ignored: of two people who create the same file, the later one wins")

    async def _new_complete(self) -> str:
        key = self._root + "conditional-multipart"
        await self._store.put(key, b"first")
        upload = await self._store.create_upload(key)
        etag = await self._store.put_part(key, upload, 1, _SMALL)
        try:
            await self._store.complete_upload(key, upload, [(1, etag)], only_new=True)
        except Conflict:
            await self._store.abort_upload(key, upload)
            return "If-None-Match is honoured"
        raise _Missing(
            "If-None-Match on completion is ignored: of two people who create the same large file, the later one wins"
        )

    async def _self_copy(self) -> str:
        key = self._root + "self-copy"
        await self._store.put(key, _SMALL, metadata={"mtime": "1"})
        answer = await self._wire.send(
            "PUT",
            key,
            headers={
                "x-amz-copy-source": self._source(key),
                "x-amz-metadata-directive": "REPLACE",
                "x-amz-meta-mtime": "1700000000",
            },
        )
        if answer.status != 200:
            raise _Missing(f"an object cannot be copied onto itself ({printable(answer.code, limit=60)})")
        facts = await self._store.head(key)
        if facts.metadata.get("mtime") != "1700000000" or facts.size != len(_SMALL):
            raise _Missing("a copy onto itself does not change the metadata")
        return "metadata is changed without sending the object again"

    def _source(self, key: str) -> str:
        return quote(f"/{self._settings.bucket}/{key}")

    # ---- what cannot be tried --------------------------------------------------------------------------------
    async def _expiry(self) -> Check:
        """Whether the store throws the parts of a broken upload away before the engine does."""
        name = "unfinished uploads"
        days = await self._lifecycle_days()
        if days is not None and days <= _KEEP_DAYS:
            words = f"a lifecycle rule of the bucket removes them after {days} days"
            return Check(name, State.MISSING, words, f"set the rule to more than {_KEEP_DAYS} days")
        server = self._server.lower()
        if "minio" in server:
            return Check(
                name, State.UNKNOWN, "MinIO removes them 24 hours after they began unless it is told otherwise",
                f"mc admin config set ALIAS api stale_uploads_expiry={(_KEEP_DAYS + 1) * 24}h",
            )  # fmt: skip
        if "rustfs" in server:
            return Check(
                name, State.UNKNOWN, "RustFS removes them 24 hours after they began unless it is told otherwise",
                f"set its expiry of stale uploads to {(_KEEP_DAYS + 1) * 24} hours",
            )  # fmt: skip
        if "seaweedfs" in server or "amazons3" in server:
            return Check(name, State.OK, "kept until Ashore removes them")
        return Check(
            name, State.UNKNOWN, "how long this service keeps them cannot be asked",
            f"see in its manual that it keeps the parts of unfinished uploads for more than {_KEEP_DAYS} days",
        )  # fmt: skip

    async def _lifecycle_days(self) -> int | None:
        """The shortest time after which a rule of the bucket ends unfinished uploads; None if no rule does."""
        with suppress(AshoreError):
            answer = await self._wire.send("GET", "", query={"lifecycle": ""})
            if answer.status == 200:
                days = [int(text) for text in _texts(answer.data, "DaysAfterInitiation") if text.isdigit()]
                return min(days, default=None)
        return None

    async def _tidy(self) -> None:
        try:
            async for page in self._store.list(self._root):
                await self._store.delete_many([facts.key for facts in page])
        except AshoreError:
            log.warning("what the probe wrote below %s could not be removed", self._root)


_CONDITION_HINT = "let one person at a time create a file, or use a service that knows If-None-Match"


class _Missing(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class _Unknown(_Missing):
    pass


class _Untrusted(Unavailable):
    """The certificate of the endpoint is not to be trusted."""


class _Wire:
    """Signed requests with headers, which presigned URLs cannot carry."""

    def __init__(self, settings: ObjectSettings) -> None:
        self._bucket = settings.bucket
        self._signer = Signer(settings)
        self._pool = pool_of(settings)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="probe")

    async def send(
        self, method: str, key: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> _Answer:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._request, method, key, query or {}, headers or {})

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._pool.clear()

    def _request(self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> _Answer:
        url, signed = self._signer.sign(method, self._bucket, key, query, headers)
        try:
            answer = self._pool.request(method, url, headers=signed, redirect=False)
        except HTTPError as error:
            raise _translated(error) from error
        return _Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.data)


def _translated(error: HTTPError) -> AshoreError:
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return _Untrusted(f"its certificate is not trusted: {printable(reason.verify_message, limit=120)}")
        reason = reason.__cause__ or reason.__context__
    return Unavailable(f"does not answer ({type(error).__name__})")


def _of_tls(secure: bool, settings: ObjectSettings) -> Check:
    if not secure:
        local = urlsplit(settings.endpoint).hostname in ("127.0.0.1", "::1", "localhost")
        if local:
            return Check("TLS", State.OK, "not needed: the endpoint is this machine")
        return Check(
            "TLS", State.UNKNOWN, "the endpoint is plain http: everybody on the way reads and changes what is stored",
            "use https where the network is not closed",
        )  # fmt: skip
    if settings.insecure:
        return Check("TLS", State.MISSING, "any certificate is accepted", "set [objects] ca_file, not insecure")
    authority = printable(settings.ca_file) if settings.ca_file else "the system's authorities"
    return Check("TLS", State.OK, f"the certificate is verified by {authority}")


def _of_clock(answer: _Answer) -> Check:
    try:
        theirs = parsedate_to_datetime(answer.headers.get("date", ""))
        skew = (datetime.now(UTC) - theirs).total_seconds()
    except (ValueError, TypeError):
        return Check("clock", State.UNKNOWN, "the endpoint tells no time")
    if abs(skew) > _SKEW_SECONDS:
        words = f"this machine is {abs(skew):.0f} seconds {'ahead of' if skew > 0 else 'behind'} the endpoint"
        return Check("clock", State.MISSING, words, "use NTP on both: from 15 minutes on every request is refused")
    return Check("clock", State.OK, "agrees with this machine's")


def _texts(data: bytes, name: str) -> list[str]:
    try:
        root = ElementTree.fromstring(data) if data.strip() else None
    except ElementTree.ParseError:
        return []
    if root is None:
        return []
    return [(element.text or "").strip() for element in root.iter() if element.tag.rpartition("}")[2] == name]
