"""A client of one registry: the calls of the Registry API v2 (OCI distribution) that images need, and Harbor's lists.

It knows repositories, blobs and manifests by name and digest, and nothing of who owns them. Foreign errors become
`storage.errors`, chained; a password never gets into one. Bytes are streamed: nothing here holds a whole layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import aiohttp

from backends.registry_login import basic
from backends.settings import RegistrySettings
from storage.errors import AshoreError, BadInput, NotFound, Unavailable
from storage.names import printable

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFESTS = (DOCKER_MANIFEST, OCI_MANIFEST, DOCKER_LIST, OCI_INDEX)
_LARGEST_MANIFEST = 4 * 1024 * 1024
_PIECE = 256 * 1024
_PAGE = 100
_MOST_PAGES = 100
_FIELD = re.compile(r'([a-z_]+)="([^"]*)"')
_TOKEN_SPARE = 30.0
"""A token is fetched anew so many seconds before it ends; a long upload needs it at its beginning only."""
AWAY = "the image registry does not answer"
FORBIDDEN = "the image registry does not let the user of the settings do this"
_VERIFY_EXPIRED, _VERIFY_EARLY = 10, 9
_VERIFY_NAMES = (62, 64)
"""Numbers of OpenSSL (`openssl verify`): another host name, another address."""


class Unsupported(BadInput):
    """The registry does this for nobody: never, or not now, as one that is read only while it gives space back."""


@dataclass(frozen=True)
class Manifest:
    """A manifest as the registry has it."""

    body: bytes
    media_type: str
    digest: str

    @property
    def facts(self) -> Mapping[str, Any]:
        found = json.loads(self.body)
        return found if isinstance(found, dict) else {}


class Registry:
    """One registry with one login. Make it inside a running event loop; `close` it at the end."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._base = settings.url.rstrip("/")
        self._prefix = f"{settings.project}/" if settings.project else ""
        self._http: aiohttp.ClientSession | None = None
        self._challenge: Mapping[str, str] | None = None
        """How it wants to be asked; None before that is known, empty if anybody may ask."""
        self._tokens: dict[str, tuple[float, str]] = {}
        self._more: dict[str, str] = {}
        """What the registry wanted beside a scope when it refused a token for it."""

    @property
    def is_here(self) -> bool:
        """Engines on other machines cannot reach it."""
        return self._settings.is_here

    @property
    def project(self) -> str:
        """Harbor's project, or whatever the names of all images here begin with; may be empty."""
        return self._settings.project

    def place_of(self, reference: str) -> tuple[str, str] | None:
        """Repository and digest of a reference `HOST/…@sha256:…`; None if it is not kept here."""
        name, _, digest = reference.partition("@")
        if not digest or not name.startswith(self._settings.prefix):
            return None
        return name.removeprefix(self._settings.prefix), digest

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def check(self) -> None:
        """Return if it answers and knows our password; Unavailable with the reason otherwise."""
        self._challenge = None
        async with self._call("GET", "/v2/", scope=""):
            return

    # ---- blobs -----------------------------------------------------------------------------------------------
    async def has_blob(self, repository: str, digest: str) -> bool:
        return await self.blob_size(repository, digest) is not None

    async def blob_size(self, repository: str, digest: str) -> int | None:
        """Its bytes; None if it is not there."""
        with contextlib.suppress(NotFound):
            async with self._call("HEAD", self._path(repository, "blobs", digest), scope=repository) as answer:
                return int(answer.headers.get("Content-Length", "0"))
        return None

    async def blob(self, repository: str, digest: str, *, most: int = _LARGEST_MANIFEST) -> bytes:
        """A small blob, such as a configuration; BadInput if it is larger than `most` bytes."""
        async with self._call("GET", self._path(repository, "blobs", digest), scope=repository) as answer:
            return await _limited(answer, most)

    async def blob_pieces(self, repository: str, digest: str) -> AsyncGenerator[bytes]:
        """A blob of any size, as it comes. Whether it is complete, its size and its digest tell."""
        async with self._call("GET", self._path(repository, "blobs", digest), scope=repository) as answer:
            async for piece in answer.content.iter_chunked(_PIECE):
                yield piece

    @contextlib.asynccontextmanager
    async def upload(self, repository: str) -> AsyncIterator[BlobUpload]:
        """An upload that is thrown away if it is not finished."""
        path = self._path(repository, "blobs", "uploads") + "/"
        async with self._call("POST", path, scope=repository) as answer:
            upload = BlobUpload(self, repository, self._location(answer))
        try:
            yield upload
        finally:
            if not upload.is_finished:
                with contextlib.suppress(Unavailable, NotFound, BadInput):
                    await asyncio.shield(upload.cancel())

    # ---- manifests -------------------------------------------------------------------------------------------
    async def put_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest; its digest. BadInput: a blob that it names is missing."""
        path = self._path(repository, "manifests", reference)
        headers = {"Content-Type": media_type}
        async with self._call("PUT", path, scope=repository, data=body, headers=headers) as answer:
            return answer.headers.get("Docker-Content-Digest", "")

    async def manifest(self, repository: str, reference: str) -> Manifest:
        headers = {"Accept": ", ".join(_MANIFESTS)}
        path = self._path(repository, "manifests", reference)
        async with self._call("GET", path, scope=repository, headers=headers) as answer:
            body = await _limited(answer, _LARGEST_MANIFEST)
            return Manifest(body, answer.content_type, answer.headers.get("Docker-Content-Digest", ""))

    async def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove it with every tag of this repository that leads to it; no error if it is gone."""
        with contextlib.suppress(NotFound):
            async with self._call("DELETE", self._path(repository, "manifests", digest), scope=repository):
                return

    # ---- lists -----------------------------------------------------------------------------------------------
    async def repositories(self) -> Sequence[str]:
        """Names of all repositories that the login may list by `_catalog`, with the project of the settings."""
        names: list[str] = []
        path: str | None = f"/v2/_catalog?n={_PAGE}"
        for _ in range(_MOST_PAGES):
            if path is None:
                break
            async with self._call("GET", path, scope="registry:catalog:*") as answer:
                facts = json.loads(await _limited(answer, _LARGEST_MANIFEST))
                names += [str(name) for name in facts.get("repositories") or ()]
                path = self._next(answer)
        return sorted(names)

    async def tags(self, repository: str) -> Sequence[str]:
        """Empty for a repository that is not there."""
        with contextlib.suppress(NotFound):
            async with self._call("GET", self._path(repository, "tags", "list"), scope=repository) as answer:
                facts = json.loads(await _limited(answer, _LARGEST_MANIFEST))
                return sorted(str(tag) for tag in facts.get("tags") or ())
        return ()

    async def json_of(self, path: str) -> tuple[Any, int | None]:
        """The JSON of an address beside the Registry API, and its `X-Total-Count`; asked with user and password."""
        async with self._call("GET", path, scope=None) as answer:
            if answer.content_type != "application/json":  # a page for people, whatever the address
                return None, None
            total = answer.headers.get("X-Total-Count", "")
            return json.loads(await _limited(answer, _LARGEST_MANIFEST)), int(total) if total.isdigit() else None

    # ---- calls -----------------------------------------------------------------------------------------------
    def _path(self, repository: str, *parts: str) -> str:
        return "/".join(["/v2", quote(self._prefix + repository), *(quote(part, safe=":") for part in parts)])

    def _location(self, answer: aiohttp.ClientResponse) -> str:
        """Where an upload goes on; never to another host, or without TLS, where others would get our password."""
        url = urljoin(f"{self._base}/", answer.headers.get("Location", ""))
        if urlsplit(url).netloc != urlsplit(self._base).netloc:
            raise Unavailable("the image registry sends uploads to another host, which is not supported")
        if not self._is_as_safe(url):
            raise Unavailable("the image registry sends uploads to its address without TLS, which is refused")
        return url

    def _is_as_safe(self, url: str) -> bool:
        """Whether our password is as safe there as at the address of the settings."""
        there, ours = urlsplit(url), urlsplit(self._base)
        is_ours = there.netloc == ours.netloc and ours.scheme == "http"
        return there.scheme == "https" or (there.scheme == "http" and (is_ours or self._settings.insecure))

    def _next(self, answer: aiohttp.ClientResponse) -> str | None:
        link = answer.links.get("next")
        if link is None:
            return None
        parts = urlsplit(str(link["url"]))
        return f"{parts.path}?{parts.query}"

    @contextlib.asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        *,
        scope: str | None,
        data: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request. `path`: below the registry, or a whole URL of it. `scope`: the repository, None for Harbor."""
        url = path if path.startswith(("http://", "https://")) else self._base + path
        with _translated():
            answer = await self._asked(method, url, scope, data, headers)
            if answer.status == 401 and scope is not None and self._may_ask_again(answer, scope, data):
                answer.release()
                answer = await self._asked(method, url, scope, data, headers)
            async with answer:
                if answer.status >= 400:
                    raise await _refusal(answer)
                yield answer

    async def _asked(
        self,
        method: str,
        url: str,
        scope: str | None,
        data: bytes | AsyncIterable[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        sent = {**(headers or {}), **await self._login(scope)}
        return await self._session().request(method, url, data=data, headers=sent)

    def _may_ask_again(
        self, answer: aiohttp.ClientResponse, scope: str, data: bytes | AsyncIterable[bytes] | None
    ) -> bool:
        """Whether another token may help: the last one has ended early, or was for less than this takes.

        A body that is being made while it is sent can be sent once only; its token is as fresh as its upload.
        """
        challenge = _challenge(answer)
        if challenge.get("kind") != "bearer" or not (data is None or isinstance(data, bytes)):
            return False
        self._challenge = challenge
        self._tokens.pop(self._scope(scope), None)
        self._more[self._scope(scope)] = challenge.get("scope", "")
        return True

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
            connector = aiohttp.TCPConnector(ssl=_tls(self._settings), limit=16)
            # Without proxies of the environment: they would see the password.
            self._http = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self._http

    # ---- login -----------------------------------------------------------------------------------------------
    async def _login(self, scope: str | None) -> Mapping[str, str]:
        """The header by which a request is let in, known before its body is sent: a layer is sent once only."""
        if scope is None:
            return self._basic()
        if self._challenge is None:
            self._challenge = await self._first_challenge()
        kind = self._challenge.get("kind", "")
        if kind == "bearer":
            return {"Authorization": f"Bearer {await self._token(scope)}"}
        return self._basic() if kind == "basic" else {}

    def _basic(self) -> Mapping[str, str]:
        return {"Authorization": f"Basic {basic(self._settings)}"} if self._settings.user else {}

    async def _first_challenge(self) -> Mapping[str, str]:
        async with self._session().get(f"{self._base}/v2/") as answer:
            if answer.status == 200:
                return {}
            if answer.status == 400 and self._base.startswith("http://"):  # what Go's servers answer
                raise Unavailable("the image registry wants TLS: is it https:// ?")
            if answer.status != 401:
                raise Unavailable(f"what answers at the registry's address is none (status {answer.status})")
            return _challenge(answer)

    def _scope(self, scope: str) -> str:
        return scope if not scope or ":" in scope else f"repository:{self._prefix}{scope}:pull,push,delete"

    async def _token(self, scope: str) -> str:
        assert self._challenge is not None
        wanted = self._scope(scope)
        moment = asyncio.get_running_loop().time()
        until, token = self._tokens.get(wanted, (0.0, ""))
        if moment < until:
            return token
        realm = self._challenge.get("realm", "")
        if not self._is_as_safe(realm):
            raise Unavailable("the image registry wants its password at a place without TLS, which is refused")
        scopes = dict.fromkeys(filter(None, (wanted, self._more.get(wanted, ""))))
        query = [("service", self._challenge.get("service", "")), *(("scope", one) for one in scopes)]
        async with self._session().get(realm, params=query, headers=self._basic()) as answer:
            if answer.status >= 400:
                raise await _refusal(answer)
            facts = json.loads(await _limited(answer, _LARGEST_MANIFEST))
        token = str(facts.get("token") or facts.get("access_token") or "")
        if not token:
            raise Unavailable("the image registry's token service gives no tokens")
        self._tokens[wanted] = moment + float(facts.get("expires_in") or 60) - _TOKEN_SPARE, token
        return token


class BlobUpload:
    """A blob on its way: `send` once, then `finish` with its digest."""

    def __init__(self, registry: Registry, repository: str, url: str) -> None:
        self._registry = registry
        self._repository = repository
        self._url = url
        self.is_finished = False

    async def send(self, pieces: AsyncIterable[bytes]) -> None:
        """All of it. Pieces that end before the end leave an upload that can be cancelled; if they raise, registries do
        not know any more how much they have, and keep it until they sweep."""
        headers = {"Content-Type": "application/octet-stream"}
        async with self._registry._call(
            "PATCH", self._url, scope=self._repository, data=pieces, headers=headers
        ) as answer:
            self._url = self._registry._location(answer)

    async def finish(self, digest: str) -> None:
        """BadInput: what was sent has another digest."""
        mark = "&" if urlsplit(self._url).query else "?"
        url = f"{self._url}{mark}digest={quote(digest, safe=':')}"
        async with self._registry._call("PUT", url, scope=self._repository, data=b""):
            self.is_finished = True

    async def cancel(self) -> None:
        async with self._registry._call("DELETE", self._url, scope=self._repository):
            self.is_finished = True


def official_of(settings: RegistrySettings) -> Mapping[str, Registry]:
    """Registries that see one project of official images each, by what references of those begin with."""
    return {
        prefix: Registry(settings.model_copy(update={"project": project}))
        for project, prefix in settings.official.items()
    }


def _tls(settings: RegistrySettings) -> ssl.SSLContext | bool:
    if not settings.url.startswith("https://"):
        return True
    if settings.insecure:
        return False
    try:
        return ssl.create_default_context(cafile=settings.ca_file or None)
    except OSError as error:
        raise Unavailable(f"the registry's ca_file cannot be read: {error.strerror}") from error


async def _limited(answer: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_chunked(64 * 1024):
        body += piece
        if len(body) > most:
            raise BadInput("the image registry sent more than was expected")
    return bytes(body)


async def _refusal(answer: aiohttp.ClientResponse) -> AshoreError:
    said = ""
    with contextlib.suppress(aiohttp.ClientError, BadInput, ValueError, KeyError, IndexError, TypeError):
        found = json.loads(await _limited(answer, 64 * 1024))["errors"][0]
        said = printable(f"{found.get('code', '')} {found.get('message', '')}".strip(), limit=200)
    # The challenge of a token service says whether the token is bad, or for less than this.
    if answer.status == 403 or (answer.status == 401 and _is_too_little(answer)):
        return Unavailable(FORBIDDEN)
    if answer.status == 401:
        return Unavailable("the image registry does not take the user and password of the settings")
    if answer.status == 404:
        return NotFound(f"the image registry has no such thing ({said or 'status 404'})")
    if answer.status in (400, 405, 413, 415, 416):
        kind = Unsupported if answer.status == 405 else BadInput
        return kind(f"the image registry refused it: {said or f'status {answer.status}'}")
    return Unavailable(f"the image registry failed: {said or f'status {answer.status}'}")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise Unavailable(_against(error.certificate_error)) from error
    except aiohttp.ClientConnectorSSLError as error:
        raise Unavailable("what answers at the image registry's address speaks no TLS: is it http:// ?") from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise Unavailable(AWAY) from error
    except ValueError as error:  # from json
        raise Unavailable("the image registry sent what cannot be read") from error


def _against(error: Exception) -> str:
    """What is wrong with the registry's certificate."""
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    if code == _VERIFY_EXPIRED:
        return "the image registry's certificate has expired: it must be renewed"
    if code == _VERIFY_EARLY:
        return "the image registry's certificate is not valid yet: compare its clock with ours"
    if code in _VERIFY_NAMES:
        return "the image registry's certificate is for another name than that of backends.registry.url"
    return "the image registry's certificate is of an authority that is not known here: see backends.registry.ca_file"


def _challenge(answer: aiohttp.ClientResponse) -> Mapping[str, str]:
    """How a registry that has refused wants to be asked."""
    kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
    return {"kind": kind.lower(), **dict(_FIELD.findall(rest))}


def _is_too_little(answer: aiohttp.ClientResponse) -> bool:
    """A token was given and taken, but is not for this: the login is right, and its rights are few."""
    return _challenge(answer).get("error", "") == "insufficient_scope"
