"""The SFTP door without a network: what each request is answered with, and what a hostile client gets."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Mapping
from typing import cast

import pytest

from backends.files import Files
from gateway import sftp
from gateway import sftp_packets as wire
from gateway.channel import Consumer, Terminal
from gateway.sftp import SftpDoor
from gateway.sftp_packets import Code, Fields, Kind, OpenFlag
from storage.access import Caller
from storage.audit import AuditTrail
from storage.records import AuditEvent
from tests.gateway.data_tree import ALICE, MemoryTree

NO_ATTRS = b"\0\0\0\0"
ROOT = Caller("u0", "root-admin", True, "w0", "root-admin")


class Wire:
    """The client's end of a channel, in memory."""

    terminal: Terminal | None = None
    variables: Mapping[str, str] = {}
    is_closed = False

    def __init__(self) -> None:
        self.sent = bytearray()
        self.said = b""
        self.paused = 0
        self.unsent = 0

    def attach(self, consumer: Consumer) -> None: ...

    def detach(self, consumer: Consumer) -> None: ...

    def write(self, data: bytes) -> None:
        self.sent += data

    def write_stderr(self, data: bytes) -> None:
        self.said += data

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1

    def exit(self, status: int) -> None: ...

    def exit_with_signal(self, signal: str, core_dumped: bool, message: str) -> None: ...

    def backlog(self) -> int:
        return self.unsent


class Client:
    """Speaks raw SFTP to a door."""

    def __init__(self, audit: AuditTrail) -> None:
        self.tree = MemoryTree()
        self.wire = Wire()
        self.audit = audit
        self.door = SftpDoor(self.wire, cast("Files", self.tree), ALICE, audit)
        self.task = asyncio.create_task(self.door.run())
        self._number = 0

    def send(self, kind: int, *fields: bytes) -> None:
        self._number += 1
        body = b"".join(fields)
        self.door.data_received(struct.pack(">IBI", 5 + len(body), kind, self._number) + body)

    async def reply(self) -> tuple[int, Fields]:
        """The next reply's type and what follows its id."""
        async with asyncio.timeout(60):
            while len(self.wire.sent) < 9 or len(self.wire.sent) < self._length():  # noqa: ASYNC110
                await asyncio.sleep(0)
        length = self._length()
        packet = bytes(self.wire.sent[:length])
        del self.wire.sent[:length]
        return packet[4], Fields(packet[9:])

    async def ask(self, kind: int, *fields: bytes) -> tuple[int, Fields]:
        self.send(kind, *fields)
        return await self.reply()

    async def code(self, kind: int, *fields: bytes) -> tuple[int, str]:
        """The status code and the sentence."""
        reply, answer = await self.ask(kind, *fields)
        assert reply == Kind.STATUS
        return answer.uint32(), answer.string().decode()

    async def open(self, path: bytes, flags: int, attrs: bytes = NO_ATTRS) -> bytes:
        kind, answer = await self.ask(Kind.OPEN, text(path), struct.pack(">I", flags), attrs)
        assert kind == Kind.HANDLE
        return text(answer.string())

    async def write(self, handle: bytes, offset: int, data: bytes) -> tuple[int, str]:
        return await self.code(Kind.WRITE, handle, struct.pack(">Q", offset), text(data))

    async def end(self) -> list[AuditEvent]:
        """Send end of file; the events, newest first."""
        self.door.eof_received()
        assert await self.task == 0
        return list(await self.audit.search(ROOT, action="data."))

    def _length(self) -> int:
        return 4 + int.from_bytes(self.wire.sent[:4], "big")


def text(value: bytes) -> bytes:
    return wire.string(value)


PUT = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.TRUNCATE


@pytest.fixture
async def client(audit: AuditTrail) -> AsyncIterator[Client]:
    client = Client(audit)
    yield client
    client.door.closed()
    await client.task


async def test_version_and_extensions(client: Client) -> None:
    client.door.data_received(struct.pack(">IBI", 5, Kind.INIT, 6))
    await asyncio.sleep(0.01)
    assert client.wire.sent[4:9] == struct.pack(">BI", Kind.VERSION, 3)
    assert b"posix-rename@openssh.com" in client.wire.sent


async def test_end_of_file_without_close_finishes_nothing(client: Client) -> None:
    """A client that dies in an orderly way: its last bytes, end of file, and no CLOSE."""
    handle = await client.open(b"/d/x", PUT)
    await client.write(handle, 0, b"half")
    (event,) = await client.end()
    assert "/d/x" not in client.tree.files
    assert client.tree.parked["/d/x"] == b"half"
    assert event.outcome == "failed"
    assert event.detail["reason"] == "the connection ended before the file was closed"


