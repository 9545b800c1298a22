"""Keys act in the order in which they were pressed, however they are packed on the way here.

Textual gives a printable key to the focused widget at once, but a key with a binding bubbles from there through
the queue of every parent up to the App, and what it sets off bubbles once more. When both come in one packet, as on
slow links, the text overtakes the key. So what follows a key with a binding waits here until a marker that takes
the same way finds all queues empty. Text in a row never waits. Nothing here reads or writes a terminal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from textual import events
from textual.app import ScreenStackError
from textual.message import Message
from textual.message_pump import MessagePump

if TYPE_CHECKING:
    from tui.served import ServedApp

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
_SILENT_TICKS = 40
"""Ticks without a sign of the marker after which nothing is waited for: some handler takes its time. Ticks rather
than one timer, which would be due as soon as a loop that was busy comes to it.
"""
_LAPS = 8
_AT_ONCE = 64
"""Characters of a text on their way at once, so that a marker behind them is soon through."""


@dataclass(eq=False, slots=True)
class _Marker:
    """Goes from the App to what has the focus and through all parents back to the App, in laps."""

    route: Iterator[MessagePump] = field(default_factory=lambda: iter(()))
    focus: tuple[object, object] = (None, None)
    laps: int = 0
    silent_ticks: int = 0
    has_met: bool = False
    """Whether something was in a queue before it, whose effects may follow behind it."""


class KeyOrder:
    """Hands the terminal's events on to `app` with `send`."""

    def __init__(self, app: ServedApp, send: Callable[[Message], object]) -> None:
        self._app = app
        self._send = send
        self._held: deque[Message] = deque()
        self._under_way = 0
        self._marker: _Marker | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, message: Message) -> None:
        """Hand `message` on, now or when all before it has had its effect."""
        self._held.append(message)
        if self._marker is None:
            self._hand_on()

    def clear(self) -> None:
        """Forget what was not handed on yet."""
        self._held.clear()
        self._under_way = 0
        self._stop_waiting()

    def _hand_on(self) -> None:
        while self._held and self._marker is None:
            is_text = self._is_swift(self._held[0])
            if self._under_way >= (_AT_ONCE if is_text else 1):
                self._under_way = 0
                self._wait()
                continue
            self._send(self._held.popleft())
            if is_text:
                self._under_way += 1
            else:
                self._wait()

    def _is_swift(self, message: Message) -> bool:
        """Whether it has its effect where it arrives first."""
        if not isinstance(message, events.Key):
            return not isinstance(message, events.MouseDown | events.MouseUp)
        try:
            focused = self._app.focused
        except ScreenStackError:
            return False  # it has no screen yet
        return (
            focused is not None and message.is_printable and focused.check_consume_key(message.key, message.character)
        )

    # ---- the marker --------------------------------------------------------------------------------------
    def _wait(self) -> None:
        marker = self._marker = _Marker()
        if self._post(marker, self._app, self._begin_lap):
            self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick, marker)
        else:
            self.clear()  # the App is ending

    def _post(self, marker: _Marker, pump: MessagePump, then: Callable[[_Marker], None]) -> bool:
        # A message that was peeked at is in no queue anymore.
        marker.has_met = marker.has_met or pump.message_queue_size > 0 or pump._pending_message is not None
        return pump.post_message(events.Callback(partial(self._arrived, marker, then)))

    def _arrived(self, marker: _Marker, then: Callable[[_Marker], None]) -> None:
        if marker is self._marker:
            marker.silent_ticks = 0
            then(marker)

    def _begin_lap(self, marker: _Marker) -> None:
        marker.laps += 1
        marker.focus = self._focus()
        marker.route = self._route()
        self._go_on(marker)

    def _go_on(self, marker: _Marker) -> None:
        # Whatever was removed meanwhile takes no messages: its parents still do.
        if any(self._post(marker, pump, self._go_on) for pump in marker.route):
            return
        if marker.laps < _LAPS and (marker.has_met or marker.focus != self._focus()):
            marker.has_met = False
            self._begin_lap(marker)
        else:
            self._stop_waiting()
            self._hand_on()

    def _route(self) -> Iterator[MessagePump]:
        pump: MessagePump | None = self._app.focused or self._app.screen
        pumps = []
        while pump is not None and pump is not self._app:
            pumps.append(pump)
            pump = pump._parent
        return iter((*pumps, self._app))

    def _focus(self) -> tuple[object, object]:
        return self._app.screen, self._app.focused

    def _tick(self, marker: _Marker) -> None:
        # Before it has started, an App handles no messages at all.
        marker.silent_ticks += self._app.started.is_set()
        if marker.silent_ticks < _SILENT_TICKS:
            self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick, marker)
            return
        log.debug("a menu is slow to handle a key")
        held = tuple(self._held)
        self.clear()
        with self._app._context():
            for message in held:
                self._send(message)

    def _stop_waiting(self) -> None:
        self._marker = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
