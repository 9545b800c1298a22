"""Signs links to objects that work without a key, for as long as they say and not longer."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from urllib.parse import urlsplit

import minio

from storage.settings import ObjectSettings

_SAVED = {"response-content-disposition": "attachment"}
"""Browsers save the file: a page that somebody stored is not shown as one of the store's own."""


class LinkSigner:
    """Links at the address under which people reach the store, which may be another one than Ashore's."""

    def __init__(self, settings: ObjectSettings) -> None:
        self._bucket = settings.bucket
        address = urlsplit(settings.public_endpoint or settings.endpoint)
        self.host = address.netloc
        self.only_here = _is_loopback(address.hostname or "")
        """The address means the machine that asks it: links work on the gateway's own machine and nowhere else."""
        self._client = minio.Minio(
            address.netloc, access_key=settings.access_key, secret_key=settings.secret_key.get_secret_value(),
            secure=address.scheme == "https", region=settings.region,
        )  # fmt: skip

    def sign(self, key: str, seconds: int) -> str:
        """A URL for GET. Pure arithmetic: the store is not asked."""
        return self._client.get_presigned_url(
            "GET", self._bucket, key, expires=timedelta(seconds=seconds), response_headers=dict(_SAVED)
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "")
