"""Mutations without a fuzzer: the same for the same seed, for tests and where atheris cannot be installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

TELLING = (0, 1, 2, 3, 4, 5, 9, 10, 16, 255, 256, 291, 292, 293, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
"""Numbers that decoders take decisions by."""
MAX_BYTES = 1 << 16


def mutations(seeds: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """Without end: each the child of a seed, or of two."""
    while True:
        data = bytearray(random.choice(seeds))
        for _ in range(random.choice((1, 1, 2, 4, 8))):
            _change(data, seeds, random)
        yield bytes(data[:MAX_BYTES])


def _change(data: bytearray, seeds: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(data) + 1)
    size = random.choice((1, 2, 4, 8, 32, 200))
    match random.randrange(7):
        case 0:
            data[at : at + 1] = bytes([random.randrange(256)])
        case 1:
            data[at : at + 2] = random.choice(TELLING).to_bytes(2, "big")
        case 2:
            # Most structures begin at even places.
            at &= ~1
            data[at : at + 2] = random.choice(TELLING).to_bytes(2, "big")
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size] * random.choice((1, 1, 2, 20))
        case 5:
            other = random.choice(seeds)
            start = random.randrange(len(other) + 1)
            data[at:at] = other[start : start + size]
        case _:
            data[at:at] = random.randbytes(size)
