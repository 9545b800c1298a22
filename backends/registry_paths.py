"""References of our own registry as records keep them: `/path`, without its host.

Our own child has another port after a start if somebody has taken its former one. A record with that port would lead a
build to them, with what is in the image; `/path` is nothing that anybody can write as a reference.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from backends.registry_login import is_ours
from backends.settings import RegistrySettings


def kept(settings: RegistrySettings, reference: str) -> str:
    """What a record has for `reference`: unchanged unless it is of our registry."""
    return reference.removeprefix(urlsplit(settings.url).netloc) if is_ours(settings, reference) else reference


def reachable(settings: RegistrySettings, path: str) -> str:
    """What `path` of a record is called now."""
    return f"{urlsplit(settings.url).netloc}{path}" if path.startswith("/") else path
