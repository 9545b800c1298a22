"""Ways to a Docker engine that is not on this machine: what they refuse, and that bytes arrive as on a socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backends.compute.contract import WorkloadSpec
from backends.compute.docker.driver import DockerCompute
from backends.settings import BackendSettings, DockerHostSettings
from storage.errors import Unavailable
from tests.conformance.conftest import KITS, Kit, docker, run
from tests.conformance.docker_hosts import Sshd, tls_in_front
from tests.storage.tls import Authority

BIG = b"0123456789abcdef" * 200_000


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Sshd]:
    """A server that leads to no sockets, only to programs."""
    sshd = Sshd(tmp_path / "strict", "AllowStreamLocalForwarding no", "MaxSessions 4")
    yield sshd
    sshd.stop()


@pytest.fixture
async def up(tmp_path: Path, guest: Path) -> AsyncIterator[tuple[Kit, str, WorkloadSpec]]:
    """A running container, made on this machine."""
    kit = KITS["docker"](tmp_path, guest, [])
    spec = kit.spec()
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        yield kit, handle, spec
    finally:
        await kit.compute.delete(handle)
        await kit.compute.close()


def compute_of(guest: Path, host: DockerHostSettings) -> DockerCompute:
    return DockerCompute(guest, BackendSettings().docker, host)


async def test_by_session_where_sockets_are_forbidden(
    strict: Sshd, guest: Path, up: tuple[Kit, str, WorkloadSpec]
) -> None:
    """OpenSSH gives a few sessions on one connection (MaxSessions): the next one takes another connection."""
    compute = compute_of(guest, strict.host())
    try:
        assert (await compute.check()).startswith("Docker ")
        answers = await asyncio.gather(*(run(compute, up[1], f"cat; sleep 1; exit {n}", BIG) for n in range(9)))
        assert [status for status, _ in answers] == list(range(9))
        assert all(output == BIG for _, output in answers)
        assert (await compute.check()).startswith("Docker ")
    finally:
        await compute.close()


async def test_many_pipes_through_one_ssh_connection(
    tmp_path: Path, guest: Path, up: tuple[Kit, str, WorkloadSpec]
) -> None:
    sshd = Sshd(tmp_path / "sshd")
    compute = compute_of(guest, sshd.host())
    try:
        answers = await asyncio.gather(*(run(compute, up[1], f"cat; exit {n}", b"x" * n) for n in range(40)))
        assert answers == [(n, b"x" * n) for n in range(40)]
    finally:
        await compute.close()
        sshd.stop()


async def test_ssh_that_is_not_who_it_should_be(tmp_path: Path, guest: Path) -> None:
    """Somebody else answers at that address: nothing is sent, whatever they would offer."""
    sshd = Sshd(tmp_path / "sshd")
    other = (sshd.directory / "client.pub").read_text().strip()
    compute = compute_of(guest, sshd.host(host_key=other))
    try:
        with pytest.raises(Unavailable, match="another key than host_key"):
            await compute.check()
    finally:
        await compute.close()
        sshd.stop()


async def test_ssh_that_does_not_know_us_or_is_gone(tmp_path: Path, guest: Path) -> None:
    sshd = Sshd(tmp_path / "sshd")
    refused = compute_of(guest, sshd.host(key_file=str(sshd.directory / "host")))
    good = compute_of(guest, sshd.host())
    try:
        with pytest.raises(Unavailable, match="does not take the key"):
            await refused.check()
        assert (await good.check()).startswith("Docker ")
        sshd.stop()
        with pytest.raises(Unavailable, match="does not answer"):
            await refused.check()
    finally:
        await refused.close()
        await good.close()


async def test_a_connection_that_was_lost_is_made_anew(tmp_path: Path, guest: Path) -> None:
    sshd = Sshd(tmp_path / "sshd")
    compute = compute_of(guest, sshd.host())
    try:
        await compute.check()
        for link in compute._engine.line._links:  # type: ignore[attr-defined]
            link.connection.abort()
        await asyncio.sleep(0.1)
        assert (await compute.check()).startswith("Docker ")
    finally:
        await compute.close()
        sshd.stop()


# ---- TLS ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "tls").mkdir()
    return Authority.made_in(tmp_path / "tls")


def strict_context(authority: Authority) -> ssl.SSLContext:
    """As `dockerd --tlsverify`: nobody comes in without a certificate of the authority."""
    context = authority.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    return context


def by_tls(port: int, authority: Authority, **more: str) -> DockerHostSettings:
    files = {"ca_file": str(authority.ca_file), "cert_file": str(authority.chain), "key_file": str(authority.key)}
    return DockerHostSettings(url=f"tcp://127.0.0.1:{port}", **(files | more))


async def test_tls_carries_everything_and_ends_each_direction_by_itself(
    authority: Authority, guest: Path, up: tuple[Kit, str, WorkloadSpec]
) -> None:
    """asyncio's TLS has no half-close: `sha256sum` in the container would wait for the end of its input for ever."""
    async with tls_in_front(strict_context(authority)) as port:
        compute = compute_of(guest, by_tls(port, authority))
        try:
            assert (await compute.check()).startswith("Docker ")
            assert await run(compute, up[1], "wc -c; sleep 0.2; echo late; exit 7", BIG) == (7, b"3200000\nlate\n")
            assert await run(compute, up[1], "cat; exit 3", BIG) == (3, BIG)
            answers = await asyncio.gather(*(run(compute, up[1], f"cat; exit {n}", BIG) for n in range(8)))
            assert answers == [(n, BIG) for n in range(8)]
        finally:
            await compute.close()


