"""What a collector's streams tell of their exporters in options data: whether a batch tells news, and the last of it.

It is looked at by batches that define a template of such records, and by no others. What is kept is for live
subscribers, who come in the middle: the last sets of each template as they were, within a bound for each template and
one for all streams. Nothing is taken apart here; Phloem keeps the records themselves (`phloem/engine/options.py`).
"""

from __future__ import annotations

from attrs import define, field
from crc32c import crc32c

from sapflow.flows.ipfix.encode import make_message, make_set
from sapflow.flows.ipfix.telling import sets_that_tell
from sapflow.flows.ipfix.templates import Template

TEMPLATE_BYTES = 64 << 10
"""Of the sets of one template, as they are in memory: those that came last."""
SET_BYTES = 256
"""What a set takes in memory beside its octets."""
ORG_SHARE = 0.5
"""No org has more of the room."""


@define
class Room:
    """For what all streams of a collector told; what is told while there is none is not kept, and counted."""

    most_bytes: int = 16 << 20
    used_bytes: int = 0
    not_kept: int = 0
    """Sets; never goes down."""
    _by_org: dict[str, int] = field(factory=dict)

    def take(self, org: str, size: int) -> bool:
        """Whether there is room for so much."""
        held = self._by_org.get(org, 0) + size
        if self.used_bytes + size > self.most_bytes or held > self.most_bytes * ORG_SHARE:
            self.not_kept += 1
            return False
        self.used_bytes += size
        self._by_org[org] = held
        return True

    def give_back(self, org: str, size: int) -> None:
        """It is free again."""
        self.used_bytes -= size
        self._by_org[org] -= size
        if not self._by_org[org]:
            del self._by_org[org]


@define
class _Sets:
    """Of one template, the latest last; `size` is what they take."""

    template: Template
    bodies: dict[bytes, None] = field(factory=dict)
    size: int = 0


@define
class Told:
    """What one stream told."""

    org: str = ""
    _room: Room = field(factory=Room)
    _checksum: int = 0
    """Of what the last batch told that told anything."""
    _sets: dict[tuple[int, bytes], _Sets] = field(factory=dict)
    """By domain and template record, the latest last."""

    def interrupted(self) -> None:
        """Batches went another way in between: what comes next is news, whatever it is."""
        self._checksum = 0

    def hears(self, payload: bytes) -> bool:
        """Whether a batch tells anything else than the last one that told anything; it is kept.

        Many exporters tell the same every few seconds. Nobody behind needs to look at that again.
        """
        checksum, found = 0, []
        for domain, _, template, body, end in sets_that_tell(payload):
            octets = payload[body:end]
            checksum = crc32c(octets, crc32c(template.raw, crc32c(domain.to_bytes(4, "big"), checksum)))
            found.append((domain, template, octets))
        if not found or checksum == self._checksum:
            return False
        self._checksum = checksum
        for one in found:
            self._keep(*one)
        return True

    def _keep(self, domain: int, template: Template, octets: bytes) -> None:
        key = (domain, template.raw)
        sets = self._sets.pop(key, None) or _Sets(template)
        size = len(octets) + SET_BYTES
        if octets in sets.bodies:
            del sets.bodies[octets]
        elif size > TEMPLATE_BYTES or not self._room.take(self.org, size):
            size = 0
        else:
            sets.size += size
        if size:
            sets.bodies[octets] = None
        while sets.size > TEMPLATE_BYTES:
            oldest = next(iter(sets.bodies))
            del sets.bodies[oldest]
            sets.size -= len(oldest) + SET_BYTES
            self._room.give_back(self.org, len(oldest) + SET_BYTES)
        if sets.bodies:
            self._sets[key] = sets

    def forget(self) -> None:
        """The stream is no more here."""
        for sets in self._sets.values():
            self._room.give_back(self.org, sets.size)
        self._sets.clear()

    def messages(self) -> list[bytes]:
        """What was kept, of each template as self-contained messages; those that came last are last."""
        found = []
        for (domain, raw), sets in self._sets.items():
            pieces = [make_set(sets.template.set_id, raw), *(make_set(sets.template.id, body) for body in sets.bodies)]
            found.append(b"".join(make_message(piece, domain=domain) for piece in pieces))
        return found
