"""Recordings are asciicast v2, whole, and bounded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gateway.channel import Size
from gateway.recorder import Recorder


def lines_of(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def record(path: Path, *pieces: bytes, limit: int = 10**6) -> tuple[float, int, str]:
    recorder = Recorder(path, Size(100, 30), title="alice+train", kind="xterm-256color", limit=limit)
    recorder.start()
    for piece in pieces:
        recorder.output(piece)
    recorder.resized(Size(120, 40))
    return await recorder.close()


async def test_header_output_and_resize(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    _, size, digest = await record(path, b"hello\r\n")
    header, output, resize = lines_of(path)
    assert isinstance(header, dict)
    assert (header["version"], header["width"], header["height"]) == (2, 100, 30)
    assert isinstance(output, list)
    assert output[1:] == ["o", "hello\r\n"]
    assert isinstance(resize, list)
    assert resize[1:] == ["r", "120x40"]
    assert size == path.stat().st_size
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_half_a_character_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    text = "训练".encode()
    await record(path, text[:4], text[4:])
    shown = "".join(str(line[2]) for line in lines_of(path)[1:] if isinstance(line, list) and line[1] == "o")
    assert shown == "训练"


async def test_bytes_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    await record(path, bytes(range(256)), b"after")
    assert "after" in path.read_text()


async def test_it_ends_at_its_limit_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    await record(path, *[b"x" * 1000] * 50, limit=10_000)
    assert path.stat().st_size < 12_000
    assert "size limit" in path.read_text()
