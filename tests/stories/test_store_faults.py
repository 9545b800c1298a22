"""The bad days of the object store, with the programs that people use: every transfer ends in equal bytes, or in an
error with a sentence and something to go on with. Never in a short or a mixed file.

The store is SeaweedFS beside the gateway, reached through a proxy that makes the trouble. The parts are 5 MiB and the
memory for uploads is 64 MiB here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stories.clients import Gateway, eventually, run
from tests.stories.conftest import served
from tests.stories.links import Link, bad_link
from tests.stories.stores import BadStore, bad_store
from tests.stories.test_resume import PART, SENT, Person, digest, parked, size_for, stored, uploads
from tests.stories.test_transfers import Rclone, names_in, sftp

MIB = 1024 * 1024
SIZE = 33_000_001
SLOWLY = ["-l", "100000"]
"""Kbit/s: 33 MB in three seconds, so that something can happen meanwhile."""
Trouble = Callable[[BadStore], None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadStore]:
    with bad_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, store: BadStore) -> Iterator[Gateway]:
    with served(tmp_path_factory.mktemp("faults"), settings=store.settings(memory_mib=64)) as gateway:
        yield gateway


@pytest.fixture
def top(gateway: Gateway, store: BadStore, request: pytest.FixtureRequest) -> Iterator[str]:
    """A version to write into; gone afterwards, and the store well again."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test-")[:44].strip("-")
    sftp(gateway, "alice", f"mkdir /datasets/{name}", f"mkdir /datasets/{name}/v1")
    yield f"/datasets/{name}/v1"
    store.recover()
    gateway.ssh("alice", "dataset", "delete", name, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


# ---- programs --------------------------------------------------------------------------------------------------


class Programs:
    """Alice's programs, each as a command line that sends `source` to `target` through `port`."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self.gateway = gateway
        self.directory = directory
        self.again = Person(gateway, directory)

    def sending(self, program: str, source: Path, target: str, *, port: int = 0) -> list[str]:
        port = port or self.gateway.port
        return [str(word) for word in getattr(self, f"_{program}")(source, target, port)]

    def go_on(self, program: str, source: Path, target: str) -> None:
        """With what the program has for that; those that have nothing send all of it again."""
        if program in ("lftp", "curl"):
            getattr(self.again, program)(source, target)
        elif program == "sftp":
            self.again.reput(source, target)
        else:
            run(self.sending(program, source, target), timeout=120)

    def _sftp(self, source: Path, target: str, port: int) -> list[str]:
        return self._batch(f"put {source} {target}", "-P", str(port))

    def get(self, target: str, to: Path) -> list[str]:
        return self._batch(f"get {target} {to}", *SLOWLY)

    def _batch(self, line: str, *options: str) -> list[str]:
        batch = self.directory / f"batch-{len(list(self.directory.iterdir()))}"
        batch.write_text(f"{line}\n")
        return [*self.gateway.client("alice", program="sftp", options=[*options, "-b", str(batch)]), "alice@gw"]

    def _scp(self, source: Path, target: str, port: int) -> list[str]:
        options = ["-P", str(port), "-q"]
        return [*self.gateway.client("alice", program="scp", options=options), str(source), f"alice@gw:{target}"]

    def _lftp(self, source: Path, target: str, port: int) -> list[str]:
        settings = (
            f"set sftp:connect-program 'ssh -a -x -F {self.gateway.config('alice')} -p {port}'; set net:max-retries 1"
        )
        script = f"{settings}; set cmd:fail-exit yes; open -u alice, sftp://gw; put {source} -o {target}; bye"
        return ["env", f"HOME={self.gateway.home}", "lftp", "--norc", "-c", script]

    def _curl(self, source: Path, target: str, port: int) -> list[str]:
        key = self.gateway.home / "alice"
        keys = ["--key", str(key), "--pubkey", f"{key}.pub", "-u", "alice:", "--insecure"]
        return ["curl", "-sS", *keys, "-T", str(source), f"sftp://127.0.0.1:{port}{target}"]

    def _rclone(self, source: Path, target: str, port: int) -> list[str | Path]:
        rclone = Rclone(self.gateway, "alice", self.directory)
        once = ["--retries", "1", "--low-level-retries", "1"]
        return [*rclone.arguments(port=port), *once, "copyto", source, f"gw:{target}"]


@pytest.fixture
def programs(gateway: Gateway, tmp_path: Path) -> Programs:
    return Programs(gateway, tmp_path)


@contextlib.contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    client = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with client:
        try:
            yield client
        finally:
            if client.poll() is None:
                os.killpg(client.pid, signal.SIGKILL)


def ended(client: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status, and everything that the program wrote."""
    out, err = client.communicate(timeout=60)
    return client.returncode, (out + err).decode(errors="replace")


def under_way(gateway: Gateway, link: Link, target: str) -> None:
    """Until bytes of it are in the store, and its client is held back."""
    link.wait_until_held()
    name = target.rpartition("/")[2]
    eventually(
        lambda: [row for row in gateway.json("alice", "upload", "list") if name in str(row["path"]) and row["bytes"]]
    )


def written(gateway: Gateway, target: str) -> list[dict[str, object]]:
    """What the trail tells of handles that were open for writing, the newest first."""
    return [row for row in gateway.audit(action="data.write") if str(row["thing"]).startswith(target)]


# ---- the store is away for a moment ----------------------------------------------------------------------------


def busy(store: BadStore) -> None:
    store.busy()
    time.sleep(1.5)
    store.recover()


def away(store: BadStore) -> None:
    store.away()
    time.sleep(1.5)
    store.recover()


def frozen(store: BadStore) -> None:
    store.signal(signal.SIGSTOP)
    time.sleep(1.5)
    store.signal(signal.SIGCONT)


def killed(store: BadStore) -> None:
    """Its keeper starts it again."""
    store.signal(signal.SIGKILL)


@pytest.mark.parametrize(("trouble", "program"), [(busy, "sftp"), (away, "lftp"), (frozen, "curl"), (killed, "rclone")])
def test_nobody_notices_a_store_that_is_away_for_a_moment(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str, trouble: Trouble, program: str
) -> None:
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        with started(programs.sending(program, source, target, port=link.port)) as client:
            under_way(gateway, link, target)
            link.release()
            trouble(store)
            assert ended(client)[0] == 0
    assert stored(gateway, target) == digest(source)
    assert uploads(gateway, target) == []


def test_a_stalled_store_stops_only_those_who_send(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str
) -> None:
    """Four clients offer 132 MB, memory stays bounded, and what needs no store answers meanwhile."""
    targets = [f"{top}/{number}" for number in range(4)]
    before = gateway.memory()
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(bad_link(gateway.port, allowance=SENT)) for _ in targets]
        clients = [
            stack.enter_context(started(programs.sending("sftp", source, target, port=link.port)))
            for target, link in zip(targets, links, strict=True)
        ]
        for link in links:
            link.wait_until_held()
        store.stall()
        for link in links:
            link.release()
        for _ in range(4):
            assert b"bob" in gateway.ssh("bob", "whoami", timeout=20).stdout
            assert gateway.json("alice", "upload", "list")
            assert gateway.ssh("bob", "dataset", "list", timeout=20).returncode == 0
            assert gateway.memory() - before < 128 * MIB
        assert all(client.poll() is None for client in clients)
        store.recover()
        assert [ended(client)[0] for client in clients] == [0] * len(clients)
    assert {stored(gateway, target) for target in targets} == {digest(source)}


