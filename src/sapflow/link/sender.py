"""One stream of ours on one link: what may be sent of its outbox now. Pure; used wherever batches go out."""

from __future__ import annotations

from sapflow.link.connection import Connection
from sapflow.link.frames import StreamId
from sapflow.link.outbox import Cursor, Outbox
from sapflow.link.traffic import Traffic

LOOKAHEAD_BYTES = 512 << 10
"""Credit is asked for this far ahead of what was sent, and to the end of the batch that lies there."""


class Sender:
    """Carries an outbox over a connection. Methods give the bytes to send."""

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        *,
        stream: StreamId,
        org: str,
        exporter: str,
        lookahead_bytes: int = LOOKAHEAD_BYTES,
        traffic: Traffic | None = None,
    ) -> None:
        self.connection = connection
        self.outbox = outbox
        self._lookahead_bytes = lookahead_bytes
        self.handle, self.opening = connection.open(stream, org, exporter)
        self._cursor = Cursor(outbox)
        self.traffic = traffic if traffic is not None else Traffic()
        """What was sent, with what was sent again."""

    def pump(self) -> list[bytes]:
        """What credit allows, and a wish for credit for what else waits."""
        connection, cursor, handle = self.connection, self._cursor, self.handle
        pieces: list[bytes] = []
        credit = connection.credit(handle)
        while (batch := cursor.peek()) is not None and batch.size <= credit:
            pieces += connection.batch(handle, batch)
            credit -= batch.size
            cursor.advance()
            self.traffic.add(batch)
        waiting = cursor.waiting_bytes(self._lookahead_bytes)
        if waiting:
            pieces.append(connection.want(handle, waiting))
        return pieces

    def go_back(self, seq: int) -> None:
        """The far end did not take this batch: `pump` goes on from there."""
        self._cursor.go_back(seq)

    def reset(self) -> None:
        """The far end lacks something: `pump` goes on from the lowest unacknowledged batch."""
        self._cursor.reset()
