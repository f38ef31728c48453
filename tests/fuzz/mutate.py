# Inputs that are nearly right find more than noise: almost everything here is a seed of the corpus that was damaged a
# little, or two that were crossed.  All of it comes from one number, so a finding is replayed by its number alone.

"""Inputs from seeds."""

from __future__ import annotations

import random

_ODD = [
    *(
        b"\0",
        b"\r\n",
        b"\n",
        b"\xff" * 10,
        b"\x80" * 12,
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b" ",
        b",",
        b":",
        b"=",
        b'"',
    ),
    *(b"%00", b"..", b"/", b"[", b"{", b"\\u0000", b"\\ud800", b"null", b"-1", b"Infinity", b"1e999", b"9" * 20),
    *(b"[" * 3000, b'{"a":' * 3000, b"::ffff:127.0.0.1", b"169.254.169.254"),
]


def generated(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One input."""
    data = (
        bytearray(dice.choice(seeds))
        if seeds and dice.random() < 0.97
        else bytearray(dice.randbytes(dice.randrange(64)))
    )
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3, 5, 8, 20))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.randrange(256)
            case 2:
                data[at:at] = dice.choice(_ODD)
            case 3:
                del data[at : at + dice.choice((1, 1, 2, 4, 16, 1000))]
            case 4:
                data[at:at] = data[at : at + dice.randrange(1, 64)]
            case 5:
                other = dice.choice(seeds) if seeds else b""
                data[at:] = other[dice.randrange(len(other) + 1) :]
            case 6:
                width = dice.randrange(1, 9)
                data[at : at + width] = dice.choice(_ODD)
            case _:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
    return bytes(data[: 64 << 10])
