"""Who may do what: one pure function, `decide()`, that every use case asks.

Doors hold no rule. Each use case takes the caller first and asks here before it looks further; what a caller may
not even see answers NotFound. No I/O here, and no record class: things are described by the small facts below.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from storage.errors import NotAllowed, NotFound


@dataclass(frozen=True)
class Caller:
    """A person whose key or password was proven, on one connection."""

    user_id: str
    name: str
    is_admin: bool
    workspace_id: str
    workspace: str
    address: str = ""
    connection: str = ""

    @property
    def owner(self) -> str:
        return self.user_id


class Action(StrEnum):
    """Everything that can be allowed or refused, by the names that the audit trail shows."""

    MENU = "menu.open"
    COMMAND = "command.run"
    ENVIRONMENT_LIST = "environment.list"
    ENVIRONMENT_SHOW = "environment.show"
    ENVIRONMENT_CREATE = "environment.create"
    ENVIRONMENT_START = "environment.start"
    ENVIRONMENT_STOP = "environment.stop"
    ENVIRONMENT_CHANGE = "environment.change"
    ENVIRONMENT_DELETE = "environment.delete"
    ENVIRONMENT_LOGS = "environment.logs"
    PORT_PUBLISH = "environment.publish"
    PORT_UNPUBLISH = "environment.unpublish"
    APPLICATION_ACCESS = "application.access"
    APPLICATION_NEW_SECRET = "application.new-secret"
    APPLICATION_ADD = "application.add"
    APPLICATION_REMOVE = "application.remove"
    SHELL = "environment.shell"
    EXEC = "environment.exec"
    SFTP = "environment.sftp"
    JUMP = "environment.jump"
    FORWARD_TCP = "environment.forward-tcp"
    FORWARD_SOCKET = "environment.forward-socket"
    FORWARD_REMOTE = "environment.forward-remote"
    AGENT = "environment.agent"
    X11 = "environment.x11"
    SET_VARIABLE = "environment.set-variable"
    TREE_READ = "tree.read"
    DATASET_LIST = "dataset.list"
    DATASET_READ = "dataset.read"
    DATASET_CREATE = "dataset.create"
    DATASET_WRITE = "dataset.write"
    DATASET_PUBLISH = "dataset.publish"
    DATASET_CHANGE = "dataset.change"
    DATASET_SHARE = "dataset.share"
    DATASET_DELETE = "dataset.delete"
    MODEL_LIST = "model.list"
    MODEL_READ = "model.read"
    MODEL_CREATE = "model.create"
    MODEL_WRITE = "model.write"
    MODEL_PUBLISH = "model.publish"
    MODEL_CHANGE = "model.change"
    MODEL_SHARE = "model.share"
    MODEL_DELETE = "model.delete"
    IMAGE_LIST = "image.list"
    IMAGE_SHOW = "image.show"
    IMAGE_USE = "image.use"
    IMAGE_CREATE = "image.create"
    IMAGE_CHANGE = "image.change"
    IMAGE_DELETE = "image.delete"
    IMAGE_PULL = "image.pull"
    BUILD_CHECK = "build.check"
    BUILD_REQUEST = "build.request"
    BUILD_LIST = "build.list"
    BUILD_SHOW = "build.show"
    BUILD_CANCEL = "build.cancel"
    UPLOAD_LIST = "upload.list"
    UPLOAD_SHOW = "upload.show"
    UPLOAD_ABORT = "upload.abort"
    IMPORT_LIST = "import.list"
    IMPORT_SHOW = "import.show"
    IMPORT_REQUEST = "import.request"
    IMPORT_CANCEL = "import.cancel"
    ARTIFACT_LIST = "artifact.list"
    ARTIFACT_READ = "artifact.read"
    ARTIFACT_SHARE = "artifact.share"
    ARTIFACT_DELETE = "artifact.delete"
    STORE_PROBE = "store.probe"
    KEY_LIST = "key.list"
    KEY_ADD = "key.add"
    KEY_REMOVE = "key.remove"
    SESSION_LIST = "session.list"
    SESSION_KILL = "session.kill"
    RECORD_LIST = "record.list"
    RECORD_PLAY = "record.play"
    HOST_LIST = "host.list"
    HOST_DRAIN = "host.drain"
    HOST_RESUME = "host.resume"
    HOST_FORGET = "host.forget"
    MACHINE_USE = "machine.use"
    QUOTA_SHOW = "quota.show"
    QUOTA_SET = "quota.set"
    AUDIT_SEARCH = "audit.search"
    USER_MANAGE = "user.manage"


class Visibility(StrEnum):
    """Who may read an asset or use an image: its owner; its workspace and those it is shared with; everybody here."""

    PRIVATE = "private"
    WORKSPACE = "workspace"
    PUBLIC = "public"


@dataclass(frozen=True)
class Owned:
    """A thing with an owner: an environment, a data set, a session, a recording, a key."""

    kind: str
    name: str
    owner_id: str
    workspace_id: str = ""
    sealed: bool = False
    """Published: nobody writes any more."""
    visibility: Visibility = Visibility.WORKSPACE
    """Of data sets, models, images and artifacts."""
    shared_with: frozenset[str] = frozenset()
    """Ids of other workspaces that may read a data set or model, unless it is private."""


@dataclass(frozen=True)
class Destination:
    """Where a TCP forward wants to go, seen from inside `environment`."""

    environment: Owned
    host: str
    port: int


@dataclass(frozen=True)
class SocketPath:
    """A Unix socket that a forward wants to reach, seen from inside `environment`."""

    environment: Owned
    path: str


@dataclass(frozen=True)
class Variable:
    """An environment variable that a client wants to set."""

    name: str


@dataclass(frozen=True)
class SharedMachine:
    """A machine whose environments share one account, and by its settings whom it takes."""

    name: str
    users: frozenset[str]
    workspaces: frozenset[str]


Thing = Owned | Destination | SocketPath | Variable | SharedMachine | None


@dataclass(frozen=True)
class Decision:
    """The answer: allowed or not, a sentence that says why not, and whether the thing may be seen at all."""

    allowed: bool
    reason: str = ""
    hidden: bool = False


YES = Decision(True)
_OWN = frozenset(
    {
        Action.ENVIRONMENT_SHOW, Action.ENVIRONMENT_START, Action.ENVIRONMENT_STOP, Action.ENVIRONMENT_DELETE,
        Action.ENVIRONMENT_CHANGE, Action.ENVIRONMENT_LOGS,
        Action.PORT_PUBLISH, Action.PORT_UNPUBLISH, Action.APPLICATION_ACCESS, Action.APPLICATION_NEW_SECRET,
        Action.APPLICATION_ADD, Action.APPLICATION_REMOVE,
        Action.SHELL, Action.EXEC, Action.SFTP, Action.JUMP, Action.AGENT,
        Action.UPLOAD_SHOW, Action.UPLOAD_ABORT, Action.IMPORT_SHOW, Action.IMPORT_CANCEL,
        Action.BUILD_SHOW, Action.BUILD_CANCEL,
        Action.KEY_REMOVE, Action.SESSION_KILL, Action.RECORD_PLAY,
    }
)  # fmt: skip
# An administrator manages everybody's things, but what leads into somebody's environment is that person's alone.
_ADMIN_TOO = _OWN - {
    Action.SHELL, Action.EXEC, Action.SFTP, Action.JUMP, Action.AGENT,
    Action.PORT_PUBLISH, Action.APPLICATION_ACCESS, Action.APPLICATION_NEW_SECRET, Action.APPLICATION_ADD,
}  # fmt: skip
_EVERYBODY = frozenset(
    {
        Action.MENU, Action.COMMAND, Action.ENVIRONMENT_LIST, Action.ENVIRONMENT_CREATE, Action.TREE_READ,
        Action.DATASET_LIST, Action.DATASET_CREATE, Action.MODEL_LIST, Action.MODEL_CREATE, Action.UPLOAD_LIST,
        Action.KEY_LIST, Action.KEY_ADD, Action.SESSION_LIST, Action.RECORD_LIST,
        Action.IMPORT_LIST, Action.IMPORT_REQUEST, Action.ARTIFACT_LIST, Action.IMAGE_LIST, Action.IMAGE_CREATE,
        Action.BUILD_CHECK, Action.BUILD_REQUEST, Action.BUILD_LIST,
    }
)  # fmt: skip
_ADMIN_ONLY = frozenset(
    {
        Action.AUDIT_SEARCH, Action.USER_MANAGE, Action.STORE_PROBE, Action.QUOTA_SET, Action.HOST_LIST,
        Action.HOST_DRAIN, Action.HOST_RESUME, Action.HOST_FORGET, Action.IMAGE_PULL,
    }
)  # fmt: skip
_IMAGE_READ = frozenset({Action.IMAGE_SHOW, Action.IMAGE_USE})
_IMAGE = _IMAGE_READ | frozenset({Action.IMAGE_CHANGE, Action.IMAGE_DELETE})
_ASSET_READ = frozenset({Action.DATASET_READ, Action.MODEL_READ, Action.ARTIFACT_READ})
_ASSET_WRITE = frozenset({Action.DATASET_WRITE, Action.MODEL_WRITE})
_ASSET = (
    _ASSET_READ
    | _ASSET_WRITE
    | frozenset(
        {
            Action.DATASET_PUBLISH, Action.DATASET_CHANGE, Action.DATASET_SHARE, Action.DATASET_DELETE,
            Action.MODEL_PUBLISH, Action.MODEL_CHANGE, Action.MODEL_SHARE, Action.MODEL_DELETE,
            Action.ARTIFACT_SHARE, Action.ARTIFACT_DELETE,
        }
    )
)  # fmt: skip
_VARIABLES = frozenset({"LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "TZ"})


def decide(caller: Caller, action: Action, thing: Thing = None) -> Decision:
    """Whether `caller` may do `action` to `thing`. Whatever no rule allows is refused."""
    if action in _EVERYBODY:
        return YES
    if action in _ADMIN_ONLY:
        return YES if caller.is_admin else Decision(False, "only administrators may do this")
    if isinstance(thing, Variable):
        return _decide_variable(thing)
    if isinstance(thing, Destination):
        return _decide_destination(caller, action, thing)
    if isinstance(thing, SocketPath):
        return _decide_socket(caller, action, thing)
    if isinstance(thing, SharedMachine):
        return _decide_machine(caller, action, thing)
    if isinstance(thing, Owned):
        return _decide_owned(caller, action, thing)
    return Decision(False, f"{action.value} is not possible here")


def require(caller: Caller, action: Action, thing: Thing = None) -> None:
    """Return if `decide` allows it; NotFound for what may not be seen, NotAllowed otherwise."""
    decision = decide(caller, action, thing)
    if decision.allowed:
        return
    if decision.hidden and isinstance(thing, Owned):
        raise NotFound(f"there is no {thing.kind} '{thing.name}'")
    raise NotAllowed(decision.reason)


def _decide_owned(caller: Caller, action: Action, thing: Owned) -> Decision:
    if action in _ASSET:
        return _decide_asset(caller, action, thing)
    if action in _IMAGE:
        return _decide_image(caller, action, thing)
    if action is Action.QUOTA_SHOW:
        return _decide_quota(caller, thing)
    if action not in _OWN:
        return Decision(False, f"{action.value} is not possible here")
    if thing.owner_id == caller.user_id or (caller.is_admin and action in _ADMIN_TOO):
        return YES
    return Decision(False, f"this {thing.kind} belongs to somebody else", hidden=not caller.is_admin)


def _decide_quota(caller: Caller, thing: Owned) -> Decision:
    """One's own, and that of the workspace one is in: what colleagues use up together is no secret among them."""
    if caller.is_admin or thing.owner_id == caller.user_id:
        return YES
    if thing.kind == "workspace" and thing.workspace_id == caller.workspace_id:
        return YES
    return Decision(False, f"this {thing.kind}'s quota is somebody else's", hidden=True)


