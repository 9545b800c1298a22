"""The wire format between gateway and workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.frames import (
    LIMIT,
    Back,
    Decoder,
    Frame,
    FrameError,
    Hello,
    Kind,
    decode_size,
    encode,
    encode_size,
)  # fmt: skip
from tui.terminal import Capabilities, ColorDepth, ScreenSize

_FRAMES = st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=300)), max_size=8)


@given(frames=_FRAMES, cut=st.integers(min_value=1, max_value=50))
def test_frames_survive_any_cut(frames: list[tuple[Kind, bytes]], cut: int) -> None:
    stream = b"".join(encode(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    got = [f for at in range(0, len(stream), cut) for f in decoder.feed(stream[at : at + cut])]
    assert got == [Frame(kind, payload) for kind, payload in frames]


def test_long_data_becomes_several_frames() -> None:
    data = bytes(range(256)) * 9000
    frames = list(Decoder().feed(encode(Kind.DATA, data)))
    assert len(frames) > 1
    assert b"".join(frame.payload for frame in frames) == data


@pytest.mark.parametrize("stream", [b"D" + (LIMIT + 1).to_bytes(4, "big"), b"?\0\0\0\0", b"\xff\xff\xff\xff\xff"])
def test_nonsense_is_refused(stream: bytes) -> None:
    with pytest.raises(FrameError):
        list(Decoder().feed(stream))


def test_hello_round_trip() -> None:
    terminal = Capabilities("xterm-kitty", ColorDepth.TRUE, "gb18030", True, True, False, dark=False, language="zh")
    hello = Hello("alice", "192.0.2.7", "c1", "zh", terminal, ScreenSize(120, 40, 3, 4))
    assert Hello.from_payload(hello.to_payload()) == hello


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"user":"x"}', b"\xff"])
def test_a_broken_hello_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        Hello.from_payload(payload)


def test_back_round_trip() -> None:
    for back in (Back(7), Back(error="no such environment: 无")):
        assert Back.from_payload(back.to_payload()) == back
    with pytest.raises(FrameError):
        Back.from_payload(b'{"x":1}')


def test_sizes_are_clamped_on_the_wire() -> None:
    (frame,) = Decoder().feed(encode_size(ScreenSize(70000, 0)))
    assert decode_size(frame.payload) == ScreenSize(500, 24)
    with pytest.raises(FrameError):
        decode_size(b"\0" * 3)
