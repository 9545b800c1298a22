"""Every action, for every kind of caller and thing: what no rule allows is refused."""

from __future__ import annotations

import pytest

from storage.access import (
    Action,
    Caller,
    Destination,
    Owned,
    SharedMachine,
    SocketPath,
    Thing,
    Variable,
    Visibility,
    decide,
    may_see,
    require,
)
from storage.errors import NotAllowed, NotFound
from storage.records import AssetKind

ALICE = Caller("a", "alice", False, "w1", "team")
BOB = Caller("b", "bob", False, "w1", "team")
EVE = Caller("e", "eve", False, "w2", "other")
ADMIN = Caller("r", "root", True, "w1", "team")
TRAIN = Owned("environment", "train", "a", "w1")
DATASET = Owned("data set", "mnist", "a", "w1")
SEALED = Owned("data set", "mnist:v1", "a", "w1", sealed=True)
THINGS: list[Thing] = [
    None, TRAIN, DATASET, SEALED, Destination(TRAIN, "127.0.0.1", 80), SocketPath(TRAIN, "/tmp/s"), Variable("LANG"),
    SharedMachine("box", frozenset({"alice"}), frozenset()),
]  # fmt: skip
INTO = (
    Action.SHELL, Action.EXEC, Action.SFTP, Action.JUMP, Action.AGENT, Action.PORT_PUBLISH,
    Action.APPLICATION_ACCESS, Action.APPLICATION_NEW_SECRET, Action.APPLICATION_ADD,
)  # fmt: skip


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("thing", THINGS, ids=repr)
def test_a_refusal_always_has_a_reason(action: Action, thing: Thing) -> None:
    for caller in (ALICE, BOB, EVE, ADMIN):
        decision = decide(caller, action, thing)
        assert decision.allowed or decision.reason


@pytest.mark.parametrize("action", INTO)
@pytest.mark.parametrize("caller", [BOB, EVE, ADMIN])
def test_nobody_enters_somebody_elses_environment(action: Action, caller: Caller) -> None:
    assert not decide(caller, action, TRAIN).allowed
    assert decide(ALICE, action, TRAIN).allowed


@pytest.mark.parametrize("action", [Action.FORWARD_TCP, Action.FORWARD_SOCKET])
@pytest.mark.parametrize("caller", [BOB, EVE, ADMIN])
def test_nobody_forwards_into_somebody_elses_environment(action: Action, caller: Caller) -> None:
    assert not decide(caller, action, Destination(TRAIN, "127.0.0.1", 80)).allowed
    assert not decide(caller, action, SocketPath(TRAIN, "/tmp/s")).allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True), ("LocalHost", True),
     ("10.0.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False), ("example.org", False), ("", False),
     ("localhost.evil.org", False), ("127.0.0.1.evil.org", False), ("::ffff:10.0.0.1", False), ("2130706433", False)],
)  # fmt: skip
def test_forwards_reach_loopback_only(host: str, allowed: bool) -> None:
    assert decide(ALICE, Action.FORWARD_TCP, Destination(TRAIN, host, 8888)).allowed is allowed


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_forwards_need_a_port(port: int) -> None:
    assert not decide(ALICE, Action.FORWARD_TCP, Destination(TRAIN, "127.0.0.1", port)).allowed


def test_remote_forwards_and_x11_are_refused() -> None:
    assert not decide(ALICE, Action.FORWARD_REMOTE, Destination(TRAIN, "127.0.0.1", 80)).allowed
    assert not decide(ALICE, Action.X11, TRAIN).allowed


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/run/user/1000/x.sock", True), ("x.sock", False), ("/a/../b", False), ("/opt/ashore/run/x", False)],
)
def test_socket_forwards(path: str, allowed: bool) -> None:
    assert decide(ALICE, Action.FORWARD_SOCKET, SocketPath(TRAIN, path)).allowed is allowed


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("LANG", True), ("LC_ALL", True), ("TERM", True), ("COLORTERM", True), ("TZ", True), ("LD_PRELOAD", False),
     ("PATH", False), ("BASH_ENV", False), ("PYTHONPATH", False), ("LC_", False), ("LC_X=1", False), ("", False)],
)  # fmt: skip
def test_environment_variables(name: str, allowed: bool) -> None:
    assert decide(ALICE, Action.SET_VARIABLE, Variable(name)).allowed is allowed


def test_machines_take_those_of_their_settings_and_administrators() -> None:
    by_name, by_workspace, closed = (
        SharedMachine("box", frozenset(users), frozenset(workspaces))
        for users, workspaces in (({"alice"}, {}), ({}, {"team"}), ({}, {}))
    )
    allowed = [
        [decide(caller, Action.MACHINE_USE, one).allowed for caller in (ALICE, BOB, EVE, ADMIN)]
        for one in (by_name, by_workspace, closed)
    ]
    assert allowed == [[True, False, False, True], [True, True, False, True], [False, False, False, True]]
    assert not decide(ADMIN, Action.SHELL, by_name).allowed


