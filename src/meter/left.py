"""An exporter's session as a process leaves it to its successor, beside its socket; pure.

It is left between two batches. What was numbered and is not durable yet goes with it, and is sent again under the same
numbers; so do the bytes of a message that has not come whole, and all that its messages have taught: templates and
sequence numbers. Another version of ours may read it: one that does not understand it says so, and takes none of it.

    CRC u32 | length of the head u32 | head, JSON | templates | bytes of a message | payload and account of each batch
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from attrs import frozen
from crc32c import crc32c

from meter.batching import BatcherState
from sapflow.errors import LinkError
from sapflow.flows.ipfix.session_state import SessionState
from sapflow.link import Batch, StreamId
from sapflow.link.frames import Close

VERSION = 2
_HEAD = struct.Struct("!II")


@frozen
class LeftStream:
    """A stream that goes on elsewhere: its id, its numbers, and what of it is held by nobody else."""

    id: StreamId
    last: int
    """The highest number used; the next batch has the one behind it."""
    acknowledged: int
    """The highest that is durable in the log."""
    batches: tuple[Batch, ...] = ()
    """Those that are not durable yet, in order, up to `last`."""
    target: str = ""
    """The collector that it was on; it is wanted there again."""
    rate: float = 0.0
    """Bytes/s that it brought; 0 when that is not known."""

    @property
    def is_whole(self) -> bool:
        """Whether all is here that is not durable in the log: else it is in a spool, or nobody can go on with it."""
        return self.acknowledged + len(self.batches) >= self.last


@frozen
class LeftSession:
    """An exporter's session between two batches."""

    org: str
    peer: str
    stream: LeftStream
    batcher: BatcherState

    def encode(self) -> bytes:
        """As bytes, for another process."""
        stream, batcher = self.stream, self.batcher
        definitions = batcher.session.definitions()
        head = {
            "version": VERSION,
            "org": self.org,
            "peer": self.peer,
            "stream": stream.id.hex(),
            "last": stream.last,
            "acknowledged": stream.acknowledged,
            "target": stream.target,
            "rate": stream.rate,
            "offset": batcher.offset,
            "walked": batcher.walked,
            "session": batcher.session.fields(),
            "definitions": len(definitions),
            "tail": len(batcher.tail),
            "batches": [
                [one.seq, one.messages, one.records, one.received_us, len(one.payload), len(one.account)]
                for one in stream.batches
            ],
        }
        packed = json.dumps(head).encode()
        pieces = [packed, definitions, batcher.tail]
        for one in stream.batches:
            pieces += [one.payload, one.account]
        body = b"".join(pieces)
        return _HEAD.pack(crc32c(body), len(packed)) + body

    @classmethod
    def decode(cls, data: bytes) -> LeftSession:
        """From what `encode` gave. Raises LinkError when it is no such, or of a version that is not known."""
        try:
            crc, size = _HEAD.unpack_from(data)
            if crc32c(memoryview(data)[_HEAD.size :]) != crc:
                raise ValueError("its checksum is another")
            head = json.loads(data[_HEAD.size : _HEAD.size + size])
            if head["version"] != VERSION:
                raise ValueError(f"it is of version {head['version']}")
            return _read(head, _Pieces(data, _HEAD.size + size))
        except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
            raise LinkError(f"a session that was left cannot be read: {error}", code=Close.PROTOCOL) from None


def _read(head: dict[str, Any], pieces: _Pieces) -> LeftSession:
    session = SessionState.read(head["session"], pieces.take(head["definitions"]))
    batcher = BatcherState(pieces.take(head["tail"]), int(head["offset"]), int(head["walked"]), session)
    batches = tuple(_batches(head["batches"], pieces))
    numbers = [one.seq for one in batches]
    last = int(head["last"])
    if numbers != list(range(last - len(numbers) + 1, last + 1)):
        raise ValueError(f"batches {numbers} of a stream whose last is {last}")
    id_ = bytes.fromhex(head["stream"])
    if len(id_) != 16:
        raise ValueError(f"a stream's id of {len(id_)} bytes")
    where = (str(head["target"]), float(head["rate"]))
    stream = LeftStream(StreamId(id_), last, int(head["acknowledged"]), batches, *where)
    return LeftSession(str(head["org"]), str(head["peer"]), stream, batcher)


def _batches(told: list[list[int]], pieces: _Pieces) -> Iterator[Batch]:
    for seq, messages, records, received_us, payload, account in told:
        yield Batch(seq, messages, records, received_us, pieces.take(payload), pieces.take(account))


class _Pieces:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError("it is cut off")
        self._at += size
        return self._data[self._at - size : self._at]