async def test_tls_with_a_container_of_its_own(
    authority: Authority, guest: Path, up: tuple[Kit, str, WorkloadSpec]
) -> None:
    async with tls_in_front(strict_context(authority)) as port:
        compute = compute_of(guest, by_tls(port, authority))
        spec = up[0].spec()
        handle = await compute.create(spec, print)
        try:
            await compute.start(handle, spec, print)
            status, output = await run(compute, handle, "ls /opt/ashore/guest; touch /opt/ashore/guest/x")
            assert status != 0
            assert {b"sshd", b"ld.so", b"manifest.json"} <= set(output.split())
            assert await compute.network_namespace(handle) is None
        finally:
            await compute.delete(handle)
            await compute.close()
            docker("volume", "rm", "-f", f"ashore-guest-{guest.name}")


async def test_tls_trusts_nobody_by_default(authority: Authority, tmp_path: Path, guest: Path) -> None:
    async with tls_in_front(strict_context(authority)) as port:
        unknown = compute_of(guest, by_tls(port, authority, ca_file=""))
        (tmp_path / "other").mkdir()
        other = Authority.made_in(tmp_path / "other")
        stranger = by_tls(port, authority, cert_file=str(other.chain), key_file=str(other.key))
        strangers = compute_of(guest, stranger)
        try:
            with pytest.raises(Unavailable, match="TLS with it was not possible"):
                await unknown.check()
            with pytest.raises(Unavailable):
                await strangers.check()
        finally:
            await unknown.close()
            await strangers.close()


async def test_tls_for_another_name_is_refused(tmp_path: Path, guest: Path) -> None:
    authority = Authority.made_in(tmp_path, name="engine.example.org")
    async with tls_in_front(strict_context(authority)) as port:
        compute = compute_of(guest, by_tls(port, authority))
        try:
            with pytest.raises(Unavailable, match="not possible"):
                await compute.check()
        finally:
            await compute.close()


# ---- the guest's volume ------------------------------------------------------------------------------------------
async def test_a_volume_that_was_cut_off_or_pruned_is_filled_again(tmp_path: Path, guest: Path) -> None:
    """A crash between making the volume and filling it, and `docker volume prune`, must not leave an empty guest."""
    kit = KITS["docker-ssh"](tmp_path, guest, [])
    volume = f"ashore-guest-{guest.name}"
    try:
        docker("volume", "create", volume)
        for _ in range(2):
            spec = kit.spec()
            handle = await kit.compute.create(spec, print)
            await kit.compute.start(handle, spec, print)
            status, output = await run(kit.compute, handle, "ls /opt/ashore/guest")
            await kit.compute.delete(handle)
            assert (status, b"sshd" in output) == (0, True)
            docker("volume", "rm", volume)
        assert volume not in docker("ps", "-a", "--format", "{{.Names}}").split()
    finally:
        await kit.compute.close()
        kit.end()
