"""What is in batches, in figures and in words: `decode --stats` and `decode --templates`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from meter.batching import Draft
from sapflow.flows.datagrams.session import Protocol
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template, parse_template_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import registry
from sapflow.flows.wire import FIRST_DATA_SET, MESSAGE_HEADER, SET_HEADER

MAX_DOMAINS = 1024
"""Of an exporter, that are told apart in stats."""
OTHERS = "others"
"""The name of those beyond a bound, together."""


@define
class DomainStats:
    """What one observation domain of one exporter brought."""

    messages: int = 0
    sets: int = 0
    templates: set[int] = field(factory=set)
    records: int = 0

    def as_json(self) -> dict[str, int]:
        """Figures only."""
        return {
            "messages": self.messages,
            "sets": self.sets,
            "templates": len(self.templates),
            "records": self.records,
        }


@define
class ExporterStats:
    """What one exporter brought, by observation domain."""

    protocol: Protocol
    bytes: int = 0
    datagrams: int = 0
    lost: int = 0
    undecodable_sets: int = 0
    errors: Counter[str] = field(factory=Counter)
    skipped: Counter[str] = field(factory=Counter)
    """What gave no records, by reason: counter samples of sFlow."""
    domains: dict[int | str, DomainStats] = field(factory=dict)

    def domain(self, number: int) -> DomainStats:
        """Those beyond the bound are one."""
        has_room = number in self.domains or len(self.domains) < MAX_DOMAINS
        return self.domains.setdefault(number if has_room else OTHERS, DomainStats())


def tally(stats: ExporterStats, draft: Draft) -> None:
    """Count a batch message by message; the messages of its prelude are not the exporter's own."""
    session = Session()
    data, at = draft.payload, 0
    lengths = []
    while at < len(data):
        lengths.append(int.from_bytes(data[at + 2 : at + 4], "big"))
        at += lengths[-1]
    at = 0
    for index, length in enumerate(lengths):
        message = data[at : at + length]
        at += length
        walk = session.walk(message)
        domain = MESSAGE_HEADER.unpack_from(message)[4]
        found = stats.domain(domain)
        found.templates.update(key & 0xFFFF for key in session.templates if key >> 16 == domain)
        if index >= len(lengths) - draft.messages:
            found.messages += 1
            found.records += walk.records
            found.sets += sum(1 for _ in _sets(message))


def _sets(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Each set's id, and where it begins and ends."""
    at = MESSAGE_HEADER.size
    while at < len(message):
        set_id, length = SET_HEADER.unpack_from(message, at)
        yield set_id, at, at + length
        at += length


def described(payload: bytes) -> Iterator[dict[str, Any]]:
    """The templates that a batch defines, in words."""
    at = 0
    while at < len(payload):
        length = int.from_bytes(payload[at + 2 : at + 4], "big")
        message = payload[at : at + length]
        domain = MESSAGE_HEADER.unpack_from(message)[4]
        for set_id, start, end in _sets(message):
            if set_id >= FIRST_DATA_SET:
                continue
            for item in parse_template_set(message, start + SET_HEADER.size, end, set_id, FlowLimits()):
                if isinstance(item, Template):
                    yield {
                        "domain": domain,
                        "template": item.id,
                        "scope_fields": item.scope_count,
                        "fields": [
                            {"name": registry().lookup(part.pen, part.id).name, "length": part.length}
                            for part in item.fields
                        ],
                    }
        at += length
