"""Files from web servers: one file behind one URL, and the way in which other sources fetch theirs.

The connection goes to the address that the guard looked at, with the host's own name for TLS and in the request.
Redirects are followed here, each through the guard again. A transfer goes on with Range and If-Range.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import re
import socket
import ssl
import string
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import unquote, urljoin, urlsplit

from backends.settings import ImportSettings
from backends.sources.contract import Listing, RemoteFile, SourceAway, Stream
from backends.sources.guard import Guard, Host
from storage.errors import AshoreError, BadInput, NotAllowed, NotFound
from storage.names import printable

_PIECE = 1024 * 1024
_CONNECT_SECONDS = 15
_REDIRECTS = 5
_AGENT = "ashore"
_MOVED = (301, 302, 303, 307, 308)
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_UNITS = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CHARACTERS = frozenset(string.printable) - frozenset("\r\n")


@dataclass(frozen=True)
class _Asked:
    """One request and the beginning of its answer."""

    url: str
    connection: http.client.HTTPConnection
    sock: socket.socket
    """The connection's own: http.client forgets it when the answer is the last one."""
    answer: http.client.HTTPResponse

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


class HttpStream:
    """The body of one answer; a `Stream`."""

    def __init__(self, asked: _Asked, threads: Executor) -> None:
        connection, sock, answer, url = asked.connection, asked.sock, asked.answer, asked.url
        self.start, self.size = _extent(answer)
        self.etag = _validator(answer.headers)
        self.digest = _digest(answer)
        self.mtime = _modified(answer.headers)
        self.name = _name_of(answer.headers, url)
        self._connection = connection
        self._socket = sock
        self._answer = answer
        self._threads = threads
        self._position = self.start

    async def read(self) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            piece: bytes = await loop.run_in_executor(self._threads, self._answer.read, _PIECE)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceAway(f"the source stopped in the middle ({type(error).__name__})") from error
        self._position += len(piece)
        if not piece and self.size is not None and self._position < self.size:
            raise SourceAway(f"the source stopped after {self._position} of {self.size} bytes")
        return piece

    async def close(self) -> None:
        # A thread may be waiting for bytes: this wakes it.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        await asyncio.get_running_loop().run_in_executor(self._threads, self._close)

    def _close(self) -> None:
        self._answer.close()
        self._connection.close()


