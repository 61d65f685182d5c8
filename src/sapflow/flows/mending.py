"""What of exporters' messages is passed on when some of their sets cannot be read.

A message whose own lengths hold is worth its readable sets: the others are cut out by whoever reads the exporter, so
that every message behind the intake can be read whole, and strictly. A template record that cannot be used becomes the
withdrawal of its id, for nothing may be decoded by what the id meant before.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.wire import SET_HEADER


@frozen
class Cut:
    """A set that is left out of its message, or another put in its place. Offsets are in the data walked."""

    message: int
    start: int
    stop: int
    put: bytes
    fault: MalformedMessage
    """Why it cannot be read."""

    @property
    def reason(self) -> str:
        """A short label from a bounded set, for counters."""
        return self.fault.reason


def withdrawal(template_id: int) -> bytes:
    """The record that withdraws a template (RFC 7011, 8.1)."""
    return template_id.to_bytes(2, "big") + b"\0\0"


def set_around(set_id: int, records: Sequence[bytes]) -> bytes:
    """The set of these records; nothing when there are none."""
    body = b"".join(records)
    return SET_HEADER.pack(set_id, SET_HEADER.size + len(body)) + body if body else b""


def mended(data: bytes, cuts: Sequence[Cut]) -> bytes:
    """Whole messages with their cuts made, in the order of the data; the lengths of their messages follow."""
    pieces: list[bytes] = []
    at = 0
    index = 0
    while index < len(cuts):
        message = cuts[index].message
        length = int.from_bytes(data[message + 2 : message + 4], "big")
        pieces.append(data[at:message])
        kept: list[bytes] = []
        at = message + 4
        while index < len(cuts) and cuts[index].message == message:
            cut = cuts[index]
            kept += (data[at : cut.start], cut.put)
            at = cut.stop
            index += 1
        kept.append(data[at : message + length])
        at = message + length
        body = b"".join(kept)
        pieces += (data[message : message + 2], (4 + len(body)).to_bytes(2, "big"), body)
    pieces.append(data[at:])
    return b"".join(pieces)
