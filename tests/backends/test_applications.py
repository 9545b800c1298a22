"""Applications and published ports without an engine: scripts, secrets, refusals, and what is written down."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select

from backends.application_script import FOLDER, Seen, Wanted, parse, script
from backends.application_secrets import md4, sam_line, vnc_password
from backends.application_templates import BUILT_IN
from backends.applications import Applications
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.planning import Request
from backends.published import PublishedPorts
from backends.settings import ApplicationSettings, BackendSettings, PortSettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AlreadyExists, BadInput, NotAllowed, NotFound, Unavailable
from storage.records import Application, ApplicationState, AuditEvent
from storage.vault import Vault

SETTINGS = BackendSettings(ports=PortSettings(first=30001, last=30002, per_environment=2))


@pytest.fixture
def environments(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> Environments:
    engine = MemoryEngine(tmp_path / "memory")
    return Environments(database, audit, changes, {"local": MemoryCompute(engine, name="local")}, SETTINGS)


@pytest.fixture
def applications(database: Database, audit: AuditTrail, changes: Changes, environments: Environments) -> Applications:
    vault = Vault(Fernet.generate_key())
    return Applications(database, audit, changes, environments, vault, environments.planner.applications)


@pytest.fixture
def published(database: Database, audit: AuditTrail, changes: Changes, environments: Environments) -> PublishedPorts:
    return PublishedPorts(database, audit, changes, environments, SETTINGS.ports)


def test_the_password_file_is_that_of_vncpasswd() -> None:
    assert vnc_password("password").hex() == "dbd83cfd727a1458"


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "31d6cfe0d16ae931b73c59d7e0c089c0"),
        (b"message digest", "d9130a8164549fe818874806e1c7014b"),
        (b"1234567890" * 8, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    ],
)
def test_md4_is_that_of_rfc_1320(data: bytes, digest: str) -> None:
    assert md4(data).hex() == digest


def test_the_line_of_the_sam_file_is_that_of_winpr_hash() -> None:
    assert sam_line("developer", "password") == "developer:::8846F7EAEE8FB117AD06BDD830B7586C:::"


def test_the_script_is_a_posix_shells_and_keeps_the_secret_out_of_command_lines(tmp_path: Path) -> None:
    """Trap: a secret in an argument is read by everybody who lists processes; `printf` is the shell's own."""
    odd = ApplicationSettings(title="Odd", argv=("prog", "it's", "--at={folder}/x y", "{port}", ""), port=7000)
    text = script(
        [
            Wanted("odd", odd, "s3cr3t"),
            Wanted("vnc", BUILT_IN["vnc"], "abcdefgh"),
            Wanted("rdp", BUILT_IN["rdp"], "bcdefghi"),
        ],
        ["gone"],
    )
    subprocess.run(["/bin/sh", "-n"], input=text.encode(), check=True)
    assert [line.split()[0] for line in text.splitlines() if "s3cr3t" in line] == ["printf"]
    assert {line.split()[0] for line in text.splitlines() if re.search("[0-9a-f]{64}", line)} == {"if", "echo"}


def test_no_command_line_holds_a_digest_of_the_secret(tmp_path: Path) -> None:
    """Trap: all but the secret of what is digested is known, and a password of eight letters is guessed by it.

    An application whose supervisor lives is started again when the digest is another one, and only then.
    """
    odd = ApplicationSettings(title="Odd", argv=("sleep", "60"), port=7000)
    folder = tmp_path / FOLDER / "odd"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def run(text: str) -> tuple[str, str]:
        traced = text.replace("umask 077", "umask 077; set -x", 1).encode()
        done = subprocess.run(["/bin/sh", "-s"], input=traced, env=environment, capture_output=True, check=True)
        ran = [line.split() for line in done.stderr.decode().splitlines() if re.search("[0-9a-f]{64}", line)]
        assert {words[1] for words in ran} <= {"[", "echo"}
        return (folder / "supervisor").read_text(), (folder / "digest").read_text()

    try:
        first = run(script([Wanted("odd", odd, "s3cr3t")]))
        assert run(script([Wanted("odd", odd, "s3cr3t")])) == first
        assert run(script([Wanted("odd", odd, "other")])) != first
    finally:
        subprocess.run(["/bin/sh", "-s"], input=script([], ["odd"]).encode(), env=environment, check=True)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("ashore-application a ending", Seen(ApplicationState.ENDING)),
        ("ashore-application a running", Seen(ApplicationState.RUNNING)),
        ("ashore-application a starting", Seen(ApplicationState.STARTING)),
        ("ashore-application a ended 127", Seen(ApplicationState.MISSING, 127)),
        ("ashore-application a ended 1", Seen(ApplicationState.FAILED, 1)),
        ("ashore-application a ended \u00b2", Seen(ApplicationState.FAILED)),
        ("ashore-application a ended " + "1" * 5000, Seen(ApplicationState.FAILED)),
    ],
)
def test_reports_are_read_between_other_lines(line: str, seen: Seen) -> None:
    assert parse(f"welcome\n{line}\nashore-application\n") == {"a": seen}


