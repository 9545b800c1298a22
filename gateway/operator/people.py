"""`ashore user …` and `ashore invite`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gateway.operator.house import address, open_records, settings_of
from storage.accounts import PublicKey
from storage.errors import BadInput
from storage.keys import parse_public_key

_OPERATOR = "operator"


async def user_add(options: argparse.Namespace) -> int:
    """A new user with the keys of the files."""
    keys = [_key(path) for path in options.key]
    async with open_records(options, make=True) as records:
        user = await records.accounts.add_user(options.name, keys, is_admin=options.admin, actor=_OPERATOR)
    host, port = address(settings_of(options), options.data)
    sys.stdout.write(f"{user.name} can log in now: ssh -p {port} {user.name}@{host}\n")
    return 0


async def user_list(options: argparse.Namespace) -> int:
    """Everybody, one line each."""
    async with open_records(options) as records:
        users = await records.accounts.all_users()
    if options.json:
        rows = [{"name": one.name, "administrator": one.is_admin, "disabled": one.disabled} for one in users]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for one in users:
        notes = ["administrator"] * one.is_admin + ["disabled"] * one.disabled
        sys.stdout.write(f"{one.name:<32}  {', '.join(notes)}".rstrip() + "\n")
    return 0


async def user_disable(options: argparse.Namespace) -> int:
    """Lock a user out."""
    return await _set_disabled(options, disabled=True)


async def user_enable(options: argparse.Namespace) -> int:
    """Let a user in again."""
    return await _set_disabled(options, disabled=False)


async def invite(options: argparse.Namespace) -> int:
    """Print a one-time login."""
    async with open_records(options, make=True) as records:
        login = await records.accounts.invite(options.name, is_admin=options.admin, actor=_OPERATOR)
    host, port = address(settings_of(options), options.data)
    sys.stdout.write(f"ssh -p {port} {login}@{host}\n")
    return 0


async def _set_disabled(options: argparse.Namespace, *, disabled: bool) -> int:
    async with open_records(options) as records:
        await records.accounts.set_disabled(options.name, disabled=disabled, actor=_OPERATOR)
    return 0


def _key(path: Path) -> PublicKey:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no public key") from error
    try:
        return parse_public_key(text)
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}") from error
