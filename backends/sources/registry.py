"""From what people write after `--from` to the source that it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from backends.settings import ImportSettings
from backends.sources.contract import Source
from backends.sources.guard import Guard, parse
from backends.sources.http import Fetcher, HttpSource
from backends.sources.huggingface import HuggingFaceSource
from backends.sources.s3 import S3Source
from storage.errors import BadInput, NotAllowed
from storage.names import printable

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_WORDS = ("datasets", "models", "spaces", "kernels")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True)
class SourceAddress:
    """An address, taken apart. `place`: URL, bucket or repository; `rest`: prefix or revision."""

    kind: str
    """`http`, `s3`, `hf-dataset` or `hf-model`."""
    place: str
    rest: str = ""

    @property
    def shown(self) -> str:
        """As everybody may see it: without the query, which may hold a signature."""
        if self.kind == "http":
            parts = urlsplit(self.place)
            return printable(f"{parts.scheme}://{parts.netloc}{parts.path}")
        if self.kind == "s3":
            return printable(f"s3://{self.place}/{self.rest}")
        return f"hf://{'datasets/' * (self.kind == 'hf-dataset')}{self.place}{f'@{self.rest}' * bool(self.rest)}"

    @property
    def written(self) -> str:
        """The whole of it; `parse_source` understands it again."""
        return self.place if self.kind == "http" else self.shown


def parse_source(text: str) -> SourceAddress:
    """`https://…`, `s3://bucket/prefix`, `hf://datasets/org/name[@rev]` or `hf://org/model[@rev]`."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        raise BadInput("an address to import from begins with https://, s3:// or hf://")
    if scheme.lower() == "hf":
        return _hugging_face(rest)
    if scheme.lower() == "s3":
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise BadInput(f"'{printable(bucket, limit=80)}' is no name of a bucket: write s3://BUCKET/PREFIX")
        if any(ord(c) < 32 or ord(c) == 127 for c in prefix) or len(prefix) > 1024:
            raise BadInput("this prefix is too long or has control characters in it")
        return SourceAddress("s3", bucket, prefix)
    parts = parse(text.strip())
    return SourceAddress("http", parts._replace(fragment="").geturl())


def connect(address: SourceAddress, settings: ImportSettings) -> Source:
    """The source of an address; NotAllowed or BadInput if this house does not import from there. No I/O."""
    if not settings.enabled:
        raise NotAllowed("imports are switched off here")
    if address.kind == "s3":
        if settings.s3_buckets and address.place not in settings.s3_buckets:
            raise NotAllowed(f"imports from the bucket '{printable(address.place)}' are not allowed here")
        return S3Source(settings, address.place, address.rest)
    if address.kind == "http":
        guard = Guard(settings)
        guard.check(address.place)
        return HttpSource(address.place, Fetcher(settings, guard))
    guard = Guard(settings, settings.hf_endpoint)
    kind = address.kind.removeprefix("hf-")
    return HuggingFaceSource(settings, Fetcher(settings, guard), kind, address.place, address.rest)


def _hugging_face(rest: str) -> SourceAddress:
    rest, _, revision = unquote(rest).strip("/").partition("@")
    kind = "hf-model"
    for word, meant in (("datasets/", "hf-dataset"), ("models/", "hf-model")):
        if rest.startswith(word):
            kind, rest = meant, rest.removeprefix(word)
    if not _REPOSITORY.fullmatch(rest) or ".." in rest or rest.split("/")[0] in _WORDS:
        raise BadInput(
            f"'{printable(rest, limit=120)}' is no repository: write hf://datasets/ORG/NAME[@REV] or hf://ORG/MODEL[@REV]"
        )
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise BadInput(f"'{printable(revision, limit=80)}' is no revision of a repository")
    return SourceAddress(kind, rest, revision)