# ---- the store stays away --------------------------------------------------------------------------------------

KEPT = r"what is stored of the file is kept: go on with reput later"
OUT_OF_ORDER = rf"the object store is overloaded or out of order \(HTTP 503\); {KEPT}"
NO_ANSWER = rf"the object store does not answer \(\w+\); {KEPT}"


@pytest.mark.parametrize(
    ("trouble", "sentence", "crew"),
    [(BadStore.busy, OUT_OF_ORDER, ("scp", "rclone")), (BadStore.away, NO_ANSWER, ("sftp", "lftp"))],
    ids=["busy", "away"],
)
def test_a_store_that_stays_away(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str,
    trouble: Trouble, sentence: str, crew: tuple[str, ...],
) -> None:  # fmt: skip
    """One sentence and a failure for everybody; nothing appears, and each program goes on later."""
    with bad_link(gateway.port, allowance=SENT) as link, contextlib.ExitStack() as stack:
        clients = {
            program: stack.enter_context(started(programs.sending(program, source, f"{top}/{program}", port=link.port)))
            for program in crew
        }
        for program in crew:
            under_way(gateway, link, f"{top}/{program}")
        trouble(store)
        link.release()
        said = {program: ended(client) for program, client in clients.items()}
    store.recover()
    for program, (status, words) in said.items():
        assert status != 0, program
        # rclone repeats itself.
        assert len(re.findall(sentence, words)) == (3 if program == "rclone" else 1), words
    assert names_in(gateway, "bob", top) == []
    for program in crew:
        target = f"{top}/{program}"
        (event,) = written(gateway, target)
        assert (event["actor"], event["outcome"]) == ("alice", "failed")
        assert re.fullmatch(sentence, event["detail"]["reason"])  # type: ignore[index]
        if program != "rclone":  # it removes its temporary file
            assert parked(gateway, target) in (PART, 2 * PART)
        programs.go_on(program, source, target)
        assert stored(gateway, target) == digest(source)


