"""SFTP version 3 on the wire, as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import sftp_packets as wire
from gateway.sftp_packets import Attributes, Fields, Frames, Kind, Malformed, Request


def packet(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, number) + body


def _sent(request: Request) -> bytes:
    if request.kind == Kind.WRITE:
        return write(request.id, request.body, request.offset, request.data)
    return packet(request.kind, request.id, request.body)


def write(number: int, handle: bytes, offset: int, data: bytes, padding: bytes = b"") -> bytes:
    body = wire.string(handle) + struct.pack(">Q", offset) + wire.string(data) + padding
    return packet(Kind.WRITE, number, body)


def cut(stream: bytes, sizes: list[int]) -> list[Request]:
    frames, found, at = Frames(), [], 0
    for size in [*sizes, len(stream)]:
        frames.feed(stream[at : at + size])
        at += size
        while request := frames.next():
            found.append(request)
    return found


_requests = st.one_of(
    st.builds(lambda number, body: Request(Kind.STAT, number, body), st.integers(0, 2**32 - 1), st.binary(max_size=40)),
    st.builds(
        Request,
        st.just(int(Kind.WRITE)),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=8),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=200),
    ),
)


@given(st.lists(_requests, max_size=8), st.lists(st.integers(1, 50), max_size=60))
def test_requests_survive_any_cut(requests: list[Request], sizes: list[int]) -> None:
    stream = b"".join(
        write(r.id, r.body, r.offset, r.data) if r.kind == Kind.WRITE else packet(r.kind, r.id, r.body)
        for r in requests
    )
    assert cut(stream, sizes) == requests


def test_padded_writes_of_old_rclone_are_taken() -> None:
    """pkg/sftp before February 2023 sends WRITE packets that are longer than their data."""
    stream = write(7, b"h", 0, b"data", padding=b"\0" * 500) + packet(Kind.CLOSE, 8, wire.string(b"h"))
    first, second = cut(stream, [100])
    assert (first.data, first.body, second.kind) == (b"data", b"h", Kind.CLOSE)


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", wire.LONGEST_PACKET + 1),
        struct.pack(">I", 0),
        packet(Kind.WRITE, 1, b"abc"),
        packet(Kind.WRITE, 1, struct.pack(">I", 2**31) + bytes(40)),
        packet(Kind.WRITE, 1, wire.string(b"h") + struct.pack(">QI", 0, 100) + b"short"),
    ],
)
def test_what_is_no_sftp_ends_it(stream: bytes) -> None:
    with pytest.raises(Malformed):
        cut(stream, [])


def test_fields_do_not_read_past_the_end() -> None:
    with pytest.raises(Malformed):
        Fields(struct.pack(">I", 2**32 - 1) + b"x").string()
    with pytest.raises(Malformed):
        Fields(b"\0\0\0\1").attributes()


def test_attributes_there_and_back() -> None:
    assert Attributes.parse(Fields(wire.attributes(2**40, 0o100644, 1_700_000_000))) == Attributes(
        2**40, 0o100644, 1_700_000_000
    )
    assert Attributes.parse(Fields(b"\0\0\0\0")) == Attributes()
    assert Attributes.parse(Fields(wire.attributes(0, 0, 2**40))).mtime == 2**32 - 1


def test_replies_say_their_length() -> None:
    for reply in (
        wire.status(1, 4, "Schöne Grüße"),
        wire.status_ok(1),
        wire.data(1, b"abc"),
        wire.names(1, [(b"a", b"long a", wire.attributes(1, 2, 3))]),
        wire.version([(b"x@y", b"1")]),
        wire.limits(1, 64),
        wire.statvfs(1, 1 << 40, 1 << 30),
    ):
        assert struct.unpack_from(">I", reply)[0] == len(reply) - 4


def test_long_names_look_like_ls() -> None:
    now = 1_700_000_000
    recent = wire.longname("a b", "-", 0o640, "alice", 5, now - 3600, now)
    assert recent == "-rw-r----- 1 alice    alice               5 Nov 14 21:13 a b"
    assert wire.longname("d", "d", 0o755, "x", 0, 0, now).endswith(" Jan  1  1970 d")
    assert "1970" in wire.longname("d", "d", 0o755, "x", 0, 10**20, now)
