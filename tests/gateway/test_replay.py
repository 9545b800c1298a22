"""Recordings play with their timing, and do nothing to a terminal but show text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import replay
from storage.errors import BadInput, NotFound

HEADER = {"version": 2, "width": 80, "height": 24}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.cast"


def write(file: Path, *events: list[Any], header: object = HEADER, end: str = "") -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in (header, *events)) + end)


async def played(file: Path, **options: Any) -> tuple[str, list[float]]:
    """What was shown, and the pauses in whole tenths of a second."""
    pieces: list[str] = []
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    await replay.play(file, pieces.append, sleep=sleep, **options)
    return "".join(pieces), pauses


async def test_output_only(file: Path) -> None:
    write(file, [0.1, "o", "a"], [0.2, "i", "typed"], [0.3, "r", "100x30"], [0.4, "m", ""], [0.5, "o", "文\r\n"])
    assert (await played(file))[0] == "a文\r\n"


async def test_timing_speed_and_idle_limit(file: Path) -> None:
    write(file, [10, "o", "a"], [110, "o", "b"])
    _, (first, second) = await played(file)
    assert first == pytest.approx(10, abs=1)
    assert second == pytest.approx(110, abs=1)  # nobody really slept, so the second one is still all of it
    _, (first, second) = await played(file, speed=10.0, idle_limit=20.0)
    assert first == pytest.approx(1, abs=0.5)
    assert second == pytest.approx(3, abs=0.5)


async def test_time_that_runs_backwards_does_not_matter(file: Path) -> None:
    write(file, [5, "o", "a"], [1, "o", "b"], [5, "o", "c"])
    text, pauses = await played(file)
    assert text == "abc"
    assert max(pauses) < 6


async def test_a_recording_that_is_cut_off_plays_to_its_end(file: Path) -> None:
    write(file, [0, "o", "a"], end='[0.1, "o", "b')
    assert (await played(file))[0] == "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "hello\n",
        '{"version": 1}\n',
        "[]\n",
        '{"version": 2}\n[1, "o"]\n[2, "o", "x"]\n',
        '{"version": 2}\nx\n\n',
    ],
)
async def test_what_is_no_recording(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(BadInput):
        await played(file)


async def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(NotFound):
        await played(file)


DANGEROUS = [
    "\x1b]52;c;aGVsbG8=\x07",  # writes the clipboard
    "\x1b]52;c;?\x1b\\",
    "\x1b]4;1;rgb:00/00/00\x07",
    "\x1b]11;?\x07",
    "\x1bP$qm\x1b\\",
    "\x1bP+q544e\x1b\\",
    "\x1b_Gi=1;AAAA\x1b\\",
    "\x1b^message\x1b\\",
    "\x9d52;c;aGVsbG8=\x9c",
    "\x90$qm\x9c",
    "\x1b[c",
    "\x1b[>0c",
    "\x1b[6n",
    "\x1b[?6n",
    "\x1b[21t",
    "\x1b[?2026$p",
    "\x1b[?u",
    "\x1b[6\x07n",
    "\x1b[>0q",
    "\x1b[1;1;1;1;1;1*y",
    "\x1b[i",
    "\x1bZ",
    "\x9a",
    "\x05",
]
HARMLESS = [
    "\x1b[1;31m", "\x1b[2J", "\x1b[?1049h", "\x1b]0;title\x07", "\x1b]8;;https://example.org\x1b\\", "\x1b[3;4H",
    "\x1b[s", "\x1b(B", "\x1b7", "\x1b[u", "文",
]  # fmt: skip


@pytest.mark.parametrize("sequence", DANGEROUS)
def test_questions_and_side_effects_are_left_out(sequence: str) -> None:
    for cut in range(len(sequence) + 1):
        harmless = replay.Harmless()
        assert harmless.feed("a" + sequence[:cut]) + harmless.feed(sequence[cut:] + "b") == "ab"


@pytest.mark.parametrize("sequence", HARMLESS)
def test_what_is_only_shown_stays(sequence: str) -> None:
    for cut in range(len(sequence) + 1):
        harmless = replay.Harmless()
        assert harmless.feed("a" + sequence[:cut]) + harmless.feed(sequence[cut:] + "b") == f"a{sequence}b"


@given(st.lists(st.sampled_from([*DANGEROUS, *HARMLESS, "\x1b", "x", "\x1b]", "\x1b\\"]), max_size=8), st.data())
def test_pieces_make_no_difference(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    whole, pieces = replay.Harmless(), replay.Harmless()
    assert whole.feed(text) == pieces.feed(text[:cut]) + pieces.feed(text[cut:])


@pytest.mark.parametrize(
    "text",
    ["\x1b\x05Z", "\x1b\x1b]52;c;x\x07Z", "\x1b\x1b]52;c;x\x07[6n", "\x1b[6\x1b]52;c;x\x07n", "\x1b\x07]52;c;x\x07"],
)
def test_what_is_left_out_does_not_join_its_neighbours(text: str) -> None:
    shown = replay.Harmless().feed(text)
    assert "\x1b" not in shown


def test_a_sequence_without_an_end_is_not_kept_for_ever() -> None:
    harmless = replay.Harmless()
    assert harmless.feed("\x1b]52;c;") == ""
    for _ in range(100):
        assert harmless.feed("A" * 4096) == ""
    assert len(harmless._rest) <= 8192
    assert harmless.feed("\x07after") == "after"
