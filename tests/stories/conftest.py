"""One served gateway for all stories, three people, and one environment on each embedded compute."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.stories.clients import Environment, Gateway, run

TOTAL_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stories start engines and move gigabytes; what hangs is still found."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TOTAL_SECONDS))


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """The end of the gateway's log belongs to a failure."""
    gateway = getattr(item, "funcargs", {}).get("gateway")
    if call.excinfo is not None and isinstance(gateway, Gateway):
        item.add_report_section(call.when, "the gateway's log", gateway.log_tail())


@contextmanager
def served(directory: Path, *, settings: str = "") -> Iterator[Gateway]:
    """A new gateway with alice, bob and carol, who is an administrator; everything it made is gone afterwards."""
    gateway = Gateway(directory / "data", directory / "home", settings=settings)
    try:
        gateway.start()
        gateway.add_user("carol", admin=True)
        for name in ("alice", "bob"):
            # Not by the operator's command line: each start of it takes seconds, and every story begins here.
            key = gateway.make_key(name).with_suffix(".pub").read_bytes()
            gateway.ssh("carol", "user", "add", name, input=key)
        yield gateway
    finally:
        clear(gateway)


def clear(gateway: Gateway) -> None:
    """Delete every environment, stop, and end whatever a broken run left behind."""
    try:
        if gateway.process is not None and gateway.process.poll() is None:
            for row in gateway.json("carol", "env", "list", "--all"):
                gateway.ssh("carol", "env", "delete", f"{row['name']}.{row['owner']}", "--wait", check=False)
    except AssertionError:
        pass  # it cannot be asked any more; what it made is found below
    finally:
        if gateway.process is not None:
            gateway.stop()
        end_leftovers(gateway)


def end_leftovers(gateway: Gateway) -> None:
    """Kill processes and containers that carry this gateway's own data directory in their command line or mounts."""
    mark = os.fsencode(gateway.data)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
    containers = run(["docker", "ps", "-aq", "--filter", "label=ashore"], check=False).stdout.decode().split()
    for container in containers:
        if mark in run(["docker", "inspect", container], check=False).stdout:
            run(["docker", "rm", "-f", container], check=False)


def remove_guest_volumes(data: Path) -> None:
    """What a gateway brought to engines that are reached over the network; other guests' volumes stay."""
    for tree in (data / "guest").iterdir():
        run(["docker", "volume", "rm", f"ashore-guest-{tree.name}"], check=False)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def boxes(gateway: Gateway) -> Callable[[str], Environment]:
    """Alice's environment `box-local` or `box-docker`, running; made when it is first asked for."""

    @cache
    def box(compute: str) -> Environment:
        name = f"box-{compute}"
        gateway.ssh("alice", "env", "create", name, "--compute", compute, "--wait", timeout=120)
        return Environment(gateway, name, compute)

    return box


@pytest.fixture(scope="session", params=["local", "docker"])
def environment(request: pytest.FixtureRequest, boxes: Callable[[str], Environment]) -> Environment:
    """Both, one after the other; with several processes again in each file."""
    return boxes(request.param)
