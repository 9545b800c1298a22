"""Which bytes of a session are signs of life of its environment; `backends.activity` keeps them.

On a terminal every key and every output counts. Without one a program may talk by itself: an editor's server sends and
gets something every few seconds for as long as its window is open, so there the volume decides. Only output of a
program that nobody talks to, as of a long computation, counts like that on a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from backends.activity import Activity
from gateway.channel import Size
from gateway.relay import Tap

_TALKS_SECONDS = 60.0


class Signs:
    """A tap that notes signs of life, and passes everything on to the next tap."""

    def __init__(
        self,
        activity: Activity,
        environment_id: str,
        following: Tap | None,
        *,
        has_terminal: bool,
        is_protocol: bool = False,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_protocol`: it is known to be one that programs speak, as SFTP is."""
        self._activity = activity
        self._id = environment_id
        self._following = following
        self._has_terminal = has_terminal
        self._is_protocol = is_protocol
        self._seconds = seconds
        self._talked = seconds()

    def input(self, data: bytes) -> None:
        if self._has_terminal:
            self._activity.typed(self._id)
        else:
            self._talked = self._seconds()
            self._activity.traffic(self._id, len(data))
        if self._following is not None:
            self._following.input(data)

    def output(self, data: bytes) -> None:
        is_talk = self._is_protocol or self._seconds() - self._talked <= _TALKS_SECONDS
        if not self._has_terminal and is_talk:
            self._activity.traffic(self._id, len(data))
        else:
            self._activity.sign(self._id)
        if self._following is not None:
            self._following.output(data)

    def resized(self, size: Size) -> None:
        if self._following is not None:
            self._following.resized(size)
