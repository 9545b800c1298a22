"""What a login name means, whatever somebody types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.target import Target, parse, parse_host
from storage.errors import BadInput


@pytest.mark.parametrize(
    ("login", "target"),
    [
        ("alice", Target("alice")),
        ("alice+train", Target("alice", "train")),
        ("a.b-c_d+llama-3.1", Target("a.b-c_d", "llama-3.1")),
        ("invite-" + "ab" * 12, Target("invite-" + "ab" * 12, is_invite=True)),
    ],
)
def test_good_names(login: str, target: Target) -> None:
    assert parse(login) == target


@pytest.mark.parametrize(
    "login",
    ["", "Alice", "alice+", "+train", "alice+a/b", "alice+..", "alice+a..b", "../alice", "alice\n", "alice+x\x00",
     "alice+train+more", "ali ce", "alice@host", "invite-xyz", "invite-" + "g" * 24, "a" * 33,
     "alice+" + "a" * 49, "ålice"],
)  # fmt: skip
def test_bad_names(login: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(login)
    assert "\x00" not in caught.value.message
    assert "\n" not in caught.value.message


@given(st.text(max_size=100))
def test_any_text_is_a_target_or_bad_input(login: str) -> None:
    try:
        target = parse(login)
    except BadInput:
        return
    assert login == (f"{target.user}+{target.environment}" if target.environment else target.user)


@pytest.mark.parametrize(
    ("host", "name"), [("train", "train"), ("train.alice", "train"), ("TRAIN", "train"), ("a.b", "a.b")]
)
def test_hosts_of_a_jump(host: str, name: str) -> None:
    assert parse_host(host, "alice") == name


@pytest.mark.parametrize("host", ["", "../etc", "a/b", "x" * 200, "127.0.0.1:22", "train\x1b[2J"])
def test_hosts_that_cannot_be(host: str) -> None:
    with pytest.raises(BadInput):
        parse_host(host, "alice")