async def test_what_came_before_end_of_file_is_done(client: Client) -> None:
    handle = await client.open(b"/d/x", PUT)
    client.send(Kind.WRITE, handle, struct.pack(">Q", 0), text(b"whole"))
    client.send(Kind.CLOSE, handle)
    (event,) = await client.end()
    assert client.tree.files["/d/x"][0] == b"whole"
    assert event.outcome == "ok"


async def test_close_and_setstat_in_one_go_are_done_in_order(client: Client) -> None:
    """WinSCP sends SETSTAT before it has the answer to CLOSE."""
    handle = await client.open(b"/d/x", PUT)
    client.send(Kind.WRITE, handle, struct.pack(">Q", 0), text(b"data"))
    client.send(Kind.CLOSE, handle)
    client.send(Kind.SETSTAT, text(b"/d/x"), struct.pack(">III", 8, 1, 1_500_000_000))
    for _ in range(3):
        _, answer = await client.reply()
        assert answer.uint32() == Code.OK
    assert client.tree.files["/d/x"] == (b"data", 1_500_000_000)


async def test_a_size_in_open_never_truncates(client: Client) -> None:
    """WinSCP tells the size that the file will have."""
    client.tree.put("/d/x", b"abc")
    size = struct.pack(">IQ", 1, 6)
    handle = await client.open(b"/d/x", OpenFlag.WRITE, size)
    await client.write(handle, 3, b"def")
    assert (await client.code(Kind.CLOSE, handle))[0] == Code.OK
    assert client.tree.files["/d/x"][0] == b"abcdef"


async def test_lftp_says_size_and_time_before_close(client: Client) -> None:
    handle = await client.open(b"/d/x", PUT)
    await client.write(handle, 0, b"data")
    attrs = struct.pack(">IQII", 9, 4, 7, 1_400_000_000)
    assert (await client.code(Kind.FSETSTAT, handle, attrs))[0] == Code.OK
    code, sentence = await client.code(Kind.FSETSTAT, handle, struct.pack(">IQ", 1, 2))
    assert (code, sentence) == (Code.FAILURE, "the size cannot be changed")
    await client.code(Kind.CLOSE, handle)
    assert client.tree.files["/d/x"] == (b"data", 1_400_000_000)


async def test_reading(client: Client) -> None:
    client.tree.put("/d/x", b"0123456789")
    handle = await client.open(b"/d/x", OpenFlag.READ)
    kind, answer = await client.ask(Kind.READ, handle, struct.pack(">QI", 4, 3))
    assert (kind, answer.string()) == (Kind.DATA, b"456")
    kind, answer = await client.ask(Kind.READ, handle, struct.pack(">QI", 8, 100))
    assert answer.string() == b"89"
    assert (await client.code(Kind.READ, handle, struct.pack(">QI", 10, 1)))[0] == Code.EOF
    assert (await client.code(Kind.READ, handle, struct.pack(">QI", 2**63, 1)))[0] == Code.EOF
    assert (await client.write(handle, 0, b"x"))[0] == Code.PERMISSION_DENIED
    assert (await client.code(Kind.CLOSE, handle))[0] == Code.OK
    assert (await client.code(Kind.CLOSE, handle))[0] == Code.FAILURE


async def test_one_reply_is_never_longer_than_the_limit(client: Client) -> None:
    handle = await client.open(b"/zeros-10000000", OpenFlag.READ)
    _, answer = await client.ask(Kind.READ, handle, struct.pack(">QI", 0, 2**32 - 1))
    assert len(answer.string()) == wire.LONGEST_DATA


async def test_open_without_create_needs_the_file(client: Client) -> None:
    for flags in (OpenFlag.WRITE, OpenFlag.WRITE | OpenFlag.TRUNCATE):
        assert (await client.code(Kind.OPEN, text(b"/d/no"), struct.pack(">I", flags), NO_ATTRS))[0] == 2
    client.tree.put("/d/x", b"")
    exclusive = PUT | OpenFlag.EXCLUSIVE
    code, sentence = await client.code(Kind.OPEN, text(b"/d/x"), struct.pack(">I", exclusive), NO_ATTRS)
    assert (code, sentence) == (Code.FAILURE, "'/d/x' exists already")


@pytest.mark.parametrize("path", [b"/d/a\x1b[2J", b"/d/\xff", b"/d/a\nb", b"/d/" + b"x" * 300, "/d/\u202etxt".encode()])
async def test_paths_that_nobody_may_use(client: Client, path: bytes) -> None:
    code, sentence = await client.code(Kind.OPEN, text(path), struct.pack(">I", PUT), NO_ATTRS)
    assert code == Code.FAILURE
    assert sentence.isprintable()