def test_data_sets() -> None:
    assert decide(BOB, Action.DATASET_READ, DATASET).allowed
    assert not decide(BOB, Action.DATASET_WRITE, DATASET).allowed
    assert decide(EVE, Action.DATASET_READ, DATASET).hidden
    assert not decide(ALICE, Action.DATASET_WRITE, SEALED).allowed
    assert not decide(ADMIN, Action.DATASET_WRITE, SEALED).allowed


@pytest.mark.parametrize("action", [Action.UPLOAD_SHOW, Action.UPLOAD_ABORT])
def test_uploads(action: Action) -> None:
    upload = Owned("upload", "u", ALICE.user_id)
    assert decide(ALICE, action, upload).allowed
    assert decide(ADMIN, action, upload).allowed
    assert decide(BOB, action, upload).hidden


# ---- visibility: every caller × visibility × sharing, every action -----------------------------------------------
MALLORY = Caller("m", "mallory", False, "w3", "third")
MOVED = Caller("a", "alice", False, "w2", "other")
"""The owner, now at work in another workspace."""
FAR_ADMIN = Caller("r", "root", True, "w9", "far")
SEEN_BY = {
    (Visibility.PRIVATE, False): {ALICE, ADMIN, FAR_ADMIN},
    (Visibility.PRIVATE, True): {ALICE, ADMIN, FAR_ADMIN},
    (Visibility.WORKSPACE, False): {ALICE, BOB, ADMIN, FAR_ADMIN},
    (Visibility.WORKSPACE, True): {ALICE, BOB, EVE, MOVED, ADMIN, FAR_ADMIN},
    (Visibility.PUBLIC, False): {ALICE, BOB, EVE, MALLORY, MOVED, ADMIN, FAR_ADMIN},
    (Visibility.PUBLIC, True): {ALICE, BOB, EVE, MALLORY, MOVED, ADMIN, FAR_ADMIN},
}
CHANGED_BY = {ALICE, ADMIN, FAR_ADMIN}
EVERYBODY = (ALICE, BOB, EVE, MALLORY, MOVED, ADMIN, FAR_ADMIN)
OF_ASSETS = [a for a in Action if a.value.startswith(("dataset.", "model."))]


def asset(visibility: Visibility, *, shared: bool, sealed: bool = False) -> Owned:
    """Alice's, in the workspace w1; `shared` with w2."""
    return Owned(
        "model", "bert", "a", "w1", sealed=sealed, visibility=visibility,
        shared_with=frozenset({"w2"} if shared else ()),
    )  # fmt: skip


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("action", OF_ASSETS)
@pytest.mark.parametrize(("visibility", "shared"), SEEN_BY)
@pytest.mark.parametrize("caller", EVERYBODY, ids=lambda caller: f"{caller.name}@{caller.workspace}")
def test_visibility(caller: Caller, visibility: Visibility, shared: bool, action: Action, sealed: bool) -> None:
    thing = asset(visibility, shared=shared, sealed=sealed)
    decision = decide(caller, action, thing)
    verb = action.value.partition(".")[2]
    if verb in ("list", "create"):
        assert decision.allowed  # of one's own workspace; what is listed goes by `may_see`
        return
    seen = caller in SEEN_BY[visibility, shared]
    assert may_see(caller, thing) is seen
    assert decision.hidden is not seen
    if verb == "read":
        assert decision.allowed is seen
    else:
        assert decision.allowed is (seen and caller in CHANGED_BY and not (verb == "write" and sealed))


def test_every_verb_is_there_for_both_kinds() -> None:
    verbs = {kind: {a.value.partition(".")[2] for a in Action if a.value.startswith(f"{kind}.")} for kind in AssetKind}
    assert verbs[AssetKind.DATASET] >= verbs[AssetKind.MODEL]
    for verb in verbs[AssetKind.MODEL]:
        assert AssetKind.MODEL.action(verb).value == f"model.{verb}"


def test_what_may_not_be_seen_is_not_found() -> None:
    with pytest.raises(NotFound):
        require(BOB, Action.SHELL, TRAIN)
    with pytest.raises(NotAllowed):
        require(ADMIN, Action.SHELL, TRAIN)


@pytest.mark.parametrize("action", [Action.AUDIT_SEARCH, Action.USER_MANAGE])
def test_administration(action: Action) -> None:
    assert decide(ADMIN, action).allowed
    assert not decide(ALICE, action).allowed
