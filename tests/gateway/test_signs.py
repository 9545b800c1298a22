"""Which bytes of a session are signs of life of its environment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

import pytest

from backends.activity import Activity
from backends.settings import LifecycleSettings
from gateway.channel import Size
from gateway.signs import Signs
from storage.changes import Changes
from storage.database.engine import Database


class Log(Activity):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.moment = 0.0
        settings = LifecycleSettings(traffic_kib=1)
        super().__init__(cast("Database", None), Changes(), settings, lambda: datetime.now(UTC), lambda: self.moment)
        self.said: list[str] = []

    def sign(self, environment_id: str) -> None:
        self.said.append("sign")

    def typed(self, environment_id: str) -> None:
        self.said.append("typed")


class Tape:
    """The tap behind."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def input(self, data: bytes) -> None:
        self.seen.append(data)

    def output(self, data: bytes) -> None:
        self.seen.append(data)

    def resized(self, size: Size) -> None:
        self.seen.append(size)


@pytest.fixture
def log() -> Log:
    return Log()


def signs(log: Log, tape: Tape | None = None, *, has_terminal: bool = False, is_protocol: bool = False) -> Signs:
    return Signs(log, "e1", tape, has_terminal=has_terminal, is_protocol=is_protocol, seconds=lambda: log.moment)


def test_on_a_terminal_every_key_and_every_output_counts(log: Log) -> None:
    tape = Tape()
    tap = signs(log, tape, has_terminal=True)
    tap.input(b"a")
    tap.output(b"a")
    tap.resized(Size(100, 30))
    assert log.said == ["typed", "sign"]
    assert tape.seen == [b"a", b"a", Size(100, 30)]


def test_an_editors_server_on_a_channel_is_judged_by_volume(log: Log) -> None:
    """Heartbeats both ways for hours are no sign of life; work is."""
    tap = signs(log)
    for _ in range(1000):
        tap.input(b"x" * 13)
        tap.output(b"x" * 13)
        log.moment += 5
    assert log.said == []
    tap.output(b"x" * 2000)
    assert log.said == ["sign"]


def test_a_long_computation_that_says_something_counts(log: Log) -> None:
    """`ssh alice+train@gw python train.py` prints a line now and then; nobody talks to it."""
    tap = signs(log)
    log.moment += 3600
    tap.output(b"epoch 12: 0.31\n")
    assert log.said == ["sign"]


def test_sftp_is_judged_by_volume_however_quiet_the_client_is(log: Log) -> None:
    tap = signs(log, is_protocol=True)
    log.moment += 3600
    tap.output(b"x" * 100)
    assert log.said == []
    tap.input(b"x" * 2000)
    assert log.said == ["sign"]
