"""The highest number that was given of each stream: what repeats are known by, and dropped.

Bounded: of more than MAX_STREAMS streams those heard of last are known. A consumer group keeps some of them with its
position, so that they hold over a restart as well.
"""

from __future__ import annotations

import struct

MAX_STREAMS = 65_536
PACKED = struct.Struct("!16sQ")
HEAD = struct.Struct("!BI")
"""version, how many marks follow; behind them is what the program itself keeps."""
VERSION = 1
MAX_KEPT = 1024
"""Marks that go with a commit, those of the streams heard of last."""


class Marks:
    """By stream."""

    def __init__(self) -> None:
        self._marks: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def is_repeat(self, stream: bytes, seq: int) -> bool:
        """Note that an entry has come: whether it had come before."""
        mark = self._marks.pop(stream, 0)
        self._marks[stream] = max(mark, seq)
        if len(self._marks) > MAX_STREAMS:
            del self._marks[next(iter(self._marks))]
        return seq <= mark

    def clear(self) -> None:
        """Forget all: what comes is to be given whether it came before or not."""
        self._marks.clear()

    def pack(self, own: bytes, most_bytes: int) -> bytes:
        """A group's state: what the program keeps, and as many marks as fit. Raises ValueError when not even that."""
        room = most_bytes - HEAD.size - len(own)
        if room < 0:
            raise ValueError(f"a state of {len(own):,} bytes; a group keeps at most {most_bytes - HEAD.size:,}")
        count = min(MAX_KEPT, len(self._marks), room // PACKED.size)
        kept = list(self._marks.items())[len(self._marks) - count :]
        return HEAD.pack(VERSION, count) + b"".join(PACKED.pack(*mark) for mark in kept) + own

    def unpack(self, state: bytes) -> bytes:
        """Take up what `pack` made: what the program kept. A state that is of no version known here says nothing."""
        if len(state) < HEAD.size:
            return b""
        version, count = HEAD.unpack_from(state)
        own_at = HEAD.size + count * PACKED.size
        if version != VERSION or own_at > len(state):
            return b""
        for stream, seq in PACKED.iter_unpack(state[HEAD.size : own_at]):
            self.is_repeat(stream, seq)
        return state[own_at:]
