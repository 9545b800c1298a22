"""The menu as plain lines: what is asked, what is typed, and what is never sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from backends.planning import Request
from storage.access import Caller
from storage.errors import Unavailable
from storage.records import EnvironmentState, Wish
from tests.tui.house import FakeTerminal, House
from tui import plain
from tui.reader import LineReader
from tui.terminal import Capabilities

Play = Callable[..., Awaitable[str]]


@pytest.fixture
def dumb() -> FakeTerminal:
    return FakeTerminal(Capabilities(term="dumb", fullscreen=False))


@pytest.fixture
def play(house: House, alice: Caller, dumb: FakeTerminal) -> Play:
    """Type everything at once, as a pipe does, and return what was shown."""

    async def run(typed: str, language: str = "en") -> str:
        menu = asyncio.create_task(plain.run(dumb, house.services, alice, language))
        await dumb.attached.wait()
        assert dumb.keyboard is not None
        dumb.attached.clear()
        dumb.keyboard.data_received(typed.encode())
        dumb.keyboard.eof_received()
        assert await menu == 0
        assert dumb.keyboard is None
        return dumb.text

    return run


async def test_a_newcomer_leaves_again(play: Play) -> None:
    shown = await play("q\r")
    assert "welcome, alice" in shown
    assert "You have no environment yet" in shown
    assert shown.endswith("Bye.\r\n")
    assert "\x1b" not in shown


async def test_the_end_of_input_ends_it(play: Play) -> None:
    assert (await play("")).endswith("Bye.\r\n")


async def test_create_waits_until_it_is_ready(play: Play, house: House, alice: Caller) -> None:
    async def reconcile() -> None:
        await anext(house.changes.watch("environment"))
        await house.becomes("train", state=EnvironmentState.RUNNING)

    loop = asyncio.create_task(reconcile(), name="reconciler")
    shown = await play("n train\rdocker\r\rq\r")
    await loop
    assert "train is being made." in shown
    assert "train is ready." in shown
    assert "1  train  running  docker" in shown
    assert (await house.environments.show(alice, "train")).image == "debian:bookworm"


async def test_numbers_connect_and_the_terminal_comes_back(
    play: Play, house: House, alice: Caller, dumb: FakeTerminal
) -> None:
    await house.environments.create(alice, Request("train", "docker"))
    dumb.shell_status = 5
    shown = await play("1\rtrain\rx 1\rs train\rq\r")
    assert dumb.shells == ["train", "train"]
    assert "The shell in train ended with status 5." in shown
    assert (await house.environments.show(alice, "train")).wish is Wish.RUNNING


async def test_delete_wants_the_name(play: Play, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("train", "docker"))
    assert "Nothing was deleted." in await play("d 1\ryes\rq\r")
    assert "train is being deleted." in await play("d\r1\rtrain\rq\r")
    assert (await house.environments.show(alice, "train")).wish is Wish.DELETED


async def test_mistakes_are_sentences(play: Play, house: House, alice: Caller, dumb: FakeTerminal) -> None:
    await house.environments.create(alice, Request("train", "docker"))
    dumb.shell_error = Unavailable("the Docker engine does not answer")
    shown = await play("9\rfrob\r1\rn x/y\r\r\rs\r\rq\r")
    for sentence in ("There is no '9'", "I do not know 'frob'", "does not answer", "is no possible environment name"):
        assert sentence in shown


async def test_chinese_and_back(play: Play, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("train", "docker"))
    shown = await play("nix\rlang\rq\r", "zh_CN.UTF-8")
    assert "欢迎，alice" in shown
    assert "不认识「nix」" in shown
    assert "requested" in shown
    assert await house.accounts.language_of(alice) == "en"


async def test_hostile_words_never_reach_the_terminal(play: Play, house: House, alice: Caller) -> None:
    await house.environments.create(alice, Request("train", "docker"))
    await house.becomes("train", state=EnvironmentState.FAILED, reason="a\x1b]52;c;aGk=\x07\u202eb\x9b2J\r\nfake")
    shown = await play("d 1\rq\r")
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "\nfake" not in shown


# ---- the line discipline -------------------------------------------------------------------------------------
def typed(data: bytes, charset: str = "utf-8") -> tuple[list[str | None], str]:
    """The lines that `data` makes, and the echo."""
    terminal = FakeTerminal(Capabilities(term="dumb", charset=charset))
    reader = LineReader(terminal)
    for byte in data:
        reader.data_received(bytes([byte]))
    lines = []
    while not reader._lines.empty():
        lines.append(reader._lines.get_nowait())
    return lines, terminal.written.decode(charset, "replace")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"abc\r", "abc"),
        (b"abc\n", "abc"),
        (b"abd\x7fc\r", "abc"),
        (b"wrong\x15abc\r", "abc"),
        (b"one two\x17three\r", "one three"),
        ("中x文\x7f\x7f文\r".encode(), "中文"),
        (b"a\x1b[Ab\x1bOCc\x1b[3~\r", "abc"),
        (b"a\x00\x07\x9bbc\r".replace(b"\x9b", "\x9b".encode()), "abc"),
        (b"\x7f\x7f\r", ""),
    ],
)
def test_lines_as_they_are_typed(data: bytes, line: str) -> None:
    assert typed(data)[0] == [line]


def test_wide_characters_are_erased_whole() -> None:
    assert typed("中\x7f".encode())[1] == "中\b\b  \b\b"


def test_carriage_return_and_line_feed_are_one_end() -> None:
    assert typed(b"a\r\nb\r\n")[0] == ["a", "b"]


def test_ctrl_c_drops_the_line_and_ctrl_d_ends() -> None:
    assert typed(b"abc\x03")[0] == [""]
    assert typed(b"abc\x04")[0] == []
    assert typed(b"\x04")[0] == [None]


def test_other_charsets_are_read_and_written() -> None:
    assert typed("中文\r".encode("gb18030"), "gb18030") == (["中文"], "中文\r\n")


def test_a_flood_is_bounded() -> None:
    lines, _ = typed(b"x" * 10_000 + b"\r" + b"y\r" * 1000)
    assert len(lines) == 256
    assert lines[0] == "x" * 4096
