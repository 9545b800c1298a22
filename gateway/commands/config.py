"""`config`: what to put into ~/.ssh/config, so that `ssh train` and every editor just work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.commands.context import Context
from gateway.commands.output import to_json
from gateway.commands.parsing import Noun, Parser, Verb

if TYPE_CHECKING:
    from storage.records import Environment

_FOLDER = "/workspace"
_GATEWAY = "gw"


@dataclass(frozen=True)
class Host:
    """One block of an ssh_config. `jump` is empty for the gateway itself; `keys` are `type base64` lines."""

    alias: str
    name: str
    port: int
    user: str
    jump: str
    key_alias: str
    keys: Sequence[str]

    def block(self) -> str:
        """The block, the same text every time."""
        lines = [f"Host {self.alias}", f"HostName {self.name}"]
        lines += [f"ProxyJump {self.jump}"] if self.jump else [f"Port {self.port}"]
        lines += [f"User {self.user}"]
        lines += [f"HostKeyAlias {self.key_alias}"] if self.jump else []
        lines += ["ServerAliveInterval 30", "ServerAliveCountMax 3"]
        return "\n    ".join(lines) + "\n"

    def known_hosts(self) -> list[str]:
        """Lines for ~/.ssh/known_hosts."""
        return [f"{self.key_alias} {key}" for key in self.keys]


async def _config(context: Context, options: argparse.Namespace) -> None:
    if options.vscode_link:
        environment = await context.services.environments.show(context.caller, options.vscode_link)
        link = f"vscode://vscode-remote/ssh-remote+{_alias(context, environment)}{_FOLDER}"
        context.out(to_json({"link": link}) if options.json else f"{link}\n")
        return
    environments = await context.services.environments.list(context.caller)
    hosts = [_gateway(context, {one.name for one in environments})]
    hosts += [await _host(context, one) for one in environments]
    if options.json:
        context.out(to_json([_row(host) for host in hosts]))
    elif options.known_hosts:
        context.out("".join(f"{line}\n" for host in hosts for line in host.known_hosts()))
    else:
        context.out(_text(context, hosts))


def _text(context: Context, hosts: Sequence[Host]) -> str:
    lines = [
        f"# Ashore at {context.host}, for {context.caller.name}. Put this at the top of ~/.ssh/config.",
        f"# Then 'ssh {hosts[0].alias}' is the menu, and 'ssh NAME' a shell in your environment NAME.",
    ]
    known = [line for host in hosts for line in host.known_hosts()]
    if known:
        lines.append("# ssh asks about each host key once; it does not if these lines are in ~/.ssh/known_hosts")
        lines.append(f"# (ssh {hosts[0].alias} config --known-hosts >> ~/.ssh/known_hosts):")
        lines += [f"#   {line}" for line in known]
    return "\n".join(lines) + "\n" + "".join(f"\n{host.block()}" for host in hosts)


def _gateway(context: Context, taken: set[str]) -> Host:
    key_alias = context.host if context.port == 22 else f"[{context.host}]:{context.port}"
    return Host(
        alias=_GATEWAY if _GATEWAY not in taken else f"{_GATEWAY}-ashore",
        name=context.host,
        port=context.port,
        user=context.caller.name,
        jump="",
        key_alias=key_alias,
        keys=context.host_keys,
    )


async def _host(context: Context, environment: Environment) -> Host:
    key = await context.services.guests.public_key(environment.owner_id, environment.name)
    host = f"[{context.host}]" if ":" in context.host else context.host
    return Host(
        alias=_alias(context, environment),
        name=environment.name,
        port=22,
        user=context.caller.name,
        jump=f"{context.caller.name}@{host}:{context.port}",
        key_alias=f"{environment.name}.{environment.owner_name}.{context.host}",
        keys=[key],
    )


def _alias(context: Context, environment: Environment) -> str:
    # An environment that is called like the gateway itself would send its own jump round in circles.
    name: str = environment.name
    return name if name != context.host else f"{name}.{environment.owner_name}"


def _row(host: Host) -> dict[str, str | int | list[str]]:
    return {
        "host": host.alias,
        "host_name": host.name,
        "port": host.port,
        "user": host.user,
        "proxy_jump": host.jump,
        "host_key_alias": host.key_alias,
        "known_hosts": host.known_hosts(),
    }


def _arguments(parser: Parser) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--known-hosts", action="store_true", help="print lines for ~/.ssh/known_hosts instead")
    either.add_argument("--vscode-link", metavar="ENV", default="", help="print a link that opens VS Code in ENV")


NOUN = Noun(
    "config",
    "what to put into ~/.ssh/config",
    (
        Verb("", "print what to put into ~/.ssh/config", _config, _arguments,
             about="One block for the gateway and one for each of your environments, the same text every time. With\n"
             "them 'ssh train', 'scp file train:' and the remote editors work as with any host; do it again after\n"
             "'env create'.",
             examples=("config >> ~/.ssh/config", "config --known-hosts >> ~/.ssh/known_hosts",
                       "config --vscode-link train")),
    ),
)  # fmt: skip
