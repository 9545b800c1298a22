"""Logs of builds: what a terminal may see of them, and reading while they grow."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from backends import build_log
from backends.build_log import LogWriter, clean_line, is_written, read_log
from backends.builders.contract import Fair

_MIB = 1024 * 1024


def written(path: Path, *pieces: bytes, most: int = _MIB) -> bytes:
    with LogWriter(path, most=most, told=lambda: None) as writer:
        for piece in pieces:
            writer.write(piece)
    return b"".join(read_log(path, 0))


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("plain \t text", "plain \t text"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[1;38:5:9mbold", "\x1b[1;38:5:9mbold\x1b[0m"),
        ("\x1b[2Jgone\x1b[10;10H", "gone"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1b]52;c;never ends", ""),
        ("\x1bP1$r\x1b\\x\x1bc", "x"),
        ("a\x07\x08\x00b\x9b2Jc\x7f", "ab2Jc"),
        ("\u202eabc\u2028", "abc"),
        ("\x1b[?25l50%\x1b[?25h", "50%"),
        ("\x1b[31", ""),
        (f"a\x1b[{'1' * 5_000}mb", "ab"),
        ("\x1b", ""),
        ("\u4f60\u597d", "\u4f60\u597d"),
    ],
)
def test_colours_stay_and_everything_else_that_a_terminal_obeys_goes(line: str, clean: str) -> None:
    assert clean_line(line) == clean
    assert Text.from_ansi(clean_line(line)).plain == Text.from_ansi(clean).plain


@pytest.mark.parametrize(
    ("begun", "rest", "shown"),
    [
        (b"waiting", b" is over\n", (b"waiting", b"waiting is over\n")),
        (b"\x1b[31mred", b" end\n", (b"\x1b[31mred\x1b[0m", b"\x1b[31mred\x1b[0m end\n")),
        (b"a\x1b]0;ti", b"tle\x07b\n", (b"a", b"ab\n")),
        (b"50%\r", b"\n", (b"50%", b"50%\n")),
        ("\u4f60\u597d".encode()[:5], b"\xbd\n", ("\u4f60".encode(), "\u4f60\u597d\n".encode())),
    ],
)
def test_the_beginning_of_a_line_that_does_not_end_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes, rest: bytes, shown: tuple[bytes, bytes]
) -> None:
    """Nothing of it is written twice, and what was read stays what it was: offsets stay right."""
    path = tmp_path / "log"
    with LogWriter(path, most=_MIB, told=lambda: None) as writer:
        writer.write(begun)
        writer.show_started()
        assert path.read_bytes() == b""
        monkeypatch.setattr(build_log, "STARTED_SECONDS", 0.0)
        for _ in range(3):
            writer.show_started()
        before = b"".join(read_log(path, 0))
        writer.write(rest)
        after = b"".join(read_log(path, len(before)))
    assert (before, before + after) == shown
    assert path.read_bytes() == shown[1]


def test_a_line_that_was_begun_has_an_end_before_others_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the process died over it, and when the log is too long for the rest."""
    monkeypatch.setattr(build_log, "STARTED_SECONDS", 0.0)
    path = tmp_path / "log"
    with LogWriter(path, most=_MIB, told=lambda: None) as writer:
        writer.write(b"a")
        writer.show_started()
        writer.say("ours", colour="1")
        writer.write(b"b")
        writer.show_started()
        before = path.read_bytes()
    assert before == b"a\n\x1b[1mours\x1b[0m\nb"
    path.write_bytes(before)  # as if it had died
    with LogWriter(path, most=len(before), told=lambda: None) as writer:
        writer.write(b" end\nc\n")
    assert path.read_bytes() == before + b"\n end\nc\n"