async def test_nobody_climbs_out(client: Client) -> None:
    for path in (b"/../../etc/passwd", b"../../etc/passwd", b"//etc/./passwd", b"/d/../etc//passwd"):
        kind, answer = await client.ask(Kind.REALPATH, text(path))
        assert kind == Kind.NAME
        assert answer.uint32() == 1
        assert answer.string() == b"/etc/passwd"


async def test_handles_are_bounded(client: Client) -> None:
    client.tree.put("/d/x", b"")
    for _ in range(64):
        await client.open(b"/d/x", OpenFlag.READ)
    code, sentence = await client.code(Kind.OPENDIR, text(b"/d"))
    assert code == Code.FAILURE
    assert "more than 64" in sentence


async def test_setstat(client: Client) -> None:
    client.tree.put("/d/x", b"abc")
    x = text(b"/d/x")
    assert (await client.code(Kind.SETSTAT, x, struct.pack(">II", 4, 0o600)))[0] == Code.OK
    assert (await client.code(Kind.SETSTAT, x, struct.pack(">IQ", 1, 3)))[0] == Code.OK
    assert (await client.code(Kind.SETSTAT, x, struct.pack(">IQ", 1, 2)))[0] == Code.OP_UNSUPPORTED
    assert (await client.code(Kind.SETSTAT, x, struct.pack(">IQ", 1, 0)))[0] == Code.OK
    assert client.tree.files["/d/x"][0] == b""
    assert (await client.code(Kind.SETSTAT, text(b"/d/no"), NO_ATTRS))[0] == Code.NO_SUCH_FILE


async def test_permissions_only_need_the_file(client: Client) -> None:
    """lftp sets them for each file of a mirror; they mean nothing here, so that little is asked."""
    client.tree.put("/d/x", b"abc")
    permissions = struct.pack(">II", 4, 0o600)
    assert (await client.code(Kind.SETSTAT, text(b"/d/x"), permissions))[0] == Code.OK
    assert (await client.code(Kind.SETSTAT, text(b"/d/no"), permissions))[0] == Code.NO_SUCH_FILE
    assert client.tree.checks == 2
    await client.code(Kind.SETSTAT, text(b"/d/x"), struct.pack(">III", 8, 1, 1_500_000_000))
    assert client.tree.files["/d/x"][1] == 1_500_000_000
    assert client.tree.checks == 2


async def test_extensions(client: Client) -> None:
    handle = await client.open(b"/d/x", PUT)
    assert (await client.code(Kind.EXTENDED, text(b"fsync@openssh.com"), handle))[0] == Code.OK
    assert client.tree.flushes == 1
    kind, answer = await client.ask(Kind.EXTENDED, text(b"statvfs@openssh.com"), text(b"/d"))
    assert kind == Kind.EXTENDED_REPLY
    assert answer.uint64() == 4096
    kind, answer = await client.ask(Kind.EXTENDED, text(b"expand-path@openssh.com"), text(b"~/d/x"))
    answer.uint32()
    assert answer.string() == b"/d/x"
    for kind, name in ((Kind.SYMLINK, b""), (Kind.READLINK, b""), (Kind.EXTENDED, text(b"hardlink@openssh.com"))):
        code, sentence = await client.code(kind, name + text(b"/d/x"), text(b"/d/y"))
        assert (code, sentence) == (Code.OP_UNSUPPORTED, "there are no links here")
    assert (await client.code(Kind.EXTENDED, text(b"nothing@example.com")))[0] == Code.OP_UNSUPPORTED
    assert (await client.code(99))[0] == Code.OP_UNSUPPORTED


async def test_only_a_size_that_is_a_promise_is_expected(client: Client) -> None:
    """WinSCP tells it in OPEN, lftp with the time before CLOSE; OpenSSH's lone size is where it was interrupted."""
    client.tree.put("/d/old", b"abc")
    size = struct.pack(">IQ", 1, 9)
    for path, flags, attrs in (
        (b"/d/new", PUT, size),
        (b"/d/zero", PUT, struct.pack(">IQ", 1, 0)),
        (b"/d/old", OpenFlag.WRITE | OpenFlag.CREATE, size),
    ):
        await client.code(Kind.CLOSE, await client.open(path, flags, attrs))
    assert client.tree.expected == {"/d/new": 9}
    handle = await client.open(b"/d/x", PUT)
    await client.write(handle, 0, b"data")
    assert (await client.code(Kind.FSETSTAT, handle, struct.pack(">IQ", 1, 4)))[0] == Code.OK
    assert "/d/x" not in client.tree.expected
    assert (await client.code(Kind.FSETSTAT, handle, struct.pack(">IQII", 9, 8, 7, 7)))[0] == Code.OK
    assert client.tree.expected["/d/x"] == 8


