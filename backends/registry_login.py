"""The registry's user and password in the forms that programs take them. Never on a command line, never in a log."""

from __future__ import annotations

import base64
import json
from urllib.parse import urlsplit

from backends.settings import RegistrySettings


def engine_auth(settings: RegistrySettings) -> str:
    """The header `X-Registry-Auth` of one pull or push by a Docker engine; empty without a user."""
    if not settings.user:
        return ""
    facts = {
        "username": settings.user,
        "password": settings.password.get_secret_value(),
        "serveraddress": urlsplit(settings.url).netloc,
    }
    return base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()


def auth_for(settings: RegistrySettings, reference: str) -> str:
    """`engine_auth` for what is kept in our registry, empty for anything else: whoever answers there is not ours."""
    return engine_auth(settings) if is_ours(settings, reference) else ""


def auth_file(settings: RegistrySettings) -> str:
    """What `--authfile` of skopeo and buildah reads; write it 0600 and remove it with the process."""
    if not settings.user:
        return json.dumps({"auths": {}})
    return json.dumps({"auths": {urlsplit(settings.url).netloc: {"auth": basic(settings)}}})


def is_ours(settings: RegistrySettings, reference: str) -> bool:
    """Whether a base is an image that the house keeps: nobody can write such a reference, so the login may go with it.

    Not by the host alone: other projects of the same registry are not ours, but those of official images are.
    """
    return bool(settings.prefix) and reference.startswith((settings.prefix, *settings.official.values()))


def basic(settings: RegistrySettings) -> str:
    """User and password for the header `Authorization: Basic`."""
    return base64.b64encode(f"{settings.user}:{settings.password.get_secret_value()}".encode()).decode()
