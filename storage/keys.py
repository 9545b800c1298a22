"""Public keys as people paste them: parsed, judged and fingerprinted, without any SSH library.

Pure functions. A key is accepted only if every byte of it is understood; what looks like a private key,
carries options or is too weak is refused with a sentence that says what to do instead.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from storage.accounts import PublicKey
from storage.errors import BadInput
from storage.names import printable

_LONGEST = 16384
_SHORTEST_RSA = 2048
_LONGEST_RSA = 16384
_SSH2_BEGIN = "---- BEGIN SSH2 PUBLIC KEY ----"
_SSH2_END = "---- END SSH2 PUBLIC KEY ----"
_EXAMPLE = "paste one line like 'ssh-ed25519 AAAA... name', as in ~/.ssh/id_ed25519.pub"


class _Malformed(Exception):
    """The blob is not what its type says."""


def parse_public_key(text: str) -> PublicKey:
    """One public key: a line of `id_*.pub` (which a terminal may have wrapped) or an RFC 4716 file.

    `title` is the comment, made printable. BadInput, with a sentence, for everything else.
    """
    if len(text) > _LONGEST:
        raise BadInput("this is far too long for a public key")
    _refuse_secrets(text)
    words, title = _words_of_ssh2(text) if text.lstrip().startswith(_SSH2_BEGIN) else (text.split(), "")
    if not words:
        raise BadInput(f"there is no key here: {_EXAMPLE}")
    kind = words[0]
    if kind not in _CHECKS:
        raise BadInput(_why_not(kind, words))
    blob, rest = _blob(kind, words[1:])
    if any(word in _CHECKS for word in rest):
        raise BadInput("these are several keys: paste one at a time")
    line = f"{kind} {base64.b64encode(blob).decode()}"
    return PublicKey(line, fingerprint_of(blob), printable(title or " ".join(rest), limit=90))


def fingerprint_of(blob: bytes) -> str:
    """`SHA256:…` of a key in wire format, as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _refuse_secrets(text: str) -> None:
    if "PRIVATE KEY" in text or text.lstrip().startswith("PuTTY-User-Key-File"):
        raise BadInput("this is a PRIVATE key: never give it away; paste the public one, the file that ends in .pub")


def _why_not(kind: str, words: list[str]) -> str:
    if kind == "ssh-dss" or kind.startswith("ssh-dss-"):
        return "DSA keys are not safe any more: make a new one with 'ssh-keygen -t ed25519'"
    if kind.endswith("-cert-v01@openssh.com"):
        return "this is a certificate: paste the public key that it was made for"
    if any(word in _CHECKS for word in words[1:]):
        return "options before a key are not taken: paste the line from the key's type on"
    return f"'{printable(kind, limit=40)}' is not a type of key that is known here: {_EXAMPLE}"


def _words_of_ssh2(text: str) -> tuple[list[str], str]:
    """The key type, base64 pieces and comment of an RFC 4716 file (what PuTTYgen saves)."""
    title = ""
    pieces: list[str] = []
    lines = iter(text.strip().splitlines()[1:])
    for line in lines:
        if line.strip() == _SSH2_END:
            break
        if ":" not in line:
            pieces.append(line.strip())
            continue
        header = line
        while header.endswith("\\"):
            header = header[:-1] + next(lines, "")
        name, _, value = header.partition(":")
        if name.strip().lower() == "comment":
            title = value.strip().strip('"')
    blob = _decode("".join(pieces))
    try:
        kind = _Wire(blob).string().decode("ascii", "replace")
    except _Malformed:
        raise BadInput("this key is damaged: copy the whole file again") from None
    return [kind, "".join(pieces)], title


def _blob(kind: str, words: list[str]) -> tuple[bytes, list[str]]:
    """The key's bytes, and the words after it. Terminals wrap long lines, so it may come in pieces."""
    complaint: _Malformed | BadInput = BadInput(f"the key itself is missing: {_EXAMPLE}")
    for count in range(1, len(words) + 1):
        try:
            blob = _decode("".join(words[:count]))
            _check(kind, blob)
        except BadInput as error:
            complaint = complaint if count > 1 else error
        except _Malformed as error:
            complaint = error
        else:
            return blob, words[count:]
    if isinstance(complaint, BadInput):
        raise complaint
    raise BadInput("this key is damaged or cut off: copy the whole line again") from complaint


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("this key is damaged or cut off: copy the whole line again") from None


def _check(kind: str, blob: bytes) -> None:
    """_Malformed unless `blob` is exactly one key of type `kind`; BadInput for a key that is too weak."""
    wire = _Wire(blob)
    if wire.string() != kind.encode():
        raise _Malformed("the type inside is another one")
    _CHECKS[kind](wire)
    if not wire.at_end:
        raise _Malformed("more bytes than a key has")


class _Wire:
    """Reads RFC 4251 strings and integers."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def string(self) -> bytes:
        if self._at + 4 > len(self._data):
            raise _Malformed("cut off")
        (size,) = struct.unpack_from(">I", self._data, self._at)
        begin = self._at + 4
        if begin + size > len(self._data):
            raise _Malformed("cut off")
        self._at = begin + size
        return self._data[begin : self._at]

    def integer(self) -> int:
        return int.from_bytes(self.string(), "big", signed=True)


def _ed25519(wire: _Wire) -> None:
    if len(wire.string()) != 32:
        raise _Malformed("an Ed25519 key has 32 bytes")


def _rsa(wire: _Wire) -> None:
    exponent, modulus = wire.integer(), wire.integer()
    if exponent < 3 or exponent % 2 == 0 or modulus < 3 or modulus % 2 == 0:
        raise _Malformed("not an RSA key")
    bits = modulus.bit_length()
    if bits > _LONGEST_RSA:
        raise _Malformed("longer than any RSA key")
    if bits < _SHORTEST_RSA:
        raise BadInput(
            f"an RSA key of {bits} bits is too short: at least {_SHORTEST_RSA} are needed,"
            " or make one with 'ssh-keygen -t ed25519'"
        )


def _ecdsa(name: bytes, curve: ec.EllipticCurve) -> Callable[[_Wire], None]:
    def check(wire: _Wire) -> None:
        if wire.string() != name:
            raise _Malformed("another curve")
        point = wire.string()
        if point[:1] != b"\x04":
            raise _Malformed("a compressed point")
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        except ValueError as error:
            raise _Malformed("not a point of its curve") from error

    return check


def _with_application(check: Callable[[_Wire], None]) -> Callable[[_Wire], None]:
    """A key in a security token carries the name of an application after the key proper."""

    def check_both(wire: _Wire) -> None:
        check(wire)
        wire.string()

    return check_both


_P256 = _ecdsa(b"nistp256", ec.SECP256R1())
_CHECKS: Mapping[str, Callable[[_Wire], None]] = {
    "ssh-ed25519": _ed25519,
    "ssh-rsa": _rsa,
    "ecdsa-sha2-nistp256": _P256,
    "ecdsa-sha2-nistp384": _ecdsa(b"nistp384", ec.SECP384R1()),
    "ecdsa-sha2-nistp521": _ecdsa(b"nistp521", ec.SECP521R1()),
    "sk-ssh-ed25519@openssh.com": _with_application(_ed25519),
    "sk-ecdsa-sha2-nistp256@openssh.com": _with_application(_P256),
}