# ---- the answer to the last request ----------------------------------------------------------------------------


def test_an_answer_that_is_lost_is_found_out(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str
) -> None:
    target = f"{top}/file"
    store.hold_complete()
    with started(programs.sending("sftp", source, target)) as client:
        eventually(lambda: store.has_completed)
        store.recover()  # the connection with the answer is gone
        assert ended(client)[0] == 0
    assert stored(gateway, target) == digest(source)


def test_a_gateway_that_is_killed_before_it_hears_the_answer(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str, tmp_path: Path
) -> None:
    """The object is there and the records tell of an older one: after the start it is one file, with its facts."""
    target = f"{top}/file"
    (tmp_path / "old").write_bytes(b"old")
    sftp(gateway, "alice", f"put {tmp_path / 'old'} {target}")
    store.hold_complete()
    with started(programs.sending("sftp", source, target)) as client:
        eventually(lambda: store.has_completed)
        gateway.stop(how=signal.SIGKILL)
        assert ended(client)[0] != 0
    store.recover()
    gateway.start()
    assert uploads(gateway, target) == []
    assert names_in(gateway, "bob", top) == ["file"]
    assert size_for(gateway, "bob", target) == SIZE
    assert stored(gateway, target) == digest(source)
    assert [row["outcome"] for row in gateway.audit(action="upload.settle", thing=target)] == ["ok"]


def test_a_gateway_starts_although_its_store_is_away(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str
) -> None:
    """Everything but the data works meanwhile, and the data without another start."""
    target = f"{top}/file"
    with bad_link(gateway.port, allowance=SENT) as link:
        with started(programs.sending("sftp", source, target, port=link.port)) as client:
            under_way(gateway, link, target)
            store.away()
            gateway.stop(how=signal.SIGKILL)
            ended(client)
    gateway.start()
    assert b"alice" in gateway.ssh("alice", "whoami").stdout
    assert "the object store does not answer" in sftp(gateway, "alice", f"ls {top}", check=False)
    store.recover()
    programs.go_on("sftp", source, target)
    assert stored(gateway, target) == digest(source)
    assert "died" not in gateway.log_tail()


# ---- reading ---------------------------------------------------------------------------------------------------


def reading(gateway: Gateway, got: Path) -> None:
    eventually(lambda: got.exists() and got.stat().st_size > 4 * MIB, pause=0.05)


def test_reads_wait_for_a_store_that_is_away_for_a_moment(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str, tmp_path: Path
) -> None:
    target, got = f"{top}/file", tmp_path / "got"
    sftp(gateway, "alice", f"put {source} {target}")
    with started(programs.get(target, got)) as client:
        reading(gateway, got)
        away(store)
        assert ended(client)[0] == 0
    assert digest(got) == digest(source)


