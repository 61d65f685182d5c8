"""IPFIX Files (RFC 5655): messages as they were, in one file that any IPFIX reader takes as one transport session.

Streams bring their own template ids into it. Where a stream's definition differs from what the file last said of that
domain and id, the file withdraws it first; sequence numbers are counted anew for each domain. Sets whose template is
not known at their place are left out, for the file may know another by their number. What the file knows is bounded:
templates beyond MAX_KNOWN_BYTES are withdrawn, those first that were defined longest ago, and defined again when they
are used again; of more than MAX_DOMAINS, the numbers of the oldest begin at 0 again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.records import Context
from sapflow.flows.ipfix.encode import make_message, make_set
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template, parse_template_set, variable_starts
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import (
    FIRST_DATA_SET,
    MESSAGE_HEADER,
    OPTIONS_TEMPLATE_SET,
    SET_HEADER,
    TEMPLATE_SET,
    VERSION,
)

MAX_KNOWN_BYTES = 4 << 20
"""Of templates that the file has defined and not withdrawn; of each a part is what it takes beside its record."""
KNOWN_BYTES = 512
MAX_DOMAINS = 16_384
_CHECKED = FlowLimits(max_fields_per_template=65_535)


class IpfixWriter:
    """Writes batches of any streams into one IPFIX File."""

    def __init__(self, out: BinaryIO) -> None:
        self.left_out: set[str] = set()
        """Nothing: records are whole."""
        self._out = out
        self._known: dict[int, Template] = {}
        """By domain << 16 | id, the one defined longest ago first."""
        self._known_bytes = 0
        self._sequence: dict[int, int] = {}
        self._exported = 0
        """When what was written last was exported."""

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write the records of self-contained messages, at most `limit`: returns how many. Raises MalformedMessage."""
        self._forget()
        checked, stream = Session(), _Stream()
        at = written = 0
        while at < len(data) and (limit is None or written < limit):
            _, length, _, _, domain = MESSAGE_HEADER.unpack_from(data, at)
            message = data[at : at + length]
            walk = checked.walk(message)
            if walk.fault is not None:
                raise MalformedMessage(walk.fault.what, offset=at + walk.fault.offset, reason=walk.fault.reason)
            for sets in _runs(message):
                written += self._put(message, domain, stream, sets, None if limit is None else limit - written)
            at += length
        return written

    def close(self) -> None:
        """Nothing is due."""
        self._out.flush()

    def _put(self, message: bytes, domain: int, stream: _Stream, sets: list[bytes], limit: int | None) -> int:
        """A run of sets that are all of templates, which the stream learns, or all of data, which are written.

        Returns how many records were written, at most `limit`.
        """
        session = stream.session
        of_data = int.from_bytes(sets[0][:2], "big") >= FIRST_DATA_SET
        if of_data:
            first = domain << 16
            sets = [each for each in sets if first | int.from_bytes(each[:2], "big") in session.templates]
            if limit is not None:
                sets = list(_first_records(sets, domain, session, limit))
        body = b"".join(sets)
        export_time = MESSAGE_HEADER.unpack_from(message)[2]
        sequence = self._sequence.get(domain, 0)
        made = MESSAGE_HEADER.pack(VERSION, MESSAGE_HEADER.size + len(body), export_time, sequence, domain) + body
        walk = session.walk(made)
        assert walk.fault is None, walk.fault
        if not of_data:
            stream.learn(domain, sets)
        if not of_data or not sets:
            return 0
        for number in stream.changed.pop(domain, ()):
            template = session.templates.get(domain << 16 | number)
            if template is not None:
                self._define(domain, template, export_time)
        self._out.write(made)
        self._sequence[domain] = (sequence + walk.records) & 0xFFFFFFFF
        return walk.records

    def _define(self, domain: int, template: Template, export_time: int) -> None:
        """Say what a template is, where the file says otherwise."""
        key = domain << 16 | template.id
        known = self._known.get(key)
        if known is not None:
            if known.same_as(template):
                return
            self._withdraw(key, export_time)
        self._message(domain, make_set(template.set_id, template.raw), export_time)
        self._known[key] = template
        self._known_bytes += KNOWN_BYTES + len(template.raw)

    def _withdraw(self, key: int, export_time: int) -> None:
        known = self._known.pop(key)
        self._known_bytes -= KNOWN_BYTES + len(known.raw)
        self._message(key >> 16, make_set(known.set_id, known.id.to_bytes(2, "big") + b"\0\0"), export_time)

    def _message(self, domain: int, whole: bytes, export_time: int) -> None:
        sequence = self._sequence.get(domain, 0)
        self._out.write(make_message(whole, domain=domain, sequence=sequence, export_time=export_time))
        self._exported = export_time

    def _forget(self) -> None:
        """What is beyond the bounds; each piece of data brings the templates that it needs."""
        while self._known_bytes > MAX_KNOWN_BYTES:
            self._withdraw(next(iter(self._known)), self._exported)
        while len(self._sequence) > MAX_DOMAINS:
            del self._sequence[next(iter(self._sequence))]


@define
class _Stream:
    """What a stream has said up to the set that is written: checked before, so that nothing bounds it here."""

    session: Session = field(factory=lambda: Session(FlowLimits(max_templates=1 << 32, max_template_bytes=1 << 32)))
    changed: dict[int, dict[int, None]] = field(factory=dict)
    """By domain, the templates that were defined since data of it were last written."""

    def learn(self, domain: int, sets: list[bytes]) -> None:
        """Take note of what template sets define."""
        changed = self.changed.setdefault(domain, {})
        for whole in sets:
            set_id = int.from_bytes(whole[:2], "big")
            for item in parse_template_set(whole, SET_HEADER.size, len(whole), set_id, _CHECKED):
                if isinstance(item, Template):
                    changed[item.id] = None


def _first_records(sets: list[bytes], domain: int, session: Session, limit: int) -> Iterator[bytes]:
    """Data sets as far as they have the first `limit` records."""
    for whole in sets:
        set_id = int.from_bytes(whole[:2], "big")
        template = session.templates[domain << 16 | set_id]
        if template.record_bytes:
            starts: Sequence[int] = range(
                SET_HEADER.size, len(whole) - template.record_bytes + 1, template.record_bytes
            )
        else:
            starts = variable_starts(whole, SET_HEADER.size, len(whole), template)
        if len(starts) > limit:
            if limit:
                yield make_set(set_id, whole[SET_HEADER.size : starts[limit]])
            return
        limit -= len(starts)
        yield whole


def _runs(message: bytes) -> Iterator[list[bytes]]:
    """The sets of a message, those of data and those of templates in runs, as they stand; reserved ones are no part."""
    at = MESSAGE_HEADER.size
    run: list[bytes] = []
    of_data = False
    while at < len(message):
        set_id, length = SET_HEADER.unpack_from(message, at)
        if run and of_data != (set_id >= FIRST_DATA_SET):
            yield run
            run = []
        of_data = set_id >= FIRST_DATA_SET
        if of_data or set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
            run.append(message[at : at + length])
        at += length
    if run:
        yield run
