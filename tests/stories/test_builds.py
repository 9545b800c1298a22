"""Images that people build, from outside: the log while it is written, failure, cancelling, and what runs from one."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.stories.clients import Gateway, eventually, run


@pytest.fixture(autouse=True)
def no_layers_are_left() -> Iterator[None]:
    yield
    label = ["--filter", "label=ashore.built"]
    for image in run(["docker", "images", "-q", "--no-trunc", *label]).stdout.decode().split():
        run(["docker", "rmi", "-f", image], check=False)


def test_a_build_is_watched_while_it_runs_and_an_environment_made_of_it(gateway: Gateway) -> None:
    """Lines come as they are printed, whoever asked has hung up, and the image is there under its name."""
    text = f"RUN echo first=$(date +%s.%N) && sleep 5 && echo second\nRUN echo {time.time()} >/built-here\n"
    asked = gateway.ssh("alice", "image", "build", "tools:v1", "--base", "debian:bookworm", input=text.encode())
    assert b"queued" in asked.stdout
    with subprocess.Popen(
        [*gateway.client("alice"), "image", "log", "tools:v1", "-f"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as following:
        assert following.stdout is not None
        while not (line := following.stdout.readline().decode()).startswith("first="):
            assert line, gateway.log_tail()
        assert time.time() - float(line.partition("=")[2]) < 4.5  # the build sleeps for five
        rest = following.stdout.read().decode()
        assert rest.startswith("second\n")
        assert re.search(r"pushed as sha256:[0-9a-f]{64}", rest)
        assert following.wait(60) == 0
    (image,) = gateway.json("alice", "image", "list")
    assert (image["name"], image["kind"], image["state"]) == ("tools:v1", "custom", "ready")
    assert gateway.json("bob", "image", "list") == []
    assert gateway.ssh("bob", "image", "log", "tools:v1", check=False).returncode == 1
    try:
        create = ("env", "create", "made", "--image", "tools:v1", "--compute", "docker", "--wait")
        gateway.ssh("alice", *create, timeout=120)
        assert gateway.ssh("alice+made", "test", "-s", "/built-here").returncode == 0
    finally:
        gateway.ssh("alice", "env", "delete", "made", "--wait", check=False)
    again = gateway.ssh("alice", "image", "build", "tools:v1", "--base", "debian:bookworm", "--wait",
                        input=text.encode(), timeout=120)  # fmt: skip
    assert again.stderr.count(b"Using cache") == 3
    assert gateway.audit(action="build.success", actor="alice", thing="tools:v1")


def test_a_failure_says_where(gateway: Gateway) -> None:
    done = gateway.ssh("alice", "image", "build", "broken", "--base", "debian:bookworm", "--wait",
                       input=b"RUN true\n\nRUN echo oh dear && \\\n  exit 5\n", check=False, timeout=120)  # fmt: skip
    assert done.returncode == 1
    assert b"\noh dear\n" in done.stderr
    assert b"step 4 of 4 (line 3) failed: exit status 5" in done.stdout
    refused = gateway.ssh("alice", "image", "build", "broken", "--base", "debian:bookworm",
                          input=b"RUN true\nUSER root\n", check=False)  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"line 2, column 1: USER is not allowed")


def test_cancelling_ends_what_a_build_has_started(gateway: Gateway) -> None:
    gateway.ssh("alice", "image", "build", "endless", "--base", "debian:bookworm",
                input=b"RUN (setsid sleep 987654 &) && echo begun && sleep 987654\n")  # fmt: skip
    eventually(lambda: b"\nbegun\n" in gateway.ssh("alice", "image", "log", "endless").stdout)
    gateway.ssh("alice", "image", "cancel", "endless")
    eventually(lambda: run(["pgrep", "-f", "^sleep 987654"], check=False).stdout == b"")
    assert gateway.json("alice", "image", "history", "endless")[0]["state"] == "cancelled"
    followed = gateway.ssh("alice", "image", "log", "endless", "-f", check=False)
    assert followed.returncode == 1
    assert b"cancelled" in followed.stdout


def test_a_gateway_that_is_killed_begins_a_build_anew(gateway: Gateway) -> None:
    """What ran is ended with it; the next one builds it, and the log tells."""
    gateway.ssh("alice", "image", "build", "lasting", "--base", "debian:bookworm",
                input=b"RUN echo begun && sleep 6 && echo ended\n")  # fmt: skip
    eventually(lambda: b"\nbegun\n" in gateway.ssh("alice", "image", "log", "lasting").stdout)
    gateway.stop(how=9)
    gateway.start()
    log = gateway.ssh("alice", "image", "log", "lasting", "-f", timeout=120).stdout
    assert b"the gateway was restarted: the build begins anew" in log
    assert log.count(b"\nended\n") == 1
    assert gateway.json("alice", "image", "history", "lasting")[0]["state"] == "success"
