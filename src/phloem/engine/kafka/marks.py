"""What one node knows of streams: the highest number of each that it stored, or found in the log; pure.

number <= mark is a duplicate (or, with other content, a conflict), mark + 1 is to be stored, anything higher is a gap.
A stream that is not known may start anywhere: another node may have had it before. Whatever is not known here can only
make an entry stand in the log twice, which readers drop.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import frozen

MAX_STREAMS = 1_000_000
"""Those that were silent for longest are forgotten."""
RING = 8
"""Of so many of a stream's last entries it is known whether a repeat has the same content."""

Key = tuple[str, bytes]
"""Org and stream."""


@frozen(slots=True)
class Mark:
    """A stream's highest number, the CRCs of its last entries, newest first, and where the last one stands."""

    mark: int
    ring: tuple[int, ...]
    position: int

    def followed_by(self, crc: int, position: int) -> Mark:
        """The mark after the next entry."""
        return Mark(self.mark + 1, (crc, *self.ring[: RING - 1]), position)

    def has(self, seq: int, crc: int) -> bool:
        """Whether a number that is not above the mark has this content, as far as is known."""
        behind = self.mark - seq
        return behind >= len(self.ring) or self.ring[behind] == crc


class Marks:
    """Bounded; a `draft` is what they would be when entries on their way are stored."""

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._marks: OrderedDict[Key, Mark] = OrderedDict()
        self._max_streams = max_streams

    def __len__(self) -> int:
        return len(self._marks)

    def get(self, key: Key) -> Mark | None:
        """What is known of a stream."""
        return self._marks.get(key)

    def note(self, key: Key, seq: int, crc: int, position: int) -> None:
        """An entry is in the log, at a position."""
        known = self._marks.pop(key, None)
        if known is None or seq > known.mark + 1:
            known = Mark(seq, (crc,), position)
        elif seq == known.mark + 1:
            known = known.followed_by(crc, position)
        self._marks[key] = known
        if len(self._marks) > self._max_streams:
            self._marks.popitem(last=False)

    def forget_stream(self, key: Key) -> None:
        """It may start anywhere again."""
        self._marks.pop(key, None)

    def forget_org(self, org: str) -> None:
        """All streams of an org may start anywhere again."""
        for key in [key for key in self._marks if key[0] == org]:
            del self._marks[key]
