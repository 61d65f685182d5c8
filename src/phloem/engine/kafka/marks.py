"""What one node knows of streams: the highest number of each that it stored, or found in the log; pure.

number <= mark is a duplicate (or, with other content, a conflict), mark + 1 is to be stored, anything higher is a gap.
A stream that is not known may start anywhere: another node may have had it before. Whatever is not known here can only
make an entry stand in the log twice, which readers drop.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import evolve, frozen

MAX_STREAMS = 1_000_000
"""Those that were silent for longest are forgotten."""
RING = 8
"""Of so many of a stream's last entries it is known whether a repeat has the same content."""

Key = tuple[str, bytes]
"""Org and stream."""


@frozen(slots=True)
class Mark:
    """A stream's highest number, and the CRCs of its last entries, newest first."""

    mark: int
    ring: tuple[int, ...]
    since: int
    """The position from which on another node may have stored what is not known here."""

    def followed_by(self, crc: int) -> Mark:
        """The mark after the next entry."""
        return Mark(self.mark + 1, (crc, *self.ring[: RING - 1]), self.since)

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
            known = Mark(seq, (crc,), position if known is None else known.since)
        elif seq == known.mark + 1:
            known = known.followed_by(crc)
        self._marks[key] = known
        if len(self._marks) > self._max_streams:
            self._marks.popitem(last=False)

    def learned(self, key: Key, through: int) -> None:
        """The log was searched for a stream up to a position."""
        known = self._marks.get(key)
        if known is not None:
            self._marks[key] = evolve(known, since=through)

    def forget_stream(self, key: Key) -> None:
        """It may start anywhere again."""
        self._marks.pop(key, None)

    def forget_org(self, org: str) -> None:
        """All streams of an org may start anywhere again."""
        for key in [key for key in self._marks if key[0] == org]:
            del self._marks[key]