@given(st.text("a\x1b[]m0;2JH\x07\\\x9bP\n\r\u202e\xe9", max_size=200), st.integers(1, 50))
def test_pieces_of_any_size_make_the_same_log(text: str, size: int) -> None:
    """Also when an escape sequence or a character is cut in two."""
    import tempfile

    data = text.encode()
    with tempfile.TemporaryDirectory() as folder:
        whole = written(Path(folder, "a"), data)
        pieces = written(Path(folder, "b"), *(data[start : start + size] for start in range(0, len(data), size)))
    # A carriage return at the end of a piece is a line of its own, in whichever piece it comes.
    assert [line for line in whole.split(b"\n") if line] == [line for line in pieces.split(b"\n") if line]
    assert not set(whole) & {0x07, 0x08, 0x0D, 0x00}


def test_a_line_appears_when_it_is_whole_and_an_endless_one_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogWriter(path, most=_MIB, told=lambda: None) as writer:
        writer.write(b"one\ntw")
        assert b"".join(read_log(path, 0)) == b"one\n"
        writer.write(b"o\n" + b"x" * 40_000)
        assert b"".join(read_log(path, 0)).count(b"\n") == 4
    assert b"".join(read_log(path, 4)).startswith(b"two\n")


def test_of_a_log_that_is_too_long_the_middle_is_left_out(tmp_path: Path) -> None:
    """The end stays, for there stands what went wrong; a mark tells how much is missing."""
    lines = [f"line {number} {'.' * 80}\n".encode() for number in range(20_000)]
    log = written(tmp_path / "log", *lines, most=_MIB)
    assert log.startswith(lines[0])
    assert log.endswith(lines[-1])
    assert len(log) < _MIB + 70_000
    assert b"bytes of the log are left out here" in log


def test_an_end_that_fits_is_added_without_a_mark(tmp_path: Path) -> None:
    assert written(tmp_path / "log", b"a" * 99 + b"\n", b"last\n", most=100) == b"a" * 99 + b"\nlast\n"


def test_what_is_left_out_costs_little_and_its_end_is_clean(tmp_path: Path) -> None:
    """Cleaning is what costs, and it happens in the loop that serves everybody."""
    piece = b"\x1b[2Ja\x07" * 8_000 + b"\n"
    with LogWriter(tmp_path / "log", most=16 * len(piece), told=lambda: None) as writer:
        before = time.process_time()
        for _ in range(16):
            writer.write(piece)
        cleaning = time.process_time() - before
        before = time.process_time()
        for _ in range(16 * 8):
            writer.write(piece)
        writer.write(b"the \x1b]0;title\x07end\n")
        assert time.process_time() - before < cleaning
    log = b"".join(read_log(tmp_path / "log", 0))
    assert log.endswith(b"\nthe end\n")
    assert b"bytes of the log are left out here" in log
    assert not set(log) & {0x07}


def test_what_is_cleaned_away_fills_a_log_too(tmp_path: Path) -> None:
    log = written(tmp_path / "log", *[b"\0" * 9_999 + b"\n"] * 100, b"last\n", most=100_000)
    assert b"bytes of the log are left out here" in log
    assert log.endswith(b"last\n")


async def test_who_prints_without_end_leaves_time_to_others() -> None:
    """Twice as long as the writing took, at least."""
    fair = Fair(lambda _: time.sleep(0.02))
    began = time.monotonic()
    for _ in range(10):
        await fair.write(b"")
    assert time.monotonic() - began > 10 * 0.02 * 2.9


def test_who_writes_is_known_to_other_processes_and_forgotten_when_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert not is_written(path)
    program = (
        "import sys, os\nfrom pathlib import Path\nfrom backends.build_log import LogWriter\n"
        f"writer = LogWriter(Path({str(path)!r}), most=1000, told=lambda: None)\nwriter.write(b'here\\n')\n"
        "print('ready', flush=True)\nsys.stdin.read()\nos._exit(9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert is_written(path)
        process.kill()
        process.wait()
    assert not is_written(path)
    assert written(path, b"again\n") == b"here\nagain\n"
