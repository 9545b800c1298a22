"""Archives as they come: whole ones, broken ones, and ones that were made to do harm."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator

import pytest

from backends.compute.tar_stream import Entry, Kind, TarStream
from storage.errors import Unavailable


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        yield b""  # nothing is no end


def packed(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mtime: float = 7) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mtime = kind, target, mtime
    return made


async def unpacked(data: bytes, size: int = 1000) -> list[tuple[Entry, bytes]]:
    stream = TarStream(pieces(data, size))
    found = []
    while (entry := await stream.next()) is not None:
        found.append((entry, b"".join([bytes(piece) async for piece in stream.content()])))
    return found


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 513, 100_000])
async def test_what_tarfile_packs_is_read(form: int, size: int) -> None:
    content = bytes(range(256)) * 5
    data = packed(
        (info("./", tarfile.DIRTYPE), b""), (info("./a"), content), (info("./empty"), b""),
        (info("./sub/link", tarfile.SYMTYPE, "../a"), b""), (info("./second", tarfile.LNKTYPE, "./a"), b""),
        (info("./fifo", tarfile.FIFOTYPE), b""), form=form,
    )  # fmt: skip
    assert await unpacked(data, size) == [
        (Entry(".", Kind.FOLDER, 0, 7, ""), b""), (Entry("./a", Kind.FILE, 1280, 7, ""), content),
        (Entry("./empty", Kind.FILE, 0, 7, ""), b""), (Entry("./sub/link", Kind.LINK, 0, 7, "../a"), b""),
        (Entry("./second", Kind.HARD_LINK, 0, 7, "./a"), b""), (Entry("./fifo", Kind.OTHER, 0, 7, ""), b""),
    ]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_long_and_odd_names(form: int) -> None:
    long = "/".join(["d" * 200] * 4) + "/ä"
    odd = "raw-\udcff\udcfe"
    data = packed((info(long), b"1"), (info("l", tarfile.SYMTYPE, long), b""), (info(odd, mtime=1.5), b"2"), form=form)
    found = [(entry.name, entry.target, entry.mtime, content) for entry, content in await unpacked(data)]
    assert found == [(long, "", 7, b"1"), ("l", long, 7, b""), (odd, "", 1, b"2")]


async def test_entries_may_be_passed_over() -> None:
    data = packed((info("a"), b"x" * 5000), (info("b"), b"y" * 700))
    stream = TarStream(pieces(data, 300))
    assert (first := await stream.next()) is not None
    async for _ in stream.content():
        break
    assert (second := await stream.next()) is not None
    assert (first.name, second.name) == ("a", "b")
    assert await stream.next() is None


async def test_what_ends_too_early_is_never_taken_for_whole() -> None:
    """A daemon that fails half-way closes the stream without the two blocks of zeros that end an archive."""
    data = packed((info("a"), b"x" * 700))
    whole = 512 + 1024 + 512  # header, content, and the first block of zeros
    for length in (0, 1, 511, 512, 800, 1024, 1535, 1536, whole - 1):
        with pytest.raises(Unavailable, match="ends too early"):
            await unpacked(data[:length])


async def test_noise_is_refused() -> None:
    with pytest.raises(Unavailable, match="is broken"):
        await unpacked(b"<html>" * 1000)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
async def test_a_header_that_claims_gigabytes_takes_no_memory(kind: bytes) -> None:
    """An extended header is read as a whole by tarfile, however large it says it is."""
    made = info("x", kind)
    made.size = 8 * 1024**3
    with pytest.raises(Unavailable, match="is broken"):
        await unpacked(made.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


@pytest.mark.parametrize(
    "records", [b"8 path=x\n", b"x path=x\n", b"99999 path=x\n", b"0 path=x\n", b"14 size=-o-o-o\n", b"3 \n"]
)
async def test_an_extended_header_of_nonsense_is_refused(records: bytes) -> None:
    made = info("x", tarfile.XHDTYPE)
    made.size = len(records)
    block = made.tobuf(tarfile.GNU_FORMAT) + records + bytes(-len(records) % 512)
    with pytest.raises(Unavailable, match="is broken"):
        await unpacked(block + packed((info("a"), b"")))


async def test_a_negative_size_is_refused() -> None:
    """Base 256 can be negative; it must not turn the reader back."""
    header = bytearray(info("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(Unavailable, match="is broken"):
        await unpacked(bytes(header) + bytes(1024))


async def test_the_size_of_a_link_is_no_content() -> None:
    """Some archives give links the size of what they lead to."""
    made = info("l", tarfile.SYMTYPE, "a")
    made.size = 5000
    data = made.tobuf(tarfile.GNU_FORMAT) + packed((info("a"), b"1"))
    assert [entry.name for entry, _ in await unpacked(data)] == ["l", "a"]
