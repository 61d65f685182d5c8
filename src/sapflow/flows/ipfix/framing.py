"""Whole IPFIX messages out of a byte stream cut anywhere (RFC 7011, 10.4.2.3).

Holds at most one partial message. What is no IPFIX is told by its first bytes, before any of it is waited for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sapflow.errors import MalformedMessage
from sapflow.flows.wire import MESSAGE_HEADER, VERSION

_VERSION_AND_LENGTH = struct.Struct("!HH")


_LOOKS_LIKE = {
    0x16: "; it looks like TLS, which this door does not end",
    ord("G"): "; it looks like HTTP",
    ord("P"): "; it looks like HTTP",
    5: "; it looks like NetFlow v5, which comes in datagrams",
    9: "; it looks like NetFlow v9, which comes in datagrams",
}
"""By the first byte that is no zero."""


def in_parts(messages: bytes, most: int) -> Iterator[bytes]:
    """Whole messages in pieces of about `most` bytes, each of whole messages; what is none is in the last."""
    at = 0
    while len(messages) - at > most:
        stop = at
        while stop - at < most:
            length = int.from_bytes(messages[stop + 2 : stop + 4], "big")
            if length < MESSAGE_HEADER.size:
                yield messages[at:]
                return
            stop += length
        yield messages[at:stop]
        at = stop
    if at < len(messages):
        yield messages[at:] if at else messages


class MessageFramer:
    """Feed it what was read; after a fault, `fault` says what and where in the stream."""

    def __init__(self, tail: bytes = b"", offset: int = 0) -> None:
        self.fault: MalformedMessage | None = None
        self.tail = tail
        """What is held of a message that has not come whole."""
        self.offset = offset
        """Where in the stream that begins."""

    @property
    def pending_bytes(self) -> int:
        """Bytes held of a message that has not come whole."""
        return len(self.tail)

    def feed(self, data: bytes) -> bytes:
        """All whole messages now available, as one piece; those before a fault are given too.

        Raises MalformedMessage when called again after a fault.
        """
        if self.fault is not None:
            raise self.fault
        if self.tail:
            data = self.tail + data
        at, end = 0, len(data)
        unpack = _VERSION_AND_LENGTH.unpack_from
        last = end - 4
        while at <= last:
            version, length = unpack(data, at)
            if version != VERSION or length < MESSAGE_HEADER.size:
                self._fail(version, length, at)
                break
            if at + length > end:
                break
            at += length
        else:
            if at < end and data[at] != 0:
                self._fail(data[at] << 8, 0, at)
            elif at + 1 < end and data[at + 1] != VERSION:
                self._fail(data[at + 1], 0, at)
        self.tail = data[at:] if self.fault is None else b""
        self.offset += at
        return data if at == end else data[:at]

    def _fail(self, version: int, length: int, at: int) -> None:
        if version != VERSION:
            what, reason = f"version {version} where an IPFIX message (version 10) begins", "version"
            what += _LOOKS_LIKE.get(version >> 8 or version, "")
        else:
            what, reason = f"a message says it is {length} bytes long; its header alone has 16", "length"
        self.fault = MalformedMessage(what, offset=self.offset + at, reason=reason)
