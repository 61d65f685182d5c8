"""How much of each org stands before some places of a partition; pure.

A partition's ledger knows what all of it comes to. How much stands before a place between (where retention has come
to, where a reader is) is counted from the nearest point on, which is never far: points are so many bytes of the
partition apart. When there are too many of them, every second goes and the distance doubles; what retention removed
takes its points with it, and the distance shrinks again.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right

from attrs import define, field, frozen

LEAST_BYTES = 16 << 20
"""Of a partition between two points of an org."""
MAX_POINTS = 16_384
"""Of all orgs of a partition."""


@frozen(slots=True)
class Point:
    """Up to a position there are so many of an org's entries and records, each counted once."""

    position: int
    entries: int
    records: int


@define(eq=False, slots=True)
class Points:
    """An org's, in order."""

    positions: array[int] = field(factory=lambda: array("Q"))
    entries: array[int] = field(factory=lambda: array("Q"))
    records: array[int] = field(factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, point: Point) -> None:
        """One more, behind the others."""
        self.positions.append(point.position)
        self.entries.append(point.entries)
        self.records.append(point.records)

    def thin(self) -> None:
        """Keep every second."""
        self.positions, self.entries, self.records = self.positions[1::2], self.entries[1::2], self.records[1::2]

    def forget(self, before: int) -> None:
        """Let go of those before a position, but for the last of them."""
        at = max(bisect_right(self.positions, before) - 1, 0)
        del self.positions[:at], self.entries[:at], self.records[:at]

    def below(self, position: int) -> Point | None:
        """The last one at or before a position."""
        at = bisect_right(self.positions, position) - 1
        return self._at(at) if at >= 0 else None

    def above(self, position: int) -> Point | None:
        """The first one at or behind a position."""
        at = bisect_left(self.positions, position)
        return self._at(at) if at < len(self.positions) else None

    def _at(self, index: int) -> Point:
        return Point(self.positions[index], self.entries[index], self.records[index])

    def pack(self) -> bytes:
        """For a checkpoint: all positions, then all entries, then all records."""
        return struct.pack(f"!{3 * len(self)}Q", *self.positions, *self.entries, *self.records)

    @classmethod
    def unpack(cls, data: bytes) -> Points:
        """What `pack` gave. Raises struct.error."""
        size = len(data) // 24
        found = struct.unpack(f"!{3 * size}Q", data)
        return cls(*(array("Q", found[at * size : (at + 1) * size]) for at in range(3)))
