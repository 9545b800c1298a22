"""Passwords as the servers of applications want them in their files. Pure.

Both forms are worth as much as the password itself: whoever reads such a file may come in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

_VNC_KEY = bytes(int(f"{byte:08b}"[::-1], 2) for byte in (23, 82, 107, 6, 35, 78, 88, 7))
"""The key with which all VNC servers disguise the passwords in their files; DES of VNC reads bits backwards."""
_WORD = 0xFFFFFFFF
_MD4_ROUNDS: Sequence[tuple[Callable[[int, int, int], int], int, Sequence[int], Sequence[int]]] = (
    (
        lambda b, c, d: (b & c) | (~b & d),
        0x00000000,
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        (3, 7, 11, 19),
    ),
    (
        lambda b, c, d: (b & c) | (b & d) | (c & d),
        0x5A827999,
        (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        (3, 5, 9, 13),
    ),
    (lambda b, c, d: b ^ c ^ d, 0x6ED9EBA1, (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15), (3, 9, 11, 15)),
)
"""How each round mixes, its constant, its order of the words, and its rotations (RFC 1320 §3.4)."""


def vnc_password(password: str) -> bytes:
    """The content of a VNC password file (RFB: DES with a key that is the same everywhere; eight characters)."""
    # Three times the same key is plain DES.
    cipher = Cipher(TripleDES(_VNC_KEY * 3), modes.ECB()).encryptor()
    return cipher.update(password.encode("ascii")[:8].ljust(8, b"\0")) + cipher.finalize()


def sam_line(user: str, password: str) -> str:
    """The line of a SAM file, from which RDP servers prove a password (NTLM; MS-NLMP §3.3.1 `NTOWFv1`)."""
    return f"{user}:::{md4(password.encode('utf-16-le')).hex().upper()}:::"


def md4(data: bytes) -> bytes:
    """RFC 1320. Windows' passwords need it; OpenSSL has put it away, so `hashlib` has it no more."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + struct.pack("<Q", len(data) * 8)
    state = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
    for start in range(0, len(padded), 64):
        state = _md4_block(state, struct.unpack("<16I", padded[start : start + 64]))
    return struct.pack("<4I", *state)


def _md4_block(state: tuple[int, int, int, int], words: tuple[int, ...]) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for mix, constant, order, rotations in _MD4_ROUNDS:
        for step, word in enumerate(order):
            total = (a + mix(b, c, d) + words[word] + constant) & _WORD
            by = rotations[step % 4]
            a, b, c, d = d, ((total << by) | (total >> (32 - by))) & _WORD, b, c
    return (state[0] + a) & _WORD, (state[1] + b) & _WORD, (state[2] + c) & _WORD, (state[3] + d) & _WORD
