"""An `ObjectStore` on any S3 service.

The `minio` library signs URLs through its public interface and lists, copies and bulk-deletes; urllib3 carries the
bytes in a few worker threads. That is half the CPU of the library's own upload path, and the event loop never waits.
Multipart state, retries of whole uploads, and rights must not be here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote, urlsplit

import minio
import urllib3
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from storage.errors import AshoreError, BadInput, Conflict, NotFound, Unavailable
from storage.names import printable
from storage.objects import listing
from storage.objects.contract import Away, Body, Full, NoSuchUpload, ObjectFacts, Part, Usage
from storage.objects.signing import Signer, must_be_signed
from storage.settings import ObjectSettings

_THREADS = 16
_PAGE = 1000
_ATTEMPTS = 3
_PATIENT_ATTEMPTS = 6
"""For the bytes of a file, in either direction. Six seconds: an embedded store that died is back by then."""
_FIRST_PAUSE = 0.2
_URL_LIFE = timedelta(minutes=15)
_TIMEOUT = urllib3.Timeout(connect=5, read=60)
_COMPLETE_TIMEOUT = urllib3.Timeout(connect=5, read=600)
_META = "x-amz-meta-"
_RETRIED = frozenset({429, 500, 502, 503, 504})
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
T = TypeVar("T")


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes


class S3Store:
    """One bucket of an S3 service.

    `disk`: the directory that a store of our own keeps its data in; `spare_mib` of the settings stay free there.
    """

    def __init__(self, settings: ObjectSettings, *, disk: Path | None = None) -> None:
        address = urlsplit(settings.endpoint)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise BadInput("objects.endpoint must be http://host:port or https://host:port")
        if not _BUCKET.fullmatch(settings.bucket):
            raise BadInput("objects.bucket is no possible name of a bucket: use 3 to 63 of a-z 0-9 . -")
        self.bucket = settings.bucket
        self._disk = disk
        self._spare = settings.spare_mib << 20
        self._pool = pool_of(settings)
        self._signer = Signer(settings)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
        self._client = minio.Minio(
            address.netloc,
            access_key=settings.access_key,
            secret_key=settings.secret_key.get_secret_value(),
            secure=address.scheme == "https",
            region=settings.region,
            http_client=self._pool,
        )

    async def start(self) -> None:
        """Make the bucket if it does not exist."""
        await self._run(self._make_bucket)

    async def check(self) -> None:
        if not await self._run(lambda: bool(self._client.bucket_exists(self.bucket))):
            raise Unavailable(f"the object store has no bucket '{self.bucket}'")

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._pool.clear()

    async def put(
        self, key: str, body: Body, *, metadata: Mapping[str, str] | None = None, only_new: bool = False
    ) -> str:
        headers = {**_condition(only_new), **_meta_headers(metadata)}
        answer = await self._send("PUT", key, {}, body=body, headers=headers)
        return _etag(answer)

    async def get(self, key: str, *, offset: int = 0, size: int | None = None, etag: str = "") -> bytes:
        if size is not None and size <= 0:
            return b""
        headers = {"If-Match": f'"{etag}"'} if etag else {}
        if offset or size is not None:
            headers["Range"] = f"bytes={offset}-{'' if size is None else offset + size - 1}"
        answer = await self._send("GET", key, {}, headers=headers, expected=(200, 206, 416), attempts=_PATIENT_ATTEMPTS)
        if answer.status == 416:
            return b""
        # Not every store looks at the condition, and some do so before they open the object.
        if etag and _etag(answer) not in (etag, ""):
            raise Conflict("the file was replaced meanwhile")
        if answer.status == 200 and "Range" in headers:  # a store may answer with everything
            return answer.data[offset : None if size is None else offset + size]
        return answer.data

    async def head(self, key: str) -> ObjectFacts:
        answer = await self._send("HEAD", key, {})
        headers = {name.lower(): value for name, value in answer.headers.items()}
        modified = headers.get("last-modified", "")
        return ObjectFacts(
            key,
            size=int(headers.get("content-length", "0")),
            etag=_etag(answer),
            modified=parsedate_to_datetime(modified) if modified else None,
            metadata={n.removeprefix(_META): v for n, v in headers.items() if n.startswith(_META)},
        )

    async def list(self, prefix: str, *, delimiter: bool = False) -> AsyncGenerator[Sequence[ObjectFacts]]:
        # From the second page on the next one is fetched while this one is worked on; often the first is enough.
        page = await self._page(prefix, delimiter, "")
        following: asyncio.Task[listing.Page] | None = None
        try:
            while True:
                if page.entries:
                    yield page.entries
                if not page.token:
                    return
                page = await (following or self._page(prefix, delimiter, page.token))
                following = self._following(prefix, delimiter, page.token) if page.token else None
        finally:
            if following is not None:
                following.cancel()

    async def delete(self, key: str) -> None:
        await self._send("DELETE", key, {}, expected=(200, 204, 404))

    async def delete_many(self, keys: Iterable[str]) -> None:
        def remove() -> None:
            errors = self._client.remove_objects(self.bucket, (DeleteObject(key) for key in keys))
            for error in errors:
                if error.code != "NoSuchKey":
                    raise Unavailable(f"the object store did not remove an object: {printable(str(error.code))}")

        await self._run(remove)

    async def copy(self, source: str, target: str) -> str:
        copied = await self._run(lambda: self._client.copy_object(self.bucket, target, CopySource(self.bucket, source)))
        return str(copied.etag or "").strip('"')

    async def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        answer = await self._send("POST", key, {"uploads": ""}, headers=_meta_headers(metadata), attempts=1)
        upload_id = _texts(answer.data, "UploadId")
        if not upload_id:
            raise Unavailable("the object store began no upload")
        return upload_id[0]

    async def put_part(self, key: str, upload_id: str, number: int, body: Body) -> str:
        query = {"uploadId": upload_id, "partNumber": str(number)}
        return _etag(await self._send("PUT", key, query, body=body, attempts=_PATIENT_ATTEMPTS))

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectFacts, *, offset: int, size: int
    ) -> str:
        answer = await self._send(
            "PUT",
            key,
            {"uploadId": upload_id, "partNumber": str(number)},
            headers={
                "x-amz-copy-source": quote(f"/{self.bucket}/{source.key}"),
                "x-amz-copy-source-range": f"bytes={offset}-{offset + size - 1}",
                "x-amz-copy-source-if-match": f'"{source.etag}"',
            },
            timeout=_COMPLETE_TIMEOUT,
        )
        etag = _texts(answer.data, "ETag")
        if not etag:  # 200, and an error in the body
            raise _error(answer.status, answer.data, key)
        return etag[0].strip('"')

    async def list_parts(self, key: str, upload_id: str) -> Sequence[Part]:
        parts: list[Part] = []
        marker = "0"
        while marker:
            query = {"uploadId": upload_id, "part-number-marker": marker}
            answer = await self._send("GET", key, query)
            parts += _parts(answer.data)
            truncated = _texts(answer.data, "IsTruncated") == ["true"]
            following = _texts(answer.data, "NextPartNumberMarker")
            marker = following[0] if truncated and following and following[0] != marker else ""
        return parts

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[tuple[int, str]], *, only_new: bool = False
    ) -> str:
        body = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
        answer = await self._send(
            "POST",
            key,
            {"uploadId": upload_id},
            body=f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>".encode(),
            headers=_condition(only_new),
            attempts=1,
            timeout=_COMPLETE_TIMEOUT,
        )
        # S3 may begin its answer with 200 and fail afterwards: only the body tells.
        etag = _texts(answer.data, "ETag")
        if not etag:
            raise _error(answer.status, answer.data, key)
        return etag[0].strip('"')

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._send("DELETE", key, {"uploadId": upload_id}, expected=(200, 204, 404))

    async def usage(self, prefix: str) -> Usage:
        files = total = 0
        async for page in self.list(prefix):
            real = [facts for facts in page if not facts.key.endswith("/")]
            files += len(real)
            total += sum(facts.size for facts in real)
        return Usage(files, total)

    async def free(self) -> int | None:
        return await self._run(self._free)

    def _free(self) -> int | None:
        return None if self._disk is None else max(0, shutil.disk_usage(self._disk).free - self._spare)

    def _refuse_when_full(self, size: int) -> None:
        free = self._free()
        if free is not None and free < size:
            raise Full("the disk of the object store is full: remove something, or tell the operator")

    # ---- in worker threads -----------------------------------------------------------------------------------
    async def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        expected: tuple[int, ...] = (200, 204),
        attempts: int = _ATTEMPTS,
        timeout: urllib3.Timeout = _TIMEOUT,
    ) -> _Answer:
        """One request; repeated when the store was away or overloaded, which every caller here may safely be."""

        def once() -> _Answer:
            if body:
                self._refuse_when_full(len(body))
            url, sent = self._signed(method, key, query, headers)
            answer = self._pool.request(
                method,
                url,
                body=cast("bytes | None", body),  # any buffer, whatever the annotation of the library says
                headers=sent,
                retries=False,
                timeout=timeout,
                redirect=False,
            )
            return _Answer(answer.status, answer.headers, answer.data)

        for attempt in range(1, attempts + 1):
            last = attempt == attempts
            try:
                answer = await self._run(once)
            except Full:
                raise
            except Unavailable:
                if last:
                    raise
            else:
                if answer.status in expected:
                    return answer
                if last or answer.status not in _RETRIED:
                    raise _error(answer.status, answer.data, key)
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("at least one attempt")

    def _signed(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str] | None
    ) -> tuple[str, Mapping[str, str] | None]:
        """The URL and the headers of one request."""
        if headers and must_be_signed(headers):
            return self._signer.sign(method, self.bucket, key, query, headers)
        url = self._client.get_presigned_url(
            method, self.bucket, key, expires=_URL_LIFE, extra_query_params=dict(query)
        )
        return url, headers

    def _following(self, prefix: str, delimiter: bool, token: str) -> asyncio.Task[listing.Page]:
        task = asyncio.create_task(self._page(prefix, delimiter, token), name=f"list {prefix}")
        # If nobody comes to read it, its failure is nobody's error.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _page(self, prefix: str, delimiter: bool, token: str) -> listing.Page:
        def once() -> listing.Page:
            asked = listing.query(prefix, delimiter=delimiter, token=token, most=_PAGE)
            url, headers = self._signer.sign("GET", self.bucket, "", asked, {})
            answer = self._pool.request("GET", url, headers=headers, retries=False, timeout=_TIMEOUT, redirect=False)
            if answer.status in _RETRIED:
                raise Away("the object store is overloaded")
            if answer.status != 200:
                raise _error(answer.status, answer.data, prefix)
            return listing.parse(answer.data)

        for attempt in range(1, _ATTEMPTS):
            with contextlib.suppress(Unavailable):
                return await self._run(once)
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        return await self._run(once)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _translated, work)

    def _make_bucket(self) -> None:
        if self._client.bucket_exists(self.bucket):
            return
        try:
            self._client.make_bucket(self.bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def pool_of(settings: ObjectSettings) -> urllib3.PoolManager:
    """Connections to the endpoint, with TLS as it is set."""
    if settings.insecure:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        return urllib3.PoolManager(maxsize=_THREADS, timeout=_TIMEOUT, retries=False, cert_reqs="CERT_NONE")
    return urllib3.PoolManager(
        maxsize=_THREADS, timeout=_TIMEOUT, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=settings.ca_file or None
    )


def _translated(work: Callable[[], T]) -> T:
    try:
        return work()
    except S3Error as error:
        raise _named_error(error.code or "", error.message or "", error.object_name or "") from error
    except (HTTPError, MinioException, OSError, ElementTree.ParseError) as error:
        raise Away(f"the object store does not answer ({type(error).__name__})") from error


def _error(status: int, data: bytes, key: str) -> AshoreError:
    code = next(iter(_texts(data, "Code")), "")
    message = next(iter(_texts(data, "Message")), "")
    if not code:
        if status in _RETRIED:
            return Away(f"the object store is overloaded or out of order (HTTP {status})")
        code = {404: "NoSuchKey", 412: "PreconditionFailed", 409: "Conflict", 403: "AccessDenied"}.get(
            status, f"HTTP {status}"
        )
    return _named_error(code, message, key)


def _named_error(code: str, message: str, key: str) -> AshoreError:
    if code == "NoSuchUpload":
        return NoSuchUpload("the object store does not know this upload any more")
    if code in ("NoSuchKey", "NotFound", "404"):
        return NotFound(f"there is no object '{printable(key, limit=200)}'")
    if code in ("PreconditionFailed", "ConditionalRequestConflict", "Conflict"):
        return Conflict("the file was replaced meanwhile")
    if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return Unavailable(f"the object store refuses Ashore's keys ({code})")
    return Unavailable(f"the object store failed: {printable(code, limit=60)} {printable(message, limit=200)}".rstrip())


def _texts(data: bytes, name: str) -> list[str]:
    """The texts of all elements called `name`, whatever their namespace; empty when this is no XML."""
    try:
        root = ElementTree.fromstring(data) if data.strip() else None
    except ElementTree.ParseError:
        return []
    if root is None:
        return []
    return [(element.text or "").strip() for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _parts(data: bytes) -> list[Part]:
    numbers, etags, sizes = (_texts(data, name) for name in ("PartNumber", "ETag", "Size"))
    try:
        return [Part(int(n), etag.strip('"'), int(size)) for n, etag, size in zip(numbers, etags, sizes, strict=True)]
    except ValueError as error:
        raise Unavailable("the object store answered something that is no list of parts") from error


def _etag(answer: _Answer) -> str:
    return answer.headers.get("ETag", "").strip('"')


def _condition(only_new: bool) -> dict[str, str]:
    return {"If-None-Match": "*"} if only_new else {}


def _meta_headers(metadata: Mapping[str, str] | None) -> dict[str, str]:
    return {_META + name: value for name, value in (metadata or {}).items()}
