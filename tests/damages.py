"""What disks, networks and editors do to stored files: damages of bytes, and of numbers written as text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

Damage = Callable[[bytes, random.Random], bytes]

_NUMBER = re.compile(rb"-?\d+(\.\d+)?(e[+-]?\d+)?")


def a_bit(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def a_byte(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ draw.randrange(1, 256)]) + content[at + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def a_piece_less(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + content[at + draw.randint(1, 600) :]


def a_piece_twice(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[: at + draw.randint(1, 600)] + content[at:]


def a_piece_of_zeros(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    size = min(draw.randint(1, 600), len(content) - at)
    return content[:at] + bytes(size) + content[at + size :]


def pieces_exchanged(content: bytes, draw: random.Random) -> bytes:
    size = draw.randint(1, 300)
    one, other = sorted(draw.randrange(max(1, len(content) - size)) for _ in range(2))
    if other < one + size:
        return a_byte(content, draw)
    middle = content[one + size : other]
    return content[:one] + content[other : other + size] + middle + content[one : one + size] + content[other + size :]


def a_digit(content: bytes, draw: random.Random) -> bytes:
    at = draw.choice([match.start() for match in re.finditer(rb"\d", content)])
    others = [digit for digit in b"0123456789" if digit != content[at]]
    return content[:at] + bytes([draw.choice(others)]) + content[at + 1 :]


def a_number(*instead: bytes) -> Damage:
    def damage(content: bytes, draw: random.Random) -> bytes:
        number = draw.choice(list(_NUMBER.finditer(content)))
        return content[: number.start()] + draw.choice(instead) + content[number.end() :]

    return damage


def a_line_less(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def lines_exchanged(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    one, other = (draw.randrange(len(lines)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


OF_BYTES: dict[str, Damage] = {
    "a bit": a_bit,
    "a byte": a_byte,
    "cut": cut,
    "a piece less": a_piece_less,
    "a piece twice": a_piece_twice,
    "a piece of zeros": a_piece_of_zeros,
    "pieces exchanged": pieces_exchanged,
}
OF_TEXT: dict[str, Damage] = OF_BYTES | {
    "a digit": a_digit,
    "no number": a_number(b"NaN", b"Infinity", b"-Infinity"),
    "beyond float64": a_number(b"1e999", b"-1e999"),
    "another number": a_number(b"0", b"1", b"-1", b"1e300", b"null", b"true", b'"1"', b"[]"),
    "a line less": a_line_less,
    "lines exchanged": lines_exchanged,
}


def damaged(content: bytes, kinds: dict[str, Damage], each: int, seed: str) -> Iterator[tuple[str, bytes]]:
    """``each`` damages of every kind, at random places; those that change nothing left out."""
    draw = random.Random(seed)
    for kind, damage in kinds.items():
        for _ in range(each):
            if (other := damage(content, draw)) != content:
                yield kind, other
