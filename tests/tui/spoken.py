"""The sentences that use cases say to people, found in the source, so that none can be left out of a catalogue.

What counts: whatever an error of the tree in `storage/errors.py` is raised with, and every other text of two words or
more, which is how reasons in records, refusals of a plan and warnings are written. Texts for logs, names of tasks,
shell scripts and SQL are told apart by where they stand; the few others are named in `NOT_SAID`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ROOMS = (
    "storage",
    "backends",
    "tui/texts/formats.py",
    "tui/host.py",
    "gateway/notices.py",
    "gateway/relay.py",
    "gateway/menu.py",
)
_NOT_FOR_THE_MENU = {
    "storage/audit.py",  # for `audit verify`
    "storage/database/engine.py",
    "storage/database/quick.py",
    "storage/hot_queries.py",
    "storage/objects/embedded.py",  # for whoever starts the gateway
    "storage/objects/probe.py",  # for `doctor` and `check`
    "backends/application_script.py",
    "backends/application_templates.py",
    "backends/compute/memory.py",  # for tests
    "backends/builders/memory.py",
    "backends/compute/sandbox.py",
    "backends/compute/sandbox_helper.py",
    "backends/compute/sandbox_limits.py",
    "backends/compute/ssh/scripts.py",
    "backends/guest_files.py",
    "backends/quota_watch.py",  # for a chat service
}
_ERRORS = {
    "AshoreError", "BadInput", "NotFound", "NotAllowed", "AlreadyExists", "InUse", "OverQuota", "Conflict",
    "Unavailable", "TimedOut",
}  # fmt: skip
_NOT_FOR_PEOPLE = {
    "create_task", "Thread", "run", "_fly", "Batch", "Child", "_Connection", "ReconcilerLoop", "Index", "text",
    "execute", "execution_options", "CheckConstraint", "ValueError", "RuntimeError", "TypeError", "KeyError",
    "OSError", "ConnectionResetError", "ConnectionRefusedError", "_Malformed", "_evict", "Event", "all_of",
}  # fmt: skip
"""Calls whose texts are names of tasks, SQL, reasons for the log, or caught where they are raised."""
_LEVELS = {"debug", "info", "warning", "error", "exception", "log"}
NOT_SAID = frozenset(
    {
        "at least one attempt", "the last attempt returns or raises",  # of assertions
        "objects.endpoint must be http://host:port or https://host:port",  # before the gateway serves anybody
        "objects.bucket is no possible name of a bucket: use 3 to 63 of a-z 0-9 . -",
        "mv {}.new {}", "docker system dial-stdio", "Bearer {}", "Basic {}",
        "could not select device driver", "container state improper", "already in use", "already exists",
        "dial tcp", "no such host", "connection refused", "connection reset", "i/o timeout", "TLS handshake",
        "deadline exceeded", "network is unreachable", "no route to host", "Bad Gateway", "Service Unavailable",
        "Gateway Time-out", "manifest unknown", "name unknown", "no matching manifest", "no basic auth",
        "authentication required", "invalid reference",  # of engines and registries
        "is being used", "no space left on device", "Download complete", "Pull complete", "container", "not found",
        "piece of {}", "files of import {}",  # of tasks
        "of this machine", "on the host {}", "{} at {}, port {}", "{}, {}, as {}",  # for operators
        "{} at {}",  # of `env show`
        "ashore: {}", "{} in the wrong direction",
        "The menu had to stop: an internal error, which was logged. Please reconnect.",  # with Chinese
        "菜单进程已退出，请重新连接 / the menu was lost, please reconnect",
    }
)  # fmt: skip
"""Not for people, or not by way of the menu."""


@cache
def spoken() -> dict[str, str]:
    """Shape of each sentence (`there is no file '{}'`) → the same with named places."""
    found: dict[str, str] = {}
    for path in _files():
        for template in sentences_of(path.read_text()):
            shape = shape_of(template)
            if shape not in NOT_SAID:
                found.setdefault(shape, template)
    return found


def sentences_of(source: str) -> list[str]:
    """Those of one module."""
    reader = _Reader()
    reader.visit(ast.parse(source))
    return reader.found


def shape_of(template: str) -> str:
    """`template` without the names of its places."""
    return re.sub(r"\{\w+\}", "{}", template)


def _files() -> Iterator[Path]:
    for room in _ROOMS:
        where = ROOT / room
        for path in sorted(where.rglob("*.py")) if where.is_dir() else (where,):
            name = path.relative_to(ROOT).as_posix()
            if name not in _NOT_FOR_THE_MENU and "/migrations/" not in name and path.name != "settings.py":
                yield path


class _Reader(ast.NodeVisitor):
    """Collects the sentences of one module."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._raised = False

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # docstrings
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in _NOT_FOR_PEOPLE or _is_log(node.func):
            return
        before, self._raised = self._raised, name in _errors()
        self.generic_visit(node)
        self._raised = before

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._take(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._take(node)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def _take(self, node: ast.expr) -> None:
        template = _template(node)
        literal = re.sub(r"\{\w+\}", "\0", template)
        if "\n" in template or "$(" in template or re.match(r"(SELECT|PRAGMA|INSERT|UPDATE) ", template):
            return
        if re.search("[a-z]{2}" if self._raised else r"[a-z]{2}[,;:')]* ['(]?[a-z\0]", literal):
            self.found.append(template)


@cache
def _errors() -> frozenset[str]:
    """The classes of the tree, with those that are derived from them elsewhere."""
    names = set(_ERRORS)
    classes = [
        node for path in _files() for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    for _ in range(3):  # a class may be derived from one that is read later
        names |= {one.name for one in classes if any(getattr(base, "id", "") in names for base in one.bases)}
    return frozenset(names)


def _is_log(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in _LEVELS
        and isinstance(function.value, ast.Name)
        and function.value.id in ("log", "_log")
    )


def _template(node: ast.expr) -> str:
    if not isinstance(node, ast.JoinedStr):
        return str(getattr(node, "value", ""))
    used: set[str] = set()
    words = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            words += str(part.value)
        elif isinstance(part, ast.FormattedValue):
            if words.endswith("}"):  # two values side by side cannot be told apart again
                continue
            name = _name(part.value)
            while name in used:
                name += "_2"
            used.add(name)
            words += f"{{{name}}}"
    return words


def _name(node: ast.expr) -> str:
    """A word for the value of a place: the last name in its expression that says something."""
    match node:
        case ast.Name(id=name):
            return name.strip("_").lower()
        case ast.Attribute(attr="value" | "name", value=inner) if not isinstance(inner, ast.Name):
            return _name(inner)
        case ast.Attribute(attr="message" | "strerror"):
            return "reason"
        case ast.Attribute(attr=name):
            return name.strip("_").lower()
        case ast.Call(func=ast.Attribute(attr="join"), args=[first, *_]) | ast.Call(func=ast.Name(), args=[first, *_]):
            return _name(first)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
            return name.strip("_").lower()
        case ast.Call(func=ast.Attribute(value=inner)):
            return _name(inner)
        case ast.BinOp(left=inner) | ast.Subscript(value=inner) | ast.BoolOp(values=[inner, *_]):
            return _name(inner)
    return "value"
