"""A web server for imports: files with ranges and ETags, and every way in which servers and networks fail.

Also as much of the Hugging Face hub's API as its own library asks for when it lists a repository and fetches files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class WebFile:
    """A file, and how it is served."""

    content: bytes
    etag: str = ""
    """With its quotation marks; empty: of the content. `-`: none."""
    cuts: list[int] = field(default_factory=list)
    """Each answer ends after so many bytes of its own, in turn; what follows is whole."""
    ranges: bool = True
    redirect: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    tells_size: bool = True
    chunked: bool = False
    pause: float = 0.0
    """Seconds between pieces of 64 KiB."""

    @property
    def validator(self) -> str:
        if self.etag == "-":
            return ""
        return self.etag or f'"{hashlib.md5(self.content).hexdigest()}"'


@dataclass
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]


class Web:
    """The server: `files` by path, `asked` is what came."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, WebFile] = {}
        self.asked: list[Asked] = []
        self.repositories: dict[str, Repository] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.secure = tls is not None
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}"

    def ranges_asked(self, path: str) -> list[str]:
        return [one.headers.get("range", "") for one in self.asked if urlsplit(one.path).path == path]

    @contextlib.contextmanager
    def running(self) -> Iterator[Web]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def publish(
        self, name: str, kind: str, files: dict[str, bytes], *, lfs: frozenset[str] = frozenset()
    ) -> Repository:
        """A repository of the hub, at its branch `main`."""
        made = self.repositories[f"{kind}s/{name}"] = Repository(name, kind, files, lfs)
        prefix = "datasets/" if kind == "dataset" else ""
        for path, content in files.items():
            self.files[f"/{prefix}{name}/resolve/{made.commit}/{path}"] = WebFile(content)
        return made

    # ---- answers ---------------------------------------------------------------------------------------------
    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.path, headers))
        path = unquote(urlsplit(request.path).path)
        if path.startswith("/api/"):
            self._api(request, path)
            return
        file = self.files.get(path)
        if file is None:
            request.send_error(404)
        elif file.redirect:
            request.send_response(302)
            request.send_header("Location", file.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif file.status != 200:
            request.send_error(file.status)
        else:
            with contextlib.suppress(ConnectionError):
                self._send(request, file, headers)

    def _send(self, request: BaseHTTPRequestHandler, file: WebFile, headers: dict[str, str]) -> None:
        start, total = 0, len(file.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        same = headers.get("if-range", file.validator) in (file.validator, file.headers.get("Last-Modified"))
        if wanted and file.ranges and same:
            start = int(wanted[1])
        if start > total or (start == total and start):
            request.send_response(416)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        body = file.content[start:]
        if start:
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if file.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        elif file.tells_size:
            request.send_header("Content-Length", str(len(body)))
        if file.validator:
            request.send_header("ETag", file.validator)
        for name, value in file.headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        self._body(request, file, body)

    def _body(self, request: BaseHTTPRequestHandler, file: WebFile, body: bytes) -> None:
        cut = file.cuts.pop(0) if file.cuts else len(body)
        for position in range(0, min(cut, len(body)), 65536):
            piece = body[position : min(position + 65536, cut)]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if file.chunked else piece)
            time.sleep(file.pause)
        if cut < len(body):
            request.wfile.flush()
            request.connection.close()
        elif file.chunked:
            request.wfile.write(b"0\r\n\r\n")
        request.close_connection = True

    def _api(self, request: BaseHTTPRequestHandler, path: str) -> None:
        """`/api/{kind}s/{name}[/revision/{rev}]` and `/api/{kind}s/{name}/tree/{rev}`, as the hub answers."""
        for key, repository in self.repositories.items():
            root = f"/api/{key}"
            if path == root or path.startswith(f"{root}/revision/"):
                revision = path.removeprefix(root).removeprefix("/revision/")
                if revision not in ("", "main", repository.commit):
                    _json(request, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
                    return
                _json(request, 200, repository.info())
                return
            if path.startswith(f"{root}/tree/"):
                _json(request, 200, repository.tree())
                return
        _json(request, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})


@dataclass
class Repository:
    name: str
    kind: str
    files: dict[str, bytes]
    lfs: frozenset[str]

    @cached_property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(path.encode() + self.files[path] for path in sorted(self.files))).hexdigest()

    def info(self) -> dict[str, object]:
        siblings = [{"rfilename": path} for path in self.files]
        return {"_id": "1", "id": self.name, "modelId": self.name, "sha": self.commit, "private": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def tree(self) -> list[dict[str, object]]:
        return [self._entry(path, content) for path, content in self.files.items()]

    def _entry(self, path: str, content: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if path in self.lfs:
            sha256 = hashlib.sha256(content).hexdigest()
            entry |= {"oid": "0" * 40, "lfs": {"oid": sha256, "size": len(content), "pointerSize": 134}}
        return entry


def _json(request: BaseHTTPRequestHandler, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
    body = json.dumps(answer).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
