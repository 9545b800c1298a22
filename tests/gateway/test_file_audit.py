"""SFTP that passes by is understood, however the stream is cut, and never by keeping what it carries."""

from __future__ import annotations

import asyncio
import struct

from hypothesis import given
from hypothesis import strategies as st

from gateway.file_audit import FileAudit, Skimmer
from gateway.sftp_packets import Kind
from storage.access import Caller
from storage.audit import AuditTrail


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def write(request: int, offset: int, data: bytes) -> bytes:
    return packet(Kind.WRITE, number(request) + text(b"h1") + struct.pack(">Q", offset) + text(data))


OPEN = packet(Kind.OPEN, number(1) + text("/home/训练.bin".encode()) + number(0x1A) + number(0))
HANDLE = packet(Kind.HANDLE, number(1) + text(b"h1"))
CLOSE = packet(Kind.CLOSE, number(9) + text(b"h1"))


@given(st.lists(st.tuples(st.sampled_from([Kind.WRITE, Kind.DATA, Kind.STAT]), st.binary(max_size=3000))), st.data())
def test_packets_are_found_whatever_the_cuts(packets: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(packet(kind, body) for kind, body in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    skimmer = Skimmer()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += list(skimmer.feed(stream[start:end]))
    assert [kind for kind, _ in found] == [kind for kind, _ in packets]
    for (_, head), (_, body) in zip(found, packets, strict=True):
        assert body.startswith(head)


async def test_a_file_that_was_written_is_one_event(audit: AuditTrail, alice: Caller, admin: Caller) -> None:
    files = FileAudit(alice, "train", audit)
    files.input(OPEN)
    files.output(HANDLE)
    files.input(write(2, 0, b"a" * 100_000) + write(3, 100_000, b"b" * 50))
    files.input(CLOSE)
    await asyncio.sleep(0)
    await files.close()
    (event,) = await audit.search(admin, action="file.")
    assert (event.action, event.outcome, event.thing) == ("file.write", "ok", "train")
    assert event.detail["path"] == "/home/训练.bin"
    assert (event.detail["bytes_written"], event.detail["end"], event.detail["writes"]) == (100_050, 100_050, 2)


async def test_a_handle_that_was_never_closed_is_told_as_such(audit: AuditTrail, alice: Caller, admin: Caller) -> None:
    files = FileAudit(alice, "train", audit)
    files.input(OPEN)
    files.output(HANDLE)
    files.input(write(2, 0, b"abc"))
    await files.close()
    (event,) = await audit.search(admin, action="file.")
    assert (event.outcome, event.detail["bytes_written"]) == ("failed", 3)


async def test_changes_by_name_are_events(audit: AuditTrail, alice: Caller, admin: Caller) -> None:
    files = FileAudit(alice, "train", audit)
    files.input(packet(Kind.REMOVE, number(1) + text(b"/a\x1b[2J")))
    files.input(packet(Kind.EXTENDED, number(2) + text(b"posix-rename@openssh.com") + text(b"/a") + text(b"/b")))
    files.output(packet(Kind.STATUS, number(1) + number(0)) + packet(Kind.STATUS, number(2) + number(4)))
    await files.close()
    rename, remove = await audit.search(admin, action="file.")
    assert (remove.action, remove.outcome) == ("file.remove", "ok")
    assert "\x1b" not in str(remove.detail)
    assert (rename.action, rename.outcome, rename.detail["path"]) == ("file.rename", "failed", "/a → /b")


async def test_garbage_is_let_pass_and_told_once(audit: AuditTrail, alice: Caller, admin: Caller) -> None:
    files = FileAudit(alice, "train", audit)
    files.input(b"\x00\x00\x00\x00" * 4)
    files.input(OPEN)
    await files.close()
    assert [event.action for event in await audit.search(admin)][:1] == ["sftp.unreadable"]
