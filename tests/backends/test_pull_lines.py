"""How much of a pull a build's log tells."""

from __future__ import annotations

from backends.builders.pulling import PullLines


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_for_each_tenth_and_five_seconds() -> None:
    written, clock = bytearray(), Clock()
    lines = PullLines(written.__iadd__, clock)  # type: ignore[arg-type]
    lines.see("pulling debian")
    for percent in (0, 1, 9, 10, 11, 19, 15, 20, 21):
        lines.see(f"pulling debian {percent} %")
    clock.now += 5
    for percent in (15, 22, 22, 95, 100, 100):
        lines.see(f"pulling debian {percent} %")
    shown = [line.removeprefix("pulling debian") for line in written.decode().splitlines()]
    assert shown == ["", " 10 %", " 20 %", " 15 %", " 95 %", " 100 %"]
