"""What went one way through a place, in batches, bytes of their messages, messages and records; never goes down."""

from __future__ import annotations

from attrs import define

from sapflow.link.events import Batch


@define
class Traffic:
    """Bytes are those of IPFIX messages, without frames, so that what comes in can be held against what goes out."""

    batches: int = 0
    bytes: int = 0
    messages: int = 0
    records: int = 0

    def add(self, batch: Batch) -> None:
        """A batch went by."""
        self.batches += 1
        self.bytes += len(batch.payload)
        self.messages += batch.messages
        self.records += batch.records

    def __add__(self, other: Traffic) -> Traffic:
        """Both together."""
        return Traffic(
            self.batches + other.batches,
            self.bytes + other.bytes,
            self.messages + other.messages,
            self.records + other.records,
        )
