"""Log lines: harmless in a terminal, one object per line for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in tuple(root.handlers):
        root.removeHandler(handler)
        if handler not in handlers:
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def trouble(log: logging.Logger) -> None:
    try:
        raise ValueError("broken \x1b[2J")
    except ValueError:
        log.exception("it failed for %s", "al\x1bice\nforged line")


def test_lines_for_people(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(file=file)
    log = logging.getLogger("gateway.test")
    log.info("started")
    log.debug("not shown")
    trouble(log)
    text = file.read_text()
    first, second, *trace = text.splitlines()
    assert first.endswith("Z INFO gateway.test: started")
    assert "forged line" in second
    assert all(line.startswith("    ") for line in trace)
    assert "\x1b" not in text


def test_lines_for_machines(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(file=file, as_json=True, debug=True)
    trouble(logging.getLogger("gateway.test"))
    (line,) = file.read_text().splitlines()
    facts = json.loads(line)
    assert (facts["level"], facts["logger"]) == ("error", "gateway.test")
    assert "ValueError" in facts["trace"]


def test_commands_are_quiet_and_libraries_always_are(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(file=file, quiet=True)
    logging.getLogger("gateway.test").info("not shown")
    logs.configure(file=file, debug=True)
    logging.getLogger("asyncssh").info("not shown")
    assert file.read_text() == ""
