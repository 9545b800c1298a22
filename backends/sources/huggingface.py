"""Repositories of the Hugging Face hub, or of a mirror: its own library lists them, the fetcher brings the bytes.

The library's own downloads go through a cache on disk, which would double every byte; its URLs, names, revisions and
hashes are what is used here. Only this file knows the library.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from backends.settings import ImportSettings
from backends.sources.contract import Listing, RemoteFile, SourceAway, Stream
from backends.sources.http import Fetcher
from storage.errors import AshoreError, BadInput, NotAllowed, NotFound
from storage.names import printable

T = TypeVar("T")


class HuggingFaceSource:
    """One repository at one revision; a `Source`. `kind`: dataset or model."""

    def __init__(self, settings: ImportSettings, fetcher: Fetcher, kind: str, repository: str, revision: str) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._kind = kind
        self._repository = repository
        self._revision = revision
        self._token = settings.hf_token.get_secret_value()

    async def list(self) -> Listing:
        return await asyncio.to_thread(_translated, self._list, self._repository)

    async def open(self, file: RemoteFile, *, offset: int = 0, revision: str = "") -> Stream:
        url = await asyncio.to_thread(self._url, file.location or file.path, revision or self._revision)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        # The revision is a commit and the digest is known: whatever CDN answers, the end tells whether it is right.
        return await self._fetcher.open(url, offset=offset, etag="" if file.digest else file.etag, headers=headers)

    async def close(self) -> None:
        await self._fetcher.close()

    # ---- in worker threads -----------------------------------------------------------------------------------
    def _list(self) -> Listing:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells every request
        # Without a token of ours the library must not find somebody's in the home directory.
        api = HfApi(endpoint=self._settings.hf_endpoint.rstrip("/"), token=self._token or False)
        facts = api.repo_info(self._repository, repo_type=self._kind, revision=self._revision or None, timeout=30)
        commit = facts.sha or self._revision
        files: list[RemoteFile] = []
        for entry in api.list_repo_tree(self._repository, recursive=True, revision=commit, repo_type=self._kind):
            if not isinstance(entry, RepoFile):
                continue
            digest = f"sha256:{entry.lfs.sha256}" if entry.lfs is not None else f"git:{entry.blob_id}"
            files.append(RemoteFile(entry.path, size=entry.size, digest=digest))
            if len(files) > self._settings.most_files:
                raise BadInput(f"the repository has more than {self._settings.most_files} files")
        if not files:
            raise NotFound(f"the repository '{printable(self._repository, limit=120)}' is empty")
        return Listing(sorted(files, key=lambda file: file.path), commit or "")

    def _url(self, path: str, revision: str) -> str:
        from huggingface_hub import hf_hub_url

        endpoint = self._settings.hf_endpoint.rstrip("/")
        return hf_hub_url(self._repository, path, repo_type=self._kind, revision=revision or None, endpoint=endpoint)


def _translated(work: Callable[[], T], repository: str) -> T:
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = printable(repository, limit=120)
    try:
        return work()
    except GatedRepoError as error:
        raise NotAllowed(f"'{name}' is gated: its owner has to let the token of [imports] hf_token in") from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"the hub has no repository '{name}', or none that Ashore may see") from error
    except RevisionNotFoundError as error:
        raise NotFound(f"'{name}' has no such revision") from error
    except HfHubHTTPError as error:
        raise _refusal(error.response.status_code if error.response is not None else 0, name) from error
    except HFValidationError as error:
        raise BadInput(f"'{name}' is no name of a repository") from error
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise SourceAway(f"the hub does not answer ({type(error).__name__})") from error


def _refusal(status: int, name: str) -> AshoreError:
    if status in (401, 403):
        return NotAllowed(f"the hub does not let Ashore see '{name}' ({status})")
    if status in (0, 429) or status >= 500:
        return SourceAway(f"the hub is overloaded or away ({status})")
    return BadInput(f"the hub answers with {status} for '{name}'")