class Fetcher:
    """Asks web servers, in threads of its own."""

    def __init__(self, settings: ImportSettings, guard: Guard) -> None:
        self._settings = settings
        self._guard = guard
        self._threads = ThreadPoolExecutor(max(2, 2 * settings.files_parallel), thread_name_prefix="import")
        self._tls: ssl.SSLContext | None = None

    async def open(
        self, url: str, *, offset: int = 0, etag: str = "", headers: Mapping[str, str] | None = None
    ) -> HttpStream:
        """The bytes behind `url` from `offset`, if they are those that `etag` names; else from the beginning.

        `headers` go to the host of `url` only, never along with a redirect to another one.
        """
        asked = {"User-Agent": _AGENT, "Accept-Encoding": "identity", "Accept": "*/*", "Connection": "close"}
        if offset:
            asked["Range"] = f"bytes={offset}-"
            if etag:
                asked["If-Range"] = etag
        loop = asyncio.get_running_loop()
        work = partial(self._follow, url, asked, dict(headers or {}))
        return await loop.run_in_executor(self._threads, work)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)

    # ---- in worker threads -----------------------------------------------------------------------------------
    def _follow(self, url: str, asked: dict[str, str], own: dict[str, str]) -> HttpStream:
        origin, first = urlsplit(url)[:2], url
        for _ in range(_REDIRECTS + 1):
            host = self._guard.resolve(url)
            found = self._ask(host, url, asked | (own if urlsplit(url)[:2] == origin else {}))
            try:
                target = found.answer.getheader("Location") if found.answer.status in _MOVED else None
                if target is None and not (found.answer.status == 416 and "Range" in asked):
                    return self._stream(found)
            except BaseException:
                found.close()
                raise
            found.close()
            if target is None:
                # The file is shorter by now, so it is another one: from its beginning.
                asked = {name: value for name, value in asked.items() if name not in ("Range", "If-Range")}
                url = first
            else:
                url = _joined(url, target)
        raise BadInput(f"the source redirects more than {_REDIRECTS} times")

    def _ask(self, host: Host, url: str, headers: Mapping[str, str]) -> _Asked:
        connection = self._connect(host)
        sock = connection.sock
        assert sock is not None
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("GET", _ascii(target), headers=dict(headers))
            return _Asked(url, connection, sock, connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise SourceAway(f"'{printable(host.name, limit=100)}' does not answer ({type(error).__name__})") from error
        except BaseException:
            connection.close()
            raise

    def _connect(self, host: Host) -> http.client.HTTPConnection:
        """A connection to one of the addresses that were looked at; http.client never resolves the name itself."""
        kind = http.client.HTTPSConnection if host.secure else http.client.HTTPConnection
        connection = kind(host.name, host.port)
        reason: OSError | None = None
        for address in host.addresses:
            try:
                connection.sock = self._socket(host, address)
            except ssl.SSLCertVerificationError as error:
                words = printable(error.verify_message, limit=120)
                raise BadInput(
                    f"the certificate of '{printable(host.name, limit=100)}' is not trusted: {words}"
                ) from error
            except OSError as error:
                reason = error
            else:
                return connection
        raise SourceAway(f"'{printable(host.name, limit=100)}' cannot be reached") from reason

    def _socket(self, host: Host, address: str) -> socket.socket:
        plain = socket.create_connection((address, host.port), timeout=_CONNECT_SECONDS)
        plain.settimeout(self._settings.idle_seconds)
        if not host.secure:
            return plain
        try:
            return self._context().wrap_socket(plain, server_hostname=host.name)
        except BaseException:
            plain.close()
            raise

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                self._tls = ssl.create_default_context(cafile=self._settings.ca_file or None)
            except OSError as error:
                raise BadInput("the file of [imports] ca_file cannot be read") from error
        return self._tls

    def _stream(self, found: _Asked) -> HttpStream:
        answer = found.answer
        if answer.status not in (200, 206):
            raise _refusal(answer.status)
        if answer.length is None and not answer.chunked:
            raise BadInput("the source does not tell how large the file is, so nobody could tell whether it is whole")
        return HttpStream(found, self._threads)


@dataclass(frozen=True)
class HttpSource:
    """One file behind one URL; a `Source`."""

    url: str
    fetcher: Fetcher

    async def list(self) -> Listing:
        """Asks for the file and hangs up at once: many servers answer HEAD wrongly."""
        stream = await self.fetcher.open(self.url)
        try:
            file = RemoteFile(stream.name, size=stream.size, etag=stream.etag, digest=stream.digest, mtime=stream.mtime)
        finally:
            await stream.close()
        return Listing([file])

    async def open(self, file: RemoteFile, *, offset: int = 0, revision: str = "") -> Stream:
        return await self.fetcher.open(self.url, offset=offset, etag=file.etag)

    async def close(self) -> None:
        await self.fetcher.close()


def _refusal(status: int) -> AshoreError:
    if status in (404, 410):
        return NotFound("the source says that there is no such file")
    if status in (401, 403):
        return NotAllowed(f"the source does not let Ashore have this ({status})")
    if status in _TRANSIENT:
        return SourceAway(f"the source is overloaded or away ({status})")
    return BadInput(f"the source answers with {status}")


def _extent(answer: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the body begins, and the size of the whole file."""
    if answer.status == 206:
        match = _UNITS.fullmatch(answer.getheader("Content-Range", "").strip())
        if match is None:
            raise BadInput("the source sends a part of the file without saying which")
        return int(match[1]), int(match[2]) if match[2] != "*" else None
    return 0, answer.length


def _validator(headers: Message) -> str:
    """What If-Range takes: a strong ETag."""
    etag = headers.get("ETag", "").strip()
    return "" if etag.startswith("W/") or not set(etag) <= _CHARACTERS else etag[:200]


def _digest(answer: http.client.HTTPResponse) -> str:
    """The digest of the whole file, if the server gives one (RFC 9530, or the older Content-MD5)."""
    match = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", answer.getheader("Repr-Digest", ""))
    if match is not None:
        return _hexadecimal("sha256", match[1], 32)
    if answer.status == 200 and (md5 := answer.getheader("Content-MD5")):
        return _hexadecimal("md5", md5, 16)
    return ""


def _hexadecimal(name: str, text: str, size: int) -> str:
    try:
        digest = base64.b64decode(text, validate=True)
    except ValueError:
        return ""
    return f"{name}:{digest.hex()}" if len(digest) == size else ""


def _modified(headers: Message) -> int | None:
    try:
        return int(parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def _name_of(headers: Message, url: str) -> str:
    """A file name: what the server proposes, else the last part of the URL's path. Never a path."""
    proposed = headers.get_filename() or ""
    for candidate in (proposed, unquote(urlsplit(url).path)):
        name = candidate.replace("\\", "/").rstrip("/").rpartition("/")[2]
        name = "".join(c for c in name if c.isprintable()).strip()
        while len(name.encode()) > 255:
            name = name[:-1]
        if name not in ("", ".", ".."):
            return name
    return "file"


def _joined(url: str, target: str) -> str:
    try:
        joined = urljoin(url, target)
    except ValueError as error:
        raise BadInput("the source redirects to what is no address") from error
    if urlsplit(url).scheme == "https" and urlsplit(joined).scheme != "https":
        raise NotAllowed("the source redirects from https to something else")
    return joined.partition("#")[0]


def _ascii(target: str) -> str:
    """The path and query as a request line takes them; servers redirect to names with umlauts unquoted."""
    return "".join(c if 32 < ord(c) < 127 else "".join(f"%{b:02X}" for b in c.encode()) for c in target)
