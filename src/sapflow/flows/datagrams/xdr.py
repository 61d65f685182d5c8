"""XDR (RFC 4506), as sFlow writes it: big-endian words, and opaque bytes padded to a multiple of four."""

from __future__ import annotations

import struct

from attrs import define

from sapflow.errors import MalformedMessage


@define
class Cursor:
    """Reads `data[at:end]` from the front; all of it raises MalformedMessage where less is left than is asked for.

    Padding that is not there at an end is let pass: some leave it out.
    """

    data: bytes
    at: int
    end: int

    def words(self, count: int) -> tuple[int, ...]:
        """That many unsigned integers."""
        return struct.unpack(f"!{count}I", self.take(4 * count))

    def word(self) -> int:
        """An unsigned integer."""
        return self.words(1)[0]

    def take(self, length: int) -> bytes:
        """That many bytes, and past their padding."""
        if length > self.end - self.at:
            what = f"{length:,} bytes of sFlow where {self.end - self.at:,} are left"
            raise MalformedMessage(what, offset=self.at, reason="truncated")
        start = self.at
        self.at = min(start + (length + 3 & ~3), self.end)
        return self.data[start : start + length]

    def count(self, least: int) -> int:
        """How many of something follow, each of which has at least `least` bytes."""
        at, count = self.at, self.word()
        if count * least > self.end - self.at:
            what = f"{count:,} items of sFlow in {self.end - self.at:,} bytes"
            raise MalformedMessage(what, offset=at, reason="count")
        return count

    def part(self) -> tuple[int, Cursor]:
        """A structure behind its format (enterprise << 12 | number) and its length."""
        number, length = self.words(2)
        start = self.at
        self.take(length)
        return number, Cursor(self.data, start, start + length)

    def address(self) -> bytes:
        """4 or 16 bytes; none when the type is 0, unknown."""
        at, kind = self.at, self.word()
        if kind > 2:
            raise MalformedMessage(f"address type {kind:,} in sFlow", offset=at, reason="address")
        return self.take((0, 4, 16)[kind])