def may_see(caller: Caller, thing: Owned) -> bool:
    """The rule of visibility: whether `caller` may know of a data set, model, artifact or image at all, and so read it.

    Lists, the tree, /shared, links and mounts all go by it. Within its own workspace `shared_with` says nothing;
    an owner who has moved to another workspace is a stranger like any other.
    """
    if caller.is_admin or thing.visibility is Visibility.PUBLIC:
        return True
    if thing.visibility is Visibility.PRIVATE:
        return thing.workspace_id == caller.workspace_id and thing.owner_id == caller.user_id
    return caller.workspace_id == thing.workspace_id or caller.workspace_id in thing.shared_with


def _decide_asset(caller: Caller, action: Action, thing: Owned) -> Decision:
    if not may_see(caller, thing):
        return Decision(False, f"this {thing.kind} belongs to somebody else", hidden=True)
    if action in _ASSET_READ:
        return YES
    if not caller.is_admin and thing.workspace_id != caller.workspace_id:
        return Decision(False, f"the {thing.kind} '{thing.name}' belongs to another workspace and is read-only here")
    if not caller.is_admin and thing.owner_id != caller.user_id:
        return Decision(False, f"only its owner may change the {thing.kind} '{thing.name}'")
    if action in _ASSET_WRITE and thing.sealed:
        return Decision(False, f"'{thing.name}' is published and cannot be changed")
    return YES