@pytest.mark.parametrize(
    ("sizes", "promised", "doubted"),
    [
        ([32768, 32768], False, True),
        ([32768, 4], False, False),
        ([32768], False, True),
        ([32767], False, False),
        ([32768, 32768], True, False),
        ([], False, False),
    ],
)
async def test_a_full_last_piece_is_doubtful(client: Client, sizes: list[int], promised: bool, doubted: bool) -> None:
    await client.ask(Kind.EXTENDED, text(b"limits@openssh.com"))
    handle, at = await client.open(b"/d/x", PUT), 0
    for size in sizes:
        await client.write(handle, at, bytes(size))
        at += size
    if promised:
        await client.code(Kind.FSETSTAT, handle, struct.pack(">IQII", 9, at, 7, 7))
    assert (await client.code(Kind.CLOSE, handle))[0] == Code.OK
    assert client.tree.doubted == (["/d/x"] if doubted else [])
    assert (b"ended as an interrupted upload does" in client.wire.said) == doubted


async def test_other_clients_are_not_doubted(client: Client) -> None:
    handle = await client.open(b"/d/x", PUT)
    await client.write(handle, 0, bytes(10))
    await client.code(Kind.CLOSE, handle)
    assert client.tree.doubted == []


async def test_copy_data(client: Client) -> None:
    client.tree.put("/d/x", b"0123456789")
    source, target = await client.open(b"/d/x", OpenFlag.READ), await client.open(b"/d/y", PUT)

    async def copy(read: bytes, offset: int, length: int, write: bytes, to: int) -> tuple[int, str]:
        span = struct.pack(">QQ", offset, length)
        return await client.code(Kind.EXTENDED, text(b"copy-data"), read, span, write, struct.pack(">Q", to))

    assert (await copy(source, 8, 0, target, 0))[0] == Code.OK
    assert (await copy(source, 0, 3, target, 2))[0] == Code.OK
    code, sentence = await copy(source, 8, 3, target, 5)
    assert (code, sentence) == (Code.FAILURE, "the file to copy from ended 1 bytes too early")
    assert (await copy(target, 0, 0, target, 0))[0] == Code.PERMISSION_DENIED
    assert (await copy(source, 0, 0, source, 0))[0] == Code.PERMISSION_DENIED
    assert (await client.code(Kind.CLOSE, target))[0] == Code.OK
    assert client.tree.files["/d/y"][0] == b"8901289"


async def test_check_file(client: Client) -> None:
    content = bytes(range(256)) * 4
    client.tree.put("/d/x", content)
    handle = await client.open(b"/d/x", OpenFlag.READ)

    async def ask(extension: bytes, what: bytes, algorithms: bytes, start: int, length: int, block: int) -> Fields:
        span = struct.pack(">QQI", start, length, block)
        kind, answer = await client.ask(Kind.EXTENDED, text(extension), what, text(algorithms), span)
        assert kind == Kind.EXTENDED_REPLY
        return answer

    answer = await ask(b"check-file-name", text(b"/d/x"), b"crc32,sha256,md5", 0, 0, 0)
    assert answer.string() == b"sha256"
    assert answer.rest() == hashlib.sha256(content).digest()
    answer = await ask(b"check-file-handle", handle, b"md5", 10, 100, 0)
    assert (answer.string(), answer.rest()) == (b"md5", hashlib.md5(content[10:110]).digest())
    answer = await ask(b"check-file", handle, b"sha1", 0, 0, 300)  # paramiko
    assert (answer.string(), answer.string()) == (b"check-file", b"sha1")
    blocks = [hashlib.sha1(content[at : at + 300]).digest() for at in range(0, 1024, 300)]
    assert answer.rest() == b"".join(blocks)
    client.tree.digests["/d/x", "md5"] = "ab" * 16
    answer = await ask(b"check-file-name", text(b"/d/x"), b"md5", 0, 0, 0)
    assert (answer.string(), answer.rest()) == (b"md5", b"\xab" * 16)
    answer = await ask(b"check-file-handle", handle, b"md5", 5000, 0, 0)
    assert (answer.string(), answer.rest()) == (b"md5", hashlib.md5(b"").digest())


