"""What capture files of every form come down to: packets, and exact reading from a file that knows its offset."""

from __future__ import annotations

from typing import BinaryIO

from attrs import frozen

from sapflow.errors import MalformedMessage

MAX_PACKET_BYTES = 256 << 10
"""The largest packet a capture may hold: what libpcap takes as the largest snapshot length."""


@frozen
class Packet:
    """One captured packet, from its link-layer header on; possibly cut by the capture's snapshot length."""

    time_us: int
    """Since 1970 in UTC; always before the year 10000."""
    link_type: int
    """A LINKTYPE_ value, as registered at tcpdump.org."""
    data: bytes
    offset: int
    """Where its record or block begins in the file."""


class CaptureInput:
    """Reads exactly what is asked for, however the file cuts its reads."""

    def __init__(self, file: BinaryIO) -> None:
        self.offset = 0
        """Where the next byte taken stands in the file."""
        self._file = file
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, left in place; fewer only at the file's end."""
        while len(self._ahead) < size:
            piece = self._file.read(size - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead[:size]

    def at_end(self) -> bool:
        """Whether the file has no more bytes."""
        return not self.peek(1)

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes. Raises MalformedMessage when the file ends before them."""
        data = self.peek(size)
        if len(data) < size:
            text = f"the file ends {len(data):,} bytes into {what} of {size:,}; it was cut off"
            raise MalformedMessage(text, offset=self.offset, reason="truncated")
        self._ahead = self._ahead[size:]
        self.offset += size
        return data


def check_packet_bytes(size: int, offset: int) -> None:
    """Refuse a packet larger than any snapshot length allows, before it is read. Raises MalformedMessage."""
    if size > MAX_PACKET_BYTES:
        what = f"a packet of {size:,} bytes (limit {MAX_PACKET_BYTES:,})"
        raise MalformedMessage(what, offset=offset, reason="length")