def test_a_read_that_fails_says_so(
    gateway: Gateway, store: BadStore, programs: Programs, source: Path, top: str, tmp_path: Path
) -> None:
    target, got = f"{top}/file", tmp_path / "got"
    sftp(gateway, "alice", f"put {source} {target}")
    with started(programs.get(target, got)) as client:
        reading(gateway, got)
        store.busy()
        status, said = ended(client)
    store.recover()
    assert status != 0
    assert said.count("the object store is overloaded or out of order (HTTP 503)") == 1
    assert source.read_bytes().startswith(got.read_bytes())
    (event,) = [row for row in gateway.audit(action="data.read", thing=target) if row["actor"] == "alice"]
    assert (event["outcome"], event["detail"]["code"]) == ("failed", "unavailable")
    sftp(gateway, "alice", f"reget {target} {got}")
    assert digest(got) == digest(source)


def test_a_file_that_is_replaced_is_never_mixed(
    gateway: Gateway, programs: Programs, source: Path, top: str, tmp_path: Path
) -> None:
    target, got, other = f"{top}/file", tmp_path / "got", tmp_path / "other"
    other.write_bytes(os.urandom(SIZE))
    sftp(gateway, "alice", f"put {source} {target}")
    with started(programs.get(target, got)) as client:
        reading(gateway, got)
        sftp(gateway, "alice", f"put {other} {target}")
        status, said = ended(client)
    if status == 0:
        assert digest(got) == digest(source)
    else:
        assert said.count("the file was replaced meanwhile") == 1
        assert source.read_bytes().startswith(got.read_bytes())
    assert stored(gateway, target) == digest(other)


# ---- room ------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(gateway: Gateway, store: BadStore, top: str) -> Iterator[Gateway]:
    """The gateway with 60 MB for the whole workspace, nothing of which is taken."""
    eventually(lambda: usage(gateway)[1] == 0)
    settings, gateway.settings = gateway.settings, store.settings(workspace_gib=60e6 / 1024**3)
    gateway.stop()
    gateway.start()
    yield gateway
    gateway.settings = settings


def usage(gateway: Gateway) -> tuple[int, int, int]:
    """Size, used and available in KiB, as `df` and the SFTP extension tell alike."""
    by_command = gateway.ssh("alice", "df").stdout.decode().splitlines()[1].split()[1:4]
    by_sftp = sftp(gateway, "alice", "df /").splitlines()[-1].split()[:3]
    numbers = [int(word) for word in by_command]
    assert all(abs(int(word) - number) <= 4 for word, number in zip(by_sftp, numbers, strict=True))
    return numbers[0], numbers[1], numbers[2]


def test_a_workspace_that_becomes_full(
    limited: Gateway, programs: Programs, source: Path, top: str, tmp_path: Path
) -> None:
    """What fits is kept, everybody is told what is allowed and used, and after some tidying it goes on."""
    sentence = (
        r"the workspace 'team' may hold 57\.2MiB, 28\.6MiB are stored{}: this file does not fit; "
        "remove something, or ask for more, then go on with reput"
    )
    tidy, target = f"{top}/tidy", f"{top}/file"
    (tmp_path / "old").write_bytes(os.urandom(30_000_000))
    sftp(limited, "alice", f"put {tmp_path / 'old'} {tidy}")
    with started(programs.sending("sftp", source, target)) as client:
        status, said = ended(client)
    assert status == 1
    assert len(re.findall(sentence.format(""), said)) == 1
    assert parked(limited, target) == 5 * PART
    assert size_for(limited, "bob", target) is None
    total, used, free = usage(limited)
    assert (total, free) == (60_000_000 // 1024, total - used)
    assert abs(used - (30_000_000 + 5 * PART) // 1024) <= 4
    for program in ("lftp", "curl", "rclone"):
        with started(programs.sending(program, source, f"{top}/{program}")) as client:
            status, said = ended(client)
        assert status != 0
        if program != "curl":  # which throws the words of the server away
            assert re.search(sentence.format(r" and 25MiB are on their way or broke off"), said)
        assert program != "rclone" or "(SSH_FX_FAILURE)" in said
    for path in (target, f"{top}/lftp", f"{top}/curl", f"{top}/rclone"):
        (event,) = written(limited, path)
        assert (event["outcome"], event["detail"]["code"]) == ("refused", "over-quota")  # type: ignore[index]
    sftp(limited, "alice", f"rm {tidy}", f"reput {source} {target}")
    assert stored(limited, target) == digest(source)
    assert abs(usage(limited)[1] - SIZE // 1024) <= 4