@pytest.mark.parametrize(
    ("path", "algorithms", "block", "sentence"),
    [
        (b"/d/no", b"md5", 0, "there is no '/d/no'"),
        (b"/d", b"md5", 0, "'/d' is a directory"),
        (b"/d/x", b"crc32", 0, "none of these hashes"),
        (b"/d/x", b"md5", 255, "blocks of fewer than 256 bytes"),
        (b"/zeros-1000000000", b"md5", 256, "too many hashes"),
    ],
)
async def test_checks_that_are_refused(
    client: Client, path: bytes, algorithms: bytes, block: int, sentence: str
) -> None:
    client.tree.put("/d/x", b"x" * 1000)
    ask = text(b"check-file-name"), text(path), text(algorithms), struct.pack(">QQI", 0, 0, block)
    code, said = await client.code(Kind.EXTENDED, *ask)
    assert code in (Code.FAILURE, Code.NO_SUCH_FILE)
    assert sentence in said


async def test_listings_and_hashes_are_events(client: Client) -> None:
    client.tree.put("/d/x", b"x")
    _, answer = await client.ask(Kind.OPENDIR, text(b"/d"))
    handle = text(answer.string())
    while (await client.ask(Kind.READDIR, handle))[0] == Kind.NAME:
        pass
    await client.code(Kind.CLOSE, handle)
    await client.ask(Kind.EXTENDED, text(b"check-file-name"), text(b"/d/x"), text(b"md5"), struct.pack(">QQI", 0, 0, 0))
    digest, listing = await client.end()
    assert (digest.action, digest.thing, digest.detail) == ("data.digest", "/d/x", {"algorithm": "md5"})
    assert (listing.action, listing.thing, listing.detail) == ("data.list", "/d", {"entries": 1})


async def test_words_on_stderr_for_openssh_only(client: Client) -> None:
    await client.code(Kind.MKDIR, text(b"/sealed/x"), NO_ATTRS)
    assert client.wire.said == b""
    await client.ask(Kind.EXTENDED, text(b"limits@openssh.com"))
    await client.code(Kind.STAT, text(b"/no"))
    assert client.wire.said == b""
    for _ in range(1000):
        await client.code(Kind.MKDIR, text(b"/sealed/x"), NO_ATTRS)
    assert client.wire.said.startswith(b"'v1' is published and cannot be changed\n")
    assert len(client.wire.said) <= 4096


async def test_truncated_requests_do_not_end_the_channel(client: Client) -> None:
    for kind in (Kind.OPEN, Kind.CLOSE, Kind.READ, Kind.STAT, Kind.RENAME, Kind.SETSTAT, Kind.EXTENDED):
        assert (await client.code(kind, b"\0\0\0\x10ab"))[0] == Code.BAD_MESSAGE


async def test_a_packet_without_end_ends_the_channel(client: Client) -> None:
    client.door.data_received(struct.pack(">I", 2**31))
    assert await client.task == 1


async def test_a_client_that_does_not_read_is_not_served(client: Client) -> None:
    """PuTTY opens windows of 2 GiB: without a bound of ours each unread reply would stay in memory."""
    handle = await client.open(b"/zeros-1000000000", OpenFlag.READ)
    client.wire.unsent = sftp.LONGEST_BACKLOG + 1
    for block in range(10):
        client.send(Kind.READ, handle, struct.pack(">QI", block * 250_000, 250_000))
    await asyncio.sleep(0.05)
    assert not client.wire.sent
    client.wire.unsent = 0
    await client.reply()
    client.door.pause_writing()
    await asyncio.sleep(0.05)
    held = len(client.wire.sent)
    client.send(Kind.READ, handle, struct.pack(">QI", 0, 250_000))
    await asyncio.sleep(0.05)
    assert len(client.wire.sent) == held
    client.door.resume_writing()
    for _ in range(10):
        await client.reply()


async def test_what_waits_for_storage_is_bounded(client: Client) -> None:
    handle = await client.open(b"/d/x", PUT)
    await client.write(handle, 0, b"x")
    client.tree.gate.clear()
    for block in range(20):
        client.send(Kind.WRITE, handle, struct.pack(">Q", 1 + block * 250_000), text(bytes(250_000)))
    assert client.wire.paused == 1
    client.tree.gate.set()
    for _ in range(20):
        await client.reply()
    assert client.wire.paused == 0


async def test_events_of_changes(client: Client) -> None:
    client.tree.put("/d/x", b"")
    await client.code(Kind.REMOVE, text(b"/d/no"))
    await client.code(Kind.RENAME, text(b"/d/x"), text(b"/d/y"))
    await client.code(Kind.MKDIR, text(b"/sealed/x"), NO_ATTRS)
    events = await client.end()
    assert [(event.action, event.outcome) for event in events] == [
        ("data.mkdir", "refused"),
        ("data.remove", "failed"),
    ]
