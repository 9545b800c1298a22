"""One import, from the listing of its source to the last file: what travels, what is checked, what goes on.

Files are written through the tree, with the rights of the person who asked, into the upload engine that SFTP uses: a
file appears when it is whole. A source that stops is asked again from where it stopped; a process that dies leaves
parked uploads and rows, from which the next one goes on. No SSH and no SQL here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace

from backends.import_rows import ImportRows, Mark
from backends.settings import ImportSettings
from backends.sources.contract import RemoteFile, Source, SourceAway, Stream
from storage.access import Caller
from storage.errors import AshoreError, BadInput, Conflict, NotFound, OverQuota
from storage.names import printable
from storage.records import Import, ImportFile
from storage.tree import Node, Tree, Writer, normalize

_GIB = 1024**3
_NOTE_SECONDS = 1.0
_RATE_NOTES = 10
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_READ = 4 * 1024 * 1024
_RESUME_WORTH = 4 * 1024 * 1024
"""A process that dies leaves nothing of smaller files to go on with."""


class ImportRun:
    """One run of one import in this process."""

    def __init__(
        self,
        row: Import,
        caller: Caller,
        tree: Tree,
        source: Source,
        rows: ImportRows,
        settings: ImportSettings,
        *,
        pause: float = _FIRST_PAUSE,
    ) -> None:
        self._row = row
        self._caller = caller
        self._tree = tree
        self._source = source
        self._rows = rows
        self._settings = settings
        self._pause = pause
        self._root = f"/{row.kind}s/{row.name}/{row.version}"
        self._files_done = self._bytes_done = 0
        self._on_the_way: dict[int, int] = {}
        """Position → bytes received of files that are not done."""
        self._unnoted: set[int] = set()
        self._marks: dict[int, Mark] = {}
        self._seen: deque[tuple[float, int]] = deque(maxlen=_RATE_NOTES)
        self._revision = row.revision

    @property
    def received(self) -> int:
        """Bytes, those of unfinished files included."""
        return self._bytes_done + sum(self._on_the_way.values())

    async def run(self) -> None:
        """Return when every file is there. ImportEnded if somebody ended it; Unavailable if trying later may help."""
        if not self._row.is_listed:
            await self._list()
        self._files_done, self._bytes_done = await self._rows.done_so_far(self._row.id)
        over = asyncio.Event()
        ticker = asyncio.create_task(self._tell_progress(over), name=f"progress of import {self._row.id}")
        work = asyncio.create_task(self._fetch_all(), name=f"files of import {self._row.id}")
        try:
            await asyncio.wait((ticker, work), return_when=asyncio.FIRST_COMPLETED)
            if ticker.done():
                ticker.result()  # raises: it never ends by itself
            work.result()
        finally:
            over.set()
            work.cancel()
            await asyncio.gather(ticker, work, return_exceptions=True)
            # Also of a run that failed: the next one goes on with what is noted.
            with contextlib.suppress(AshoreError):
                await self._note()
        if self._unnoted:
            await self._note()

    async def drop_unfinished(self) -> None:
        """After somebody ended the import: files of which a part is parked are not gone on with."""
        for file in await self._rows.open_files(self._row.id, -1, 10 * self._settings.files_parallel):
            path = f"{self._root}/{file.path}"
            with contextlib.suppress(AshoreError):
                await self.drop_parked(path)

    # ---- the listing -----------------------------------------------------------------------------------------
    async def _list(self) -> None:
        listing = await self._source.list()
        if len(listing.files) > self._settings.most_files:
            raise BadInput(f"the source has more than {self._settings.most_files} files")
        files = [_checked(file) for file in listing.files]
        if len({file.path for file in files}) != len(files):
            raise BadInput("two files of the source would have one name")
        self._check_size(sum(file.size or 0 for file in files))
        await self._rows.set_listing(self._row.id, replace(listing, files=files))
        self._revision = listing.revision

    def _check_size(self, size: int) -> None:
        if size > self._settings.most_gib * _GIB:
            raise OverQuota(f"an import may have {self._settings.most_gib} GiB at most")

    # ---- progress --------------------------------------------------------------------------------------------
    async def _tell_progress(self, over: asyncio.Event) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NOTE_SECONDS):
                    await over.wait()
                return
            await self._note()

    async def _note(self) -> None:
        moment, received, done = asyncio.get_running_loop().time(), self.received, frozenset(self._unnoted)
        self._seen.append((moment, received))
        before, then = self._seen[0]
        marks, self._marks = self._marks, {}
        rate = max(0, int((received - then) / (moment - before))) if moment > before else 0
        await self._rows.note(
            self._row.id, done, marks, files_done=self._files_done, bytes_done=received, rate=rate, reason=""
        )
        self._unnoted -= done

    # ---- the files -------------------------------------------------------------------------------------------
    async def _fetch_all(self) -> None:
        queue: asyncio.Queue[ImportFile | None] = asyncio.Queue(2 * self._settings.files_parallel)
        workers = [self._work(queue) for _ in range(self._settings.files_parallel)]
        await _all(f"files of import {self._row.id}", self._fill_queue(queue), *workers)

    async def _fill_queue(self, queue: asyncio.Queue[ImportFile | None]) -> None:
        after = -1
        while files := await self._rows.open_files(self._row.id, after, 500):
            for file in files:
                await queue.put(file)
            after = files[-1].position
        for _ in range(self._settings.files_parallel):
            await queue.put(None)

    async def _work(self, queue: asyncio.Queue[ImportFile | None]) -> None:
        while (file := await queue.get()) is not None:
            node = await self._fetch(file)
            self._on_the_way.pop(file.position, None)
            self._files_done += 1
            self._bytes_done += node.size
            if file.size != node.size:
                await self._rows.set_file(self._row.id, file.position, size=node.size)
            self._unnoted.add(file.position)

    async def _fetch(self, file: ImportFile) -> Node:
        path = f"{self._root}/{file.path}"
        there = await self._stat(path)
        if there is not None and not there.unfinished and await self._is_right(file, there, path):
            return there
        transfer = _Transfer(self, file, path)
        try:
            return await transfer.run(resume=there is not None and there.unfinished)
        except BaseException:
            await transfer.abandon()
            raise

    async def _stat(self, path: str) -> Node | None:
        try:
            return await self._tree.stat(self._caller, path)
        except NotFound:
            return None

    async def _is_right(self, file: ImportFile, node: Node, path: str) -> bool:
        """Whether a file that is there already has the digest that the source gives; only if that is known."""
        algorithm, _, wanted = file.digest.partition(":")
        if not wanted or node.size != file.size or algorithm == "git":
            return False
        return await self._tree.digest(self._caller, path, algorithm) == wanted

    # ---- for transfers ---------------------------------------------------------------------------------------
    async def open_source(self, file: ImportFile, offset: int) -> Stream:
        remote = RemoteFile(file.path, file.location, file.size, file.etag, file.digest)
        return await self._source.open(remote, offset=offset, revision=self._revision)

    async def open_writer(self, path: str, *, truncate: bool) -> Writer:
        return await self._tree.open_writer(self._caller, path, truncate=truncate)

    async def remember(self, file: ImportFile, *, keep: bool = True, **values: str | int | None) -> None:
        """Know more of a file from now on; `keep`: also in the next process."""
        for name, value in values.items():
            setattr(file, name, value)  # the row is detached: this is our copy
        if keep:
            await self._rows.set_file(self._row.id, file.position, **values)

    async def digest_of(self, path: str, hasher: _Hasher, size: int) -> str:
        """Of the first `size` bytes of a file, read back."""
        reader = await self._tree.open_reader(self._caller, path)
        try:
            offset = 0
            while piece := await reader.read(offset, min(_READ, size - offset)):
                await asyncio.to_thread(hasher.update, piece)
                offset += len(piece)
        finally:
            await reader.close()
        return hasher.result

    async def drop_parked(self, path: str) -> None:
        """Throw away what is parked under a name; a whole file of that name stays."""
        there = await self._stat(path)
        if there is not None and there.unfinished:
            await self.remove(path)

    async def remove(self, path: str) -> None:
        with contextlib.suppress(NotFound):
            await self._tree.remove(self._caller, path)

    def mark(self, position: int, mark: Mark) -> None:
        """Note with the next progress how far a file is."""
        self._marks[position] = mark

    def progress(self, position: int, received: int) -> None:
        self._on_the_way[position] = received
        self._check_size(self.received)

    @property
    def attempts(self) -> int:
        return self._settings.attempts

    def pause_after(self, failures: int) -> float:
        return float(min(_LONGEST_PAUSE, self._pause * 2 ** (failures - 1)))


class _Transfer:
    """One file on its way from the source into the tree."""

    def __init__(self, run: ImportRun, file: ImportFile, path: str) -> None:
        self._run = run
        self._file = file
        self._path = path
        self._writer: Writer | None = None
        self._hasher: _Hasher | None = None
        """Of everything from the first byte on; None if the beginning was not seen here."""
        self._prefix: _Hasher | None = None
        """The same, for sources that give no digest: what the next life would have to go on with."""
        self._begun = False
        self._resumed = False
        self._marked = 0.0

    async def run(self, *, resume: bool) -> Node:
        await self._open(resume=resume)
        failures, mark = 0, self._size
        while True:
            try:
                await self._receive()
                break
            except SourceAway:
                failures, mark = (1 if self._size > mark else failures + 1), self._size
                if failures >= self._run.attempts:
                    raise
                await asyncio.sleep(self._run.pause_after(failures))
        return await self._finish()

    async def abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.abandon()

    @property
    def _size(self) -> int:
        assert self._writer is not None
        return self._writer.size

    async def _open(self, *, resume: bool) -> None:
        """A writer; one that goes on where an earlier life of this import stopped, if what follows can be told to be
        the same. What somebody else has parked under this name is not gone on with."""
        if resume and self._file.prefix and (self._file.digest or self._file.etag):
            self._writer = await self._run.open_writer(self._path, truncate=False)
            if 0 < self._size <= (self._file.size or self._size):
                self._begun = self._resumed = True
                return
            await self.abandon()
        await self._start_anew()

    async def _start_anew(self) -> None:
        await self.abandon()
        self._writer = await self._run.open_writer(self._path, truncate=True)
        self._begun = self._resumed = False
        self._start_hashing()

    def _start_hashing(self) -> None:
        self._hasher = _Hasher.of(self._file.digest, self._file.size)
        self._prefix = None if self._file.digest else _Hasher("sha256", hashlib.sha256)

    async def _receive(self) -> None:
        """Everything from where the writer stands to the end of the file."""
        if self._size and not (self._file.etag or self._file.digest):
            await self._start_anew()  # nothing would tell whether the rest belongs to the beginning
        if self._begun and self._file.size == self._size:
            return
        stream = await self._run.open_source(self._file, self._size)
        try:
            drop = await self._agree(stream)
            while piece := await stream.read():
                if drop:
                    piece, drop = piece[drop:], max(0, drop - len(piece))
                if piece:
                    await self._take(piece)
        finally:
            await stream.close()

    async def _agree(self, stream: Stream) -> int:
        """Begin anew if the file is another one by now; how many bytes of the stream are there already."""
        file = self._file
        known_by_digest = bool(file.digest and not stream.digest)
        if file.etag and stream.etag and stream.etag != file.etag and not known_by_digest:
            await self._run.remember(file, size=stream.size, etag=stream.etag, digest=stream.digest)
            await self._start_anew()
        if stream.start > self._size:
            raise SourceAway("the file has changed at its source")
        if stream.size is not None and file.size is not None and stream.size != file.size:
            raise BadInput(f"'{printable(file.path)}' has changed at its source: it has another size now")
        if not self._begun:
            await self._begin(stream)
        return self._size - stream.start

    async def _begin(self, stream: Stream) -> None:
        """Keep what the first answer tells: size, ETag, digest, time."""
        assert self._writer is not None
        file = self._file
        known: dict[str, str | int | None] = {}
        if file.size is None and stream.size is not None:
            known["size"] = stream.size
        if not file.etag and stream.etag:
            known["etag"] = stream.etag
        if not file.digest and stream.digest:
            known["digest"] = stream.digest
        if known:
            await self._run.remember(file, keep=stream.size is None or stream.size >= _RESUME_WORTH, **known)
        if file.size is not None:
            self._writer.expect_size(file.size)
        if stream.mtime is not None:
            self._writer.set_mtime(stream.mtime)
        if self._size == 0:
            self._start_hashing()
        self._begun = True

    async def _take(self, piece: bytes) -> None:
        assert self._writer is not None
        offset = self._size
        if self._file.size is not None and offset + len(piece) > self._file.size:
            raise BadInput(f"the source sends more than the {self._file.size} bytes of '{printable(self._file.path)}'")
        if (hasher := self._hasher or self._prefix) is not None:
            await asyncio.gather(self._writer.write(offset, piece), asyncio.to_thread(hasher.update, piece))
        else:
            await self._writer.write(offset, piece)
        self._run.progress(self._file.position, self._size)
        self._mark()

    def _mark(self) -> None:
        moment = asyncio.get_running_loop().time()
        if self._resumed or self._size < _RESUME_WORTH or moment - self._marked < _NOTE_SECONDS:
            return
        self._marked = moment
        sha256 = "" if self._prefix is None else self._prefix.result.partition(":")[2]
        self._run.mark(self._file.position, Mark(self._size, sha256))

    async def _finish(self) -> Node:
        """The file appears if it is what the source says; what was received in two lives is read back for that."""
        assert self._writer is not None
        if self._file.digest and self._hasher is not None and self._hasher.result != self._file.digest:
            await self.abandon()
            await self._run.drop_parked(self._path)
            raise _wrong(self._file)
        writer, self._writer = self._writer, None
        node = await writer.finish()
        if self._resumed and not await self._begins_right():
            await self._run.remove(self._path)
            raise _wrong(self._file)
        return node

    async def _begins_right(self) -> bool:
        """Whether the bytes of an earlier life belong to this file."""
        file = self._file
        hasher = _Hasher.of(file.digest, file.size)
        if hasher is not None:
            return await self._run.digest_of(self._path, hasher, file.size or 0) == file.digest
        hasher = _Hasher("sha256", hashlib.sha256)
        return await self._run.digest_of(self._path, hasher, file.prefix) == f"sha256:{file.prefix_sha256}"


class _Hasher:
    """A running digest of the kind that a source gave; `result` is written as the source's."""

    def __init__(self, name: str, algorithm: Callable[[], hashlib._Hash]) -> None:
        self._name = name
        self._state = algorithm()

    @classmethod
    def of(cls, digest: str, size: int | None) -> _Hasher | None:
        """For `sha256:…`, `md5:…` or `git:…`; None if there is nothing to compare with."""
        name = digest.partition(":")[0]
        if name == "sha256":
            return cls(name, hashlib.sha256)
        if name == "md5":
            return cls(name, lambda: hashlib.md5(usedforsecurity=False))
        if name == "git" and size is not None:
            return cls(name, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
        return None

    def update(self, data: bytes) -> None:
        self._state.update(data)

    @property
    def result(self) -> str:
        return f"{self._name}:{self._state.hexdigest()}"


async def _all(name: str, *works: Coroutine[None, None, None]) -> None:
    """Return when all have; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(work, name=name) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _wrong(file: ImportFile) -> Conflict:
    return Conflict(f"'{printable(file.path)}' did not arrive as its source says: its hash is another one")


def _checked(file: RemoteFile) -> RemoteFile:
    """The file under a path that stays below the version; BadInput otherwise."""
    clean = normalize(file.path).strip("/")
    if clean != file.path or not clean:
        raise BadInput(f"'{printable(file.path, limit=200)}' is no path of a file")
    return file