def _decide_image(caller: Caller, action: Action, thing: Owned) -> Decision:
    if not may_see(caller, thing):
        return Decision(False, "this image belongs to somebody else", hidden=True)
    if action in _IMAGE_READ or caller.is_admin:
        return YES
    if thing.owner_id == caller.user_id and thing.workspace_id == caller.workspace_id:
        return YES
    return Decision(False, f"only its owner may change the image '{thing.name}'")


def _decide_destination(caller: Caller, action: Action, thing: Destination) -> Decision:
    if thing.environment.owner_id != caller.user_id:
        return Decision(False, "this environment belongs to somebody else", hidden=True)
    if action is Action.FORWARD_TCP and is_loopback(thing.host) and 0 < thing.port < 65536:
        return YES
    if action is Action.FORWARD_REMOTE:
        return Decision(False, "remote forwards (-R) are not offered")
    return Decision(False, "forwards reach the environment's own loopback only: 127.0.0.1, ::1 or localhost")


def _decide_machine(caller: Caller, action: Action, thing: SharedMachine) -> Decision:
    if action is not Action.MACHINE_USE:
        return Decision(False, f"{action.value} is not possible here")
    if caller.is_admin or caller.name in thing.users or caller.workspace in thing.workspaces:
        return YES
    return Decision(False, f"'{thing.name}' is not open to you: an administrator can add you to its settings")


def _decide_socket(caller: Caller, action: Action, thing: SocketPath) -> Decision:
    if thing.environment.owner_id != caller.user_id:
        return Decision(False, "this environment belongs to somebody else", hidden=True)
    allowed = thing.path.startswith("/") and ".." not in thing.path.split("/") and "\0" not in thing.path
    if action is Action.FORWARD_SOCKET and allowed and not thing.path.startswith("/opt/ashore/"):
        return YES
    return Decision(False, "forwards reach absolute socket paths of the environment only")


def _decide_variable(thing: Variable) -> Decision:
    if thing.name in _VARIABLES or (thing.name.startswith("LC_") and thing.name[3:].isalpha()):
        return YES
    return Decision(False, "only LANG, LC_*, TERM, COLORTERM, NO_COLOR and TZ are passed on")


def is_loopback(host: str) -> bool:
    """Whether `host` can only mean the machine itself: localhost, 127.0.0.0/8, ::1."""
    if host.lower() in ("localhost", "localhost.localdomain", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
