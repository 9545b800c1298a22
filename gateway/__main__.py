"""`ashore`: the operator's command line.

Here is only what can be typed; the work is in `gateway.operator`, imported when a command needs it, so that
`ashore version` and `--help` answer at once. Errors are one sentence on stderr and the exit status of the error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ABOUT = """\
Ashore: one SSH port in front of a team's GPU machines.

  ashore serve --data DIR        serve; with an empty DIR this is all you need
  ashore invite carol            a one-time login for a colleague
  ashore user add carol --key carol.pub
"""
_INTERRUPTED = 130
_VERSION = "version"
Commands = Any
"""What `add_subparsers` returns; argparse keeps its type to itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(argv)
    if options.run == _VERSION:
        from gateway.about import version

        sys.stdout.write(f"ashore {version()}\n")
        return 0
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    import asyncio
    import importlib

    from gateway import logs
    from storage.errors import AshoreError

    logs.configure(quiet=True)
    module, _, function = options.run.partition(":")
    try:
        command = getattr(importlib.import_module(f"gateway.operator.{module}"), function)
        status: int = asyncio.run(command(options))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except AshoreError as error:
        return _fail(error.message, error.exit_status)
    except BaseExceptionGroup as group:
        # Of what went wrong side by side, the first failure that has a sentence is the one to tell.
        errors = _flat(group.subgroup(AshoreError))
        if not errors:
            raise
        return _fail(errors[0].message, errors[0].exit_status)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain about that while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _flat(group: BaseExceptionGroup[Any] | None) -> list[Any]:
    if group is None:
        return []
    found: list[Any] = []
    for error in group.exceptions:
        found += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _fail(sentence: str, status: int) -> int:
    sys.stderr.write(f"ashore: {sentence}\n")
    return status


# ---- what can be typed -------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ashore", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_serve(commands)
    _add(commands, "init", "care:init", "make a data directory and a settings file")
    _json(_add(commands, "check", "care:check", "check settings, schema, object store and computes"))
    _add(commands, "migrate", "care:migrate", "bring the schema up to date ('serve' does it too)")
    _json(_add(commands, "doctor", "care:doctor", "see whether everything is well"))
    _add_users(commands)
    invite = _add(commands, "invite", "people:invite", "print a one-time login for a user; good once, for a week")
    _person(invite)
    guest = _group(commands, "guest", "the SSH server that is brought into environments")
    _add(guest, "build", "care:guest_build", "copy this machine's OpenSSH server into the data directory")
    _add_quotas(commands)
    _add_hosts(commands)
    _add_replay(commands)
    audit = _group(commands, "audit", "the trail of everything that was done")
    _add(audit, "verify", "trail:audit_verify", "check that nothing was changed or removed")
    _add(commands, "version", _VERSION, "print the version")
    return parser


def _add(commands: Commands, name: str, run: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument(
        "--data", metavar="DIR", type=_directory, default=_default_data(),
        help="the data directory (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=None, help="the settings (default: DIR/ashore.toml if there)"
    )
    parser.set_defaults(run=run)
    return parser


def _group(commands: Commands, name: str, summary: str) -> Commands:
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    return parser.add_subparsers(metavar="COMMAND", required=True, title="commands")


def _add_serve(commands: Commands) -> None:
    serve = _add(commands, "serve", "serving:serve", "serve until SIGTERM; prints 'ready ssh ADDRESS:PORT' when ready")
    serve.add_argument("--port", metavar="N", type=_port, default=None, help="instead of the settings' port; 0: any")
    serve.add_argument("--log-file", metavar="FILE", type=Path, default=None, help="log to FILE instead of stderr")
    serve.add_argument("--log-json", action="store_true", help="log one JSON object per line")
    serve.add_argument("--debug", action="store_true", help="log more")


def _add_users(commands: Commands) -> None:
    users = _group(commands, "user", "people who may log in")
    add = _add(users, "add", "people:user_add", "add somebody whose public key you have")
    _person(add)
    add.add_argument(
        "--key", metavar="FILE", type=Path, action="append", required=True,
        help="their public key, '-' for stdin; may be repeated",
    )  # fmt: skip
    _json(_add(users, "list", "people:user_list", "list everybody"))
    for verb, summary in (("disable", "lock somebody out"), ("enable", "let somebody in again")):
        parser = _add(users, verb, f"people:user_{verb}", summary)
        parser.add_argument("name", metavar="NAME")


def _add_quotas(commands: Commands) -> None:
    quotas = _group(commands, "quota", "exceptions from what everybody may use")
    show = _add(quotas, "show", "quotas:show", "show a person's or a workspace's quota, or all exceptions")
    change = _add(quotas, "set", "quotas:change", "make an exception for a person or a workspace")
    clear = _add(quotas, "clear", "quotas:clear", "take the exceptions of a person or a workspace back")
    for parser in (show, change, clear):
        _json(parser)
        parser.add_argument("--user", metavar="NAME", default="", help="of this person")
        parser.add_argument("--workspace", metavar="NAME", default="", help="of this workspace")
    for resource in ("environments", "cpus", "memory", "gpus", "storage", "uploads", "parked", "builds"):
        change.add_argument(
            f"--{resource}", metavar="AMOUNT", type=_quota(resource), default=None,
            help="a number or a size such as 16GiB, 'unlimited', or 'default'",
        )  # fmt: skip


def _add_hosts(commands: Commands) -> None:
    hosts = _group(commands, "host", "the machines that run environments")
    listed = _add(hosts, "list", "hosts:show", "list all hosts, with what is reserved of them")
    drain = _add(hosts, "drain", "hosts:drain", "let nothing new start on a host; what runs goes on")
    drain.add_argument("--reason", metavar="WORDS", default="", help="shown to everybody who is turned away")
    resume = _add(hosts, "resume", "hosts:resume", "let environments start on a host again")
    forget = _add(hosts, "forget", "hosts:forget", "drop what is known of a host that is offline or in no settings")
    forget.add_argument(
        "--with-environments", action="store_true", help="give up the environments there: their homes are lost"
    )
    forget.add_argument(
        "--dry-run", action="store_true", help="with --with-environments: say which those are, and change nothing"
    )
    for parser in (drain, resume, forget):
        parser.add_argument("name", metavar="NAME", help="as in the settings; 'here' where they name none")
    for parser in (listed, drain, resume, forget):
        _json(parser)


def _quota(resource: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        from gateway.commands.quota import amount_of

        return amount_of(resource)(text)

    return read


def _add_replay(commands: Commands) -> None:
    replay = _add(commands, "replay", "trail:play", "play a recording, with its timing")
    replay.add_argument("recording", metavar="FILE|ID", help="an asciicast v2 file, or a recording's id")
    replay.add_argument("--speed", metavar="FACTOR", type=_speed, default=1.0, help="2 is twice as fast")
    replay.add_argument(
        "--idle-limit", metavar="SECONDS", type=_seconds, default=None, help="shorten longer pauses to this"
    )


def _person(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the user's name: a letter, then a-z 0-9 . _ -")
    parser.add_argument("--admin", action="store_true", help="an administrator")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def _speed(text: str) -> float:
    from gateway import replay

    return replay.speed(text)


def _seconds(text: str) -> float:
    from gateway import replay

    return replay.seconds(text)


def _directory(text: str) -> Path:
    """Absolute: engines that mount what is in it have another working directory."""
    return Path(text).absolute()


def _default_data() -> Path:
    state = os.environ.get("XDG_DATA_HOME") or ""
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "share") / "ashore"


if __name__ == "__main__":
    sys.exit(main())
