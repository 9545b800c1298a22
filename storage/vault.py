"""Seals small secrets (private keys) before they go into the database, with a key that never does."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from storage.errors import Unavailable


class Vault:
    """Symmetric sealing with one key."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)

    @classmethod
    def in_directory(cls, directory: Path) -> Vault:
        """The vault whose key is `vault.key` in the data directory; made on first use, readable by its owner only."""
        path = directory / "vault.key"
        if not path.exists():
            _create(path, Fernet.generate_key())
        return cls(path.read_bytes().strip())

    def seal(self, secret: str) -> str:
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret again; Unavailable if it was sealed with another key."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise Unavailable("a stored key cannot be opened: vault.key is not the one it was sealed with") from error


def _create(path: Path, key: bytes) -> None:
    # Linked into place, so that two processes that start together agree on one key.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
