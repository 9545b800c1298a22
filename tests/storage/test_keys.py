"""Pasted public keys: compared with what ssh-keygen makes and prints."""

from __future__ import annotations

import base64
import contextlib
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadInput
from storage.keys import fingerprint_of, parse_public_key


def make(directory: Path, *options: str, comment: str = "alice@laptop") -> Path:
    path = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", comment, "-f", str(path), *options], check=True)
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ed25519"),
        ("-t", "rsa", "-b", "2048"),
        ("-t", "ecdsa", "-b", "256"),
        ("-t", "ecdsa", "-b", "384"),
        ("-t", "ecdsa", "-b", "521"),
    ],
)
def test_keys_of_ssh_keygen_are_taken_with_its_fingerprint(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = make(tmp_path, *options)
    line = path.with_suffix(".pub").read_text()
    key = parse_public_key(line)
    printed = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True).stdout
    assert key.fingerprint == printed.split()[1]
    assert key.line == " ".join(line.split()[:2])
    assert key.title == "alice@laptop"


def test_a_line_that_a_terminal_wrapped_is_joined(tmp_path: Path) -> None:
    line = make(tmp_path, "-t", "rsa", "-b", "3072").with_suffix(".pub").read_text().strip()
    wrapped = "\n".join(line[begin : begin + 80] for begin in range(0, len(line), 80))
    assert parse_public_key(wrapped).line == parse_public_key(line).line


def test_the_format_of_putty_is_taken(tmp_path: Path) -> None:
    path = make(tmp_path, "-t", "rsa", "-b", "2048")
    exported = subprocess.run(["ssh-keygen", "-e", "-f", str(path)], capture_output=True, text=True, check=True).stdout
    assert exported.startswith("---- BEGIN SSH2")
    assert parse_public_key(exported).line == parse_public_key(path.with_suffix(".pub").read_text()).line


def test_private_keys_are_refused_and_not_repeated(tmp_path: Path) -> None:
    private = make(tmp_path, "-t", "ed25519").read_text()
    with pytest.raises(BadInput, match="PRIVATE") as caught:
        parse_public_key(private)
    assert private.splitlines()[1] not in caught.value.message


def test_short_rsa_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, "-t", "rsa", "-b", "1024")
    with pytest.raises(BadInput, match="1024 bits is too short"):
        parse_public_key(path.with_suffix(".pub").read_text())


def test_options_certificates_dsa_and_several_keys_are_refused(tmp_path: Path) -> None:
    line = make(tmp_path, "-t", "ed25519").with_suffix(".pub").read_text().strip()
    refusals = {
        f'command="rm -rf /" {line}': "options",
        f"no-pty {line}": "options",
        f"{line}\n{line}": "several keys",
        "ssh-dss AAAAB3NzaC1kc3MAAACBAP": "DSA",
        "ssh-ed25519-cert-v01@openssh.com AAAA": "certificate",
        "": "no key",
        "ssh-ed25519": "missing",
        "hello world": "not a type",
        line[:40]: "cut off",
        line.replace("ssh-ed25519 ", "ecdsa-sha2-nistp256 "): "damaged",
        "ssh-ed25519 ä": "damaged",
        "x" * 20000: "too long",
    }
    for text, word in refusals.items():
        with pytest.raises(BadInput, match=word):
            parse_public_key(text)


def test_bytes_behind_the_key_are_refused() -> None:
    blob = struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 32) + bytes(32)
    assert parse_public_key("ssh-ed25519 " + base64.b64encode(blob).decode()).fingerprint == fingerprint_of(blob)
    with pytest.raises(BadInput):
        parse_public_key("ssh-ed25519 " + base64.b64encode(blob + b"\0").decode())


def test_titles_cannot_carry_escapes(tmp_path: Path) -> None:
    line = make(tmp_path, "-t", "ed25519").with_suffix(".pub").read_text().strip()
    assert "\x1b" not in parse_public_key(line + "\x1b]52;c;aGk=\x07").title


@given(st.text(max_size=200))
def test_any_text_is_a_key_or_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        parse_public_key(text)
