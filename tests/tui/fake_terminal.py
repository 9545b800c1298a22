"""A `Terminal` in memory that keeps what is written."""

from __future__ import annotations

from tui.terminal import Capabilities, Keyboard, ScreenSize


class FakeTerminal:
    def __init__(self, capabilities: Capabilities | None = None, size: ScreenSize | None = None) -> None:
        self.capabilities = capabilities or Capabilities(term="xterm-256color")
        self.size = size or ScreenSize()
        self.is_closed = False
        self.keyboard: Keyboard | None = None
        self.written = bytearray()
        self.shells: list[str] = []

    def attach(self, keyboard: Keyboard) -> None:
        self.keyboard = keyboard

    def detach(self, keyboard: Keyboard) -> None:
        if self.keyboard is keyboard:
            self.keyboard = None

    def write(self, data: bytes) -> None:
        self.written += data

    async def open_shell(self, environment: str) -> int:
        self.shells.append(environment)
        self.write(b"SHELL")
        return 7
