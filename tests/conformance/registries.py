"""A real registry (Debian's docker-registry) on a free port, which knows one user, for tests that push and pull: with
a password or a token service, with and without TLS."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import secrets
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from pydantic import SecretStr

from backends.registry_login import auth_file
from backends.settings import RegistrySettings
from tests.storage.tls import Authority

USER, PASSWORD = "builder", "correct horse"


@contextlib.contextmanager
def served(
    folder: Path,
    *,
    data: Path | None = None,
    authority: Authority | None = None,
    tokens: Tokens | None = None,
    may_delete: bool = True,
    user: str = USER,
    behind: str = "",
    is_read_only: bool = False,
) -> Iterator[RegistrySettings]:
    """Until the end of the block; settings with which one may do everything there.

    With `data` it has what another one has put there. With an authority it is served by TLS, with its certificate.
    `behind`: the scheme that it believes to be reached by, as behind a proxy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{user}:{hashed}\n")
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    if behind:
        http["host"] = f"{behind}://127.0.0.1:{port}"
    if authority is not None:
        http["tls"] = {"certificate": str(authority.chain), "key": str(authority.key)}
    basic = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    config = {
        "version": "0.1", "log": {"level": "error"}, "http": http, "auth": tokens.config if tokens else basic,
        "storage": {
            "filesystem": {"rootdirectory": str(data or folder / "data")}, "delete": {"enabled": may_delete},
            "maintenance": {"readonly": {"enabled": is_read_only}},
        },
    }  # fmt: skip
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=subprocess.STDOUT
        )
    scheme, ca_file = ("https", str(authority.ca_file)) if authority else ("http", "")
    try:
        _wait(port)
        yield RegistrySettings(
            url=f"{scheme}://127.0.0.1:{port}", user=user, password=SecretStr(PASSWORD), ca_file=ca_file,
            insecure=authority is None,
        )  # fmt: skip
    finally:
        process.terminate()
        process.wait(20)


class Tokens:
    """A token service as Harbor and Docker Hub have one: it signs for what USER asks, as far as `allowed` says.

    Tokens hold for `seconds`. `front`: whose certificate it has, if any. `asked`: the scopes of each request, in order.
    """

    def __init__(self, folder: Path, *, seconds: int = 60, front: Authority | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority.made_in(folder, name="tokens")
        self.seconds = seconds
        self.allowed = {"pull", "push", "delete", "*"}
        self.asked: list[list[str]] = []
        self._key = serialization.load_pem_private_key(self.authority.key.read_bytes(), None)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._scheme = "https" if front else "http"
        if front is not None:
            self._server.socket = front.context().wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def config(self) -> Mapping[str, object]:
        realm = f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/token"
        facts = {"realm": realm, "service": "tests", "issuer": "tests", "rootcertbundle": str(self.authority.chain)}
        return {"token": facts}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if self.headers.get("Authorization") != f"Basic {wanted}":
                    self._say(401, {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
                    return
                query = parse_qs(urlsplit(self.path).query)
                scopes = [one for line in query.get("scope", []) for one in line.split(" ")]
                tokens.asked.append(scopes)
                self._say(200, {"token": tokens.sign(scopes), "expires_in": tokens.seconds})

            def do_POST(self) -> None:  # Docker asks so first (OAuth 2), and then as above
                self._say(404, {})

            def _say(self, status: int, facts: object) -> None:
                body = json.dumps(facts).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def sign(self, scopes: Sequence[str]) -> str:
        """A JSON web token that docker-registry takes: its certificate goes along."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": sorted(set(actions.split(",")) & self.allowed)})
        certificate = x509.load_pem_x509_certificate(self.authority.chain.read_bytes())
        moment = int(time.time())
        claims = {
            "iss": "tests", "sub": USER, "aud": "tests", "exp": moment + self.seconds, "nbf": moment - 10,
            "iat": moment, "jti": secrets.token_hex(8), "access": access,
        }  # fmt: skip
        chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        signed = b".".join([_base64({"typ": "JWT", "alg": "ES256", "x5c": chain}), _base64(claims)])
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        r, s = utils.decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return b".".join([signed, base64.urlsafe_b64encode(raw).rstrip(b"=")]).decode()


def _base64(facts: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(facts).encode()).rstrip(b"=")


def make_tiny(name: str) -> None:
    """An image of a shell and what it needs, two megabytes, in this machine's Docker."""
    files = ["/bin/sh", "/bin/chown", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        for file in files:
            tar.add(os.path.realpath(file), arcname=file.lstrip("/"))
    subprocess.run(["docker", "import", "-", name], input=buffer.getvalue(), check=True, capture_output=True)


def push_base(registry: RegistrySettings, folder: Path, image: str) -> str:
    """Bring an image that Docker has here to the registry; its name there."""
    (folder / "config.json").write_text(auth_file(registry))
    target = f"{registry.prefix}base/{image}"
    subprocess.run(["docker", "tag", image, target], check=True, capture_output=True)
    try:
        subprocess.run(["docker", "--config", str(folder), "push", target], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rmi", target], check=True, capture_output=True)
    return target


def _wait(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
