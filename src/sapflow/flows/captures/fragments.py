"""IP datagrams put together from their fragments, in any order (RFC 791, 3.2; RFC 8200, 4.5).

Bounded: so many datagrams in progress, each of so many bytes; the oldest goes when another begins. A fragment that
came twice is taken once; fragments that overlap otherwise cost the datagram, for both versions (RFC 5722).
"""

from __future__ import annotations

from bisect import bisect_left

from attrs import Factory, define, frozen

MAX_IN_PROGRESS = 64
MAX_DATAGRAM_BYTES = 65_535
LIFETIME_US = 60_000_000
"""From its first fragment on (RFC 8200, 4.5): afterwards the identification may be another datagram's."""

Key = tuple[bytes, bytes, int, int]
"""Source, destination, protocol, identification."""


@frozen
class Fragment:
    """Where a packet's payload stands in its datagram."""

    identification: int
    offset: int
    """In bytes."""
    more: bool
    """Whether another one stands behind it."""


@define
class _Partial:
    began_us: int
    offsets: list[int] = Factory(list)
    """Sorted, as `pieces`."""
    pieces: list[bytes] = Factory(list)
    held: int = 0
    total: int | None = None
    """Known once the last fragment came."""

    def add(self, fragment: Fragment, payload: bytes) -> bool:
        """Put a fragment in its place; False when it contradicts what is known of the datagram."""
        begin, end = fragment.offset, fragment.offset + len(payload)
        at = bisect_left(self.offsets, begin)
        if at < len(self.offsets) and (self.offsets[at], len(self.pieces[at])) == (begin, len(payload)):
            return fragment.more or self.total == end
        if at < len(self.offsets) and self.offsets[at] < end:
            return False
        if at and self.offsets[at - 1] + len(self.pieces[at - 1]) > begin:
            return False
        if not fragment.more:
            if self.total is not None or (self.offsets and self.offsets[-1] > begin):
                return False
            self.total = end
        elif self.total is not None and end > self.total:
            return False
        self.offsets.insert(at, begin)
        self.pieces.insert(at, payload)
        self.held += len(payload)
        return True


class Reassembly:
    """Feed it fragments; `dropped` counts datagrams of which some fragments came, and that are given up."""

    def __init__(self) -> None:
        self.dropped = 0
        self._partials: dict[Key, _Partial] = {}

    def add(self, key: Key, fragment: Fragment, payload: bytes, time_us: int) -> bytes | None:
        """The datagram's payload when this fragment makes it whole."""
        if _impossible(fragment, len(payload)):
            self._drop(key)
            return None
        partial = self._partials.get(key)
        if partial is not None and time_us - partial.began_us > LIFETIME_US:
            self._drop(key)
            partial = None
        if partial is None:
            partial = self._begin(key, time_us)
        if not partial.add(fragment, payload):
            self._drop(key)
            return None
        if partial.held != partial.total:
            return None
        del self._partials[key]
        return b"".join(partial.pieces)

    def clear(self) -> None:
        """Give up all that are in progress."""
        self.dropped += len(self._partials)
        self._partials.clear()

    def _begin(self, key: Key, time_us: int) -> _Partial:
        if len(self._partials) >= MAX_IN_PROGRESS:
            self._drop(next(iter(self._partials)))
        partial = self._partials[key] = _Partial(time_us)
        return partial

    def _drop(self, key: Key) -> None:
        self._partials.pop(key, None)
        self.dropped += 1


def _impossible(fragment: Fragment, size: int) -> bool:
    """Empty, past the largest datagram, or not the last and no multiple of eight bytes (RFC 791, 2.3)."""
    return size == 0 or fragment.offset + size > MAX_DATAGRAM_BYTES or (fragment.more and size % 8 != 0)