async def test_the_secret_stays_the_owners(
    environments: Environments, applications: Applications, database: Database, alice: Caller, bob: Caller
) -> None:
    await environments.create(alice, Request("lab", applications=("jupyter", "vnc")))
    environment, (jupyter, vnc) = await applications.access(alice, "lab")
    assert (len(jupyter.secret), len(vnc.secret)) == (43, 8)
    assert jupyter.secret in jupyter.address
    assert jupyter.condition.state is ApplicationState.WAITING
    assert (await applications.access(alice, "lab"))[1][0].secret == jupyter.secret
    assert [one.secret for one in await applications.wanted(environment.id)] == [jupyter.secret, vnc.secret]
    with pytest.raises(NotFound):
        await applications.access(bob, "lab.alice")
    async with database.reading() as tx:
        kept = (await tx.scalars(select(Application.secret))).all()
        trail = [str(event.detail) for event in await tx.scalars(select(AuditEvent))]
    assert not any(jupyter.secret in text or vnc.secret in text for text in [*kept, *trail])
    await applications.new_secrets(alice, "lab", only="vnc")
    _, (same, other) = await applications.access(alice, "lab")
    assert (same.secret == jupyter.secret, other.secret == vnc.secret) == (True, False)


async def test_other_programs_for_one_that_is_there(
    environments: Environments, applications: Applications, alice: Caller, admin: Caller
) -> None:
    environment = await environments.create(alice, Request("lab", applications=("jupyter",)))
    _, (jupyter,) = await applications.access(alice, "lab")
    await applications.change(alice, "lab", add=("vnc",), remove=("jupyter",))
    assert [one.name for one in await applications.wanted(environment.id)] == ["vnc"]
    assert await applications.unwanted(environment.id) == ["jupyter"]
    assert [one.condition.name for one in (await applications.access(alice, "lab"))[1]] == ["vnc"]
    for names, error in (
        ({"add": ("vnc",)}, AlreadyExists),
        ({"remove": ("jupyter",)}, NotFound),
        ({"add": ("moon",), "remove": ("vnc",)}, BadInput),
        ({"add": ("rdp", "rdp")}, BadInput),
    ):
        with pytest.raises(error):
            await applications.change(alice, "lab", **names)
    with pytest.raises(NotAllowed):
        await applications.change(admin, "lab.alice", add=("rdp",))
    await applications.change(alice, "lab", add=("jupyter",))
    _, (again, _) = await applications.access(alice, "lab")
    assert again.condition.state is ApplicationState.WAITING
    assert again.secret != jupyter.secret
    await applications.change(admin, "lab.alice", remove=("jupyter", "vnc"))
    assert await applications.wanted(environment.id) == []
    with pytest.raises(NotFound, match="has no applications: env set lab --app jupyter"):
        await applications.access(alice, "lab")


async def test_an_administrator_does_not_see_it(
    environments: Environments, applications: Applications, alice: Caller, admin: Caller
) -> None:
    await environments.create(alice, Request("lab", applications=("jupyter",)))
    with pytest.raises(NotAllowed):
        await applications.access(admin, "lab.alice")
    with pytest.raises(NotAllowed):
        await applications.new_secrets(admin, "lab.alice")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("moon",), "there is no application 'moon'"),
        (("vnc", "vnc"), "the application 'vnc' was chosen twice"),
    ],
)
async def test_what_cannot_be_started(
    environments: Environments, alice: Caller, names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        await environments.create(alice, Request("lab", applications=names))


async def test_ports_are_given_once_and_come_back(
    environments: Environments, published: PublishedPorts, alice: Caller, bob: Caller, admin: Caller
) -> None:
    await environments.create(alice, Request("one", ports=(8000,)))
    await environments.create(bob, Request("two"))
    assert (await published.publish(bob, "two", 8000)).external_port == 30002
    with pytest.raises(AlreadyExists):
        await published.publish(alice, "one", 8000)
    with pytest.raises(Unavailable, match="all ports"):
        await published.publish(alice, "one", 8001)
    with pytest.raises(NotAllowed):
        await published.publish(admin, "one.alice", 9000)
    await published.unpublish(admin, "one.alice", 8000)
    assert (await published.publish(bob, "two", 9000)).external_port == 30001
    with pytest.raises(BadInput, match="2 ports at most"):
        await published.publish(bob, "two", 9001)
    assert await published.to_serve() == []  # neither runs
