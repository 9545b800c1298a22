"""Which door a request leads to."""

from __future__ import annotations

import pytest

from gateway.routes import Asked, Door, resolve
from gateway.target import Target

GATEWAY, TRAIN, INVITED = Target("alice"), Target("alice", "train"), Target("alice", is_invite=True)


@pytest.mark.parametrize(
    ("target", "asked", "door"),
    [
        (GATEWAY, Asked(True), Door.MENU),
        (GATEWAY, Asked(False), Door.HOLD),
        (GATEWAY, Asked(True, "env list"), Door.COMMAND),
        (GATEWAY, Asked(False, "env list --json"), Door.COMMAND),
        (GATEWAY, Asked(False, ""), Door.COMMAND),
        (GATEWAY, Asked(False, "echo 'unbalanced"), Door.COMMAND),
        (GATEWAY, Asked(False, None, "sftp"), Door.DATA),
        (GATEWAY, Asked(False, None, "netconf"), Door.REFUSED),
        (GATEWAY, Asked(False, "scp -t /datasets/x/v1"), Door.SCP),
        (GATEWAY, Asked(False, "scp -r -f -- /datasets/x/v1"), Door.SCP),
        (GATEWAY, Asked(False, "md5sum /datasets/x/v1/a"), Door.DIGEST),
        (GATEWAY, Asked(False, "sha256sum '/a b'"), Door.DIGEST),
        (GATEWAY, Asked(False, "env show " + "a" * 240_000), Door.REFUSED),
        (TRAIN, Asked(False, "echo " + "a" * 240_000), Door.EXEC),
        (TRAIN, Asked(True), Door.SHELL),
        (TRAIN, Asked(False), Door.SHELL),
        (TRAIN, Asked(False, "scp -t /tmp"), Door.EXEC),
        (TRAIN, Asked(True, "top"), Door.EXEC),
        (TRAIN, Asked(False, None, "sftp"), Door.SFTP),
        (TRAIN, Asked(False, None, "shell"), Door.REFUSED),
        (INVITED, Asked(False), Door.WELCOME),
        (INVITED, Asked(True), Door.MENU),
        (INVITED, Asked(False, "whoami"), Door.COMMAND),
    ],
)
def test_doors(target: Target, asked: Asked, door: Door) -> None:
    assert resolve(target, asked).door is door


def test_a_command_for_an_environment_is_not_touched() -> None:
    command = "a; b & c | d < e > f \" ' $(g) \\"
    assert resolve(TRAIN, Asked(False, command)).command == command
