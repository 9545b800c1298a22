"""Signs S3 requests by their headers, for what a presigned URL cannot carry.

Metadata and the source of a copy travel in `x-amz-…` headers, and S3 takes those only if the signature covers them.
(Some services read them from the query of a presigned URL too; SeaweedFS silently does not.)
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlencode, urlsplit

import minio
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3

from storage.settings import ObjectSettings

_PAYLOAD = "UNSIGNED-PAYLOAD"


class Signer:
    """The signatures of one endpoint's key."""

    def __init__(self, settings: ObjectSettings) -> None:
        address = urlsplit(settings.endpoint)
        # A client without keys makes URLs without signatures: quoting and host names are its business.
        self._urls = minio.Minio(address.netloc, secure=address.scheme == "https", region=settings.region)
        self._endpoint = f"{address.scheme}://{address.netloc}"
        self._region = settings.region
        secret = settings.secret_key.get_secret_value()
        self._key = Credentials(settings.access_key, secret) if settings.access_key else None

    def sign(
        self, method: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """The URL and all headers of one request, good for fifteen minutes. Without a key: of the bucket itself."""
        url = urlsplit(self._url(method, bucket, key, query))
        if self._key is None:  # a public bucket
            return url.geturl(), dict(headers)
        moment = datetime.now(UTC)
        signed: dict[str, str | list[str] | tuple[str]] = {
            **headers,
            "Host": url.netloc,
            "x-amz-content-sha256": _PAYLOAD,
            "x-amz-date": moment.strftime("%Y%m%dT%H%M%SZ"),
        }
        sign_v4_s3(
            method=method, url=url, region=self._region, headers=signed, credentials=self._key,
            content_sha256=_PAYLOAD, date=moment,
        )  # fmt: skip
        return url.geturl(), {name: str(value) for name, value in signed.items()}

    def _url(self, method: str, bucket: str, key: str, query: Mapping[str, str]) -> str:
        if key:
            return self._urls.get_presigned_url(method, bucket, key, extra_query_params=dict(query))
        return f"{self._endpoint}/{bucket}?{urlencode(query, quote_via=quote)}"


def must_be_signed(headers: Mapping[str, str] | None) -> bool:
    """Whether a presigned URL cannot carry these."""
    return any(name.lower().startswith("x-amz-") for name in headers or {})
