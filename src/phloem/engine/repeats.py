"""What stands in a log twice is given once: a reader drops what is not above what it had of a stream; pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sapflow.entry import entry_number

MAX_STREAMS = 65_536
"""Whose last number is kept: those heard of last."""


class Repeats:
    """One reader's. A damaged entry passes: what it says of itself is not believed, and its reader is told."""

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self.dropped = 0
        self._marks: OrderedDict[bytes, int] = OrderedDict()
        self._max_streams = max_streams

    def without(self, entries: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Those that were not given before."""
        return [entry for entry in entries if self._is_new(entry[1])]

    def _is_new(self, data: bytes) -> bool:
        number = entry_number(data)
        if number is None:
            return True
        stream, seq, _ = number
        mark = self._marks.pop(stream, 0)
        self._marks[stream] = max(mark, seq)
        if len(self._marks) > self._max_streams:
            self._marks.popitem(last=False)
        self.dropped += seq <= mark
        return seq > mark
