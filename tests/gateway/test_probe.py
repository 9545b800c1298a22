"""What terminals answer, and that none of it reaches the menu."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.probe import ReplyFilter, interpret
from tui.terminal import ColorDepth, capabilities

_GUESS = capabilities("xterm-256color", {})
_REPLIES = (
    b"\x1bP>|WezTerm 20240203\x1b\\", b"\x1b]11;rgb:1e1e/1e1e/2e2e\x1b\\", b"\x1b]11;rgb:ff/ff/ff\x07",
    b"\x1bP1$r0;48:2::1:2:3m\x1b\\", b"\x1bP0$r\x1b\\", b"\x1b[?2026;2$y", b"\x1b[1;3R",
)  # fmt: skip
_FENCE = b"\x1b[?62;4;22c"


@pytest.mark.parametrize(
    ("replies", "changes"),
    [
        (b"", {}),
        (b"\x1b]11;rgb:1e1e/1e1e/2e2e\x1b\\", {"dark": True}),
        (b"\x1b]11;rgb:ff/ff/ff\x07", {"dark": False}),
        (b"\x1bP1$r0;48:2::1:2:3m\x1b\\", {"color": ColorDepth.TRUE}),
        (b"\x1bP1$r48;2;1;2;3m\x1b\\", {"color": ColorDepth.TRUE}),
        (b"\x1bP1$r0;48;5;16m\x1b\\", {}),
        (b"\x1b[?2026;2$y", {"sync_output": True}),
        (b"\x1b[?2026;0$y", {}),
        (b"\x1b[1;3R", {"ambiguous_wide": True}),
        (b"\x1b[1;2R", {}),
    ],
)
def test_interpret(replies: bytes, changes: dict[str, object]) -> None:
    assert interpret(replies + _FENCE, _GUESS) == replace(_GUESS, **changes)  # type: ignore[arg-type]


def test_no_color_stays_no_color() -> None:
    guess = capabilities("xterm-256color", {"NO_COLOR": "1"})
    assert interpret(b"\x1bP1$r48;2;1;2;3m\x1b\\" + _FENCE, guess).color is ColorDepth.NONE


@given(
    pieces=st.lists(st.one_of(st.sampled_from(_REPLIES), st.text("aé数\r", min_size=1).map(str.encode)), max_size=8),
    cuts=st.lists(st.integers(2, 9), min_size=1, max_size=20),
)
def test_replies_and_typing_are_parted_however_they_arrive(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces) + _FENCE
    reply_filter, typed, at = ReplyFilter(), b"", 0
    while at < len(stream):
        # An ESC that ends a packet is a key, so no answer is cut right after it here.
        end = at + cuts[at % len(cuts)]
        while end < len(stream) and stream[end - 1] == 0x1B:
            end += 1
        typed += reply_filter.feed(stream[at:end])
        at = end
    assert typed == b"".join(piece for piece in pieces if piece not in _REPLIES)
    assert reply_filter.is_fenced


def test_keys_are_not_held_back() -> None:
    reply_filter = ReplyFilter()
    for key in (b"\x1b", b"\x1b[A", b"\x1bOP", b"\x1b[15~", b"\x1b[<0;5;5M", "数".encode()):
        assert reply_filter.feed(key) == key


def test_what_was_no_answer_is_released() -> None:
    reply_filter = ReplyFilter()
    assert reply_filter.feed(b"a\x1b]junk") == b"a"
    assert reply_filter.release() == b"\x1b]junk"
