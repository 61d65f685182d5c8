"""A stream's batches at a hop that has not seen them acknowledged (rule 1 of the design: every hop keeps them).

An outbox holds a contiguous run of numbers. A cursor is one receiver's place in it; after a reconnect or a move the
cursor is reset, and sends again from the lowest unacknowledged batch, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sapflow.link.events import Batch


class Outbox:
    """The unacknowledged batches of one stream, in order."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self.last = 0
        """The number put last; the next is `last + 1`."""
        self.begun = 0
        """How often what came was not the next, so that it began anew: cursors go back to its lowest."""
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    @property
    def lowest(self) -> int:
        """The lowest number held, or the one that comes next."""
        return self._batches[0].seq if self._batches else self.last + 1

    def put(self, batch: Batch) -> int:
        """Take a batch that came from upstream. Returns how many bytes are held more than before.

        One that is held already is dropped (0). One that leaves a gap means that upstream saw everything below it
        acknowledged, by another way: what is held is let go (the result is then less than its size). One that was let
        go means that upstream has not seen it acknowledged: it is sent on again, and acknowledged again.
        """
        before = self.held_bytes
        if batch.seq <= self.last and (self._batches and batch.seq >= self._batches[0].seq):
            return 0
        if batch.seq != self.last + 1:
            self._batches.clear()
            self.held_bytes = 0
            self.begun += 1
        self._batches.append(batch)
        self.held_bytes += batch.size
        self.last = batch.seq
        return self.held_bytes - before

    def replace(self, batch: Batch) -> int:
        """Hold this in the place of the batch with its number. Returns how many bytes are held more than before."""
        index = batch.seq - self.lowest
        change = batch.size - self._batches[index].size
        self._batches[index] = batch
        self.held_bytes += change
        return change

    def acknowledged(self, through: int) -> int:
        """All up to `through` is durable: returns the bytes let go."""
        before = self.held_bytes
        while self._batches and self._batches[0].seq <= through:
            self.held_bytes -= self._batches.popleft().size
        return before - self.held_bytes

    def at(self, seq: int) -> Batch | None:
        """The batch with that number, if it is held."""
        index = seq - self.lowest
        return self._batches[index] if 0 <= index < len(self._batches) else None


class Cursor:
    """What one receiver has been sent of an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.reset()

    def reset(self) -> None:
        """Go back to the lowest unacknowledged batch."""
        self.next_seq = self.outbox.lowest
        self._begun = self.outbox.begun

    def go_back(self, seq: int) -> None:
        """Send again from this number, if that was sent."""
        self.next_seq = min(self.next_seq, seq)

    def peek(self) -> Batch | None:
        """The batch to send next, if there is one."""
        outbox = self.outbox
        if self._begun != outbox.begun or not outbox.lowest <= self.next_seq <= outbox.last + 1:
            self.reset()
        return self.outbox.at(self.next_seq)

    def advance(self) -> None:
        """The batch that `peek` gave was sent."""
        self.next_seq += 1

    def waiting_bytes(self, limit: int) -> int:
        """Bytes of batches not sent yet, counted up to about `limit`."""
        total, seq = 0, self.next_seq
        while total < limit and (batch := self.outbox.at(seq)) is not None:
            total += batch.size
            seq += 1
        return total
