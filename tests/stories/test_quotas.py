"""Limits and quotas as people meet them: a second environment that does not fit, and a program that wants too much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stories.clients import Gateway

MIB = 1024**2
TAKE = 'perl -e \'$x = "a" x (512 * 1024 * 1024); print "had it all"\''


@pytest.fixture
def bob(gateway: Gateway) -> Iterator[str]:
    """Bob, who may use 512 MiB; what he makes is gone afterwards."""
    gateway.ssh("carol", "quota", "set", "--user", "bob", "--memory", "512MiB")
    yield "bob"
    for row in gateway.json("bob", "env", "list"):
        gateway.ssh("bob", "env", "delete", row["name"], "--wait", check=False)
    gateway.ssh("carol", "quota", "clear", "--user", "bob")


def test_a_second_environment_does_not_fit_until_there_is_room(gateway: Gateway, bob: str) -> None:
    create = ("env", "create", "--compute", "local", "--wait")
    gateway.ssh(bob, *create, "q1", "--memory", "256MiB")
    sentence = (
        "your quota of memory is 512MiB, with 256MiB in use, and this needs 512MiB: an administrator can raise it"
    )
    for dry in ([], ["--dry-run"]):
        done = gateway.ssh(bob, *create, "q2", "--memory", "512MiB", *dry, check=False)
        assert done.returncode == 1
        assert sentence in (done.stdout if dry else done.stderr).decode()
    assert {row["name"] for row in gateway.json(bob, "env", "list")} == {"q1"}
    assert gateway.audit(action="environment.create", actor="bob", thing="q2")[0]["outcome"] == "refused"
    gateway.ssh(bob, "env", "stop", "q1", "--wait")
    gateway.ssh(bob, *create, "q2", "--memory", "512MiB")
    (memory,) = [
        row for row in gateway.json(bob, "quota", "show") if (row["of"], row["resource"]) == ("user", "memory")
    ]
    assert (memory["used"], memory["allowed"], memory["left"]) == (512 * MIB, 512 * MIB, 0)
    asleep = gateway.ssh("bob+q1", "echo", "up", check=False)
    assert (asleep.returncode, asleep.stdout) == (255, b"")
    assert "with 512MiB in use, and this needs 256MiB: an administrator can raise it" in asleep.stderr.decode()
    assert gateway.audit(action="environment.start", actor="bob", thing="q1")[0]["outcome"] == "refused"
    gateway.ssh("carol", "quota", "set", "--user", "bob", "--memory", "1GiB")
    assert gateway.ssh("bob+q1", "echo", "up").stdout == b"up\n"


@pytest.mark.parametrize("compute", ["local", "docker"])
def test_a_program_that_wants_more_than_its_environment_has(gateway: Gateway, bob: str, compute: str) -> None:
    gateway.ssh(bob, "env", "create", "small", "--compute", compute, "--memory", "256MiB", "--wait", timeout=120)
    done = gateway.ssh("bob+small", TAKE, check=False)
    assert b"had it all" not in done.stdout
    assert done.returncode not in (0, 127)
    assert gateway.ssh("bob+small", "echo", "still here").stdout == b"still here\n"


@pytest.mark.parametrize("compute", ["local", "docker"])
def test_what_names_no_limit_has_one(gateway: Gateway, compute: str) -> None:
    plan = gateway.json("alice", "env", "create", "plain", "--compute", compute, "--dry-run")
    assert plan["memory"] >= 64 * MIB
    assert plan["cpus"] >= 1
    assert plan["processes"] > 0
