"""IPFIX over UDP (RFC 7011, 8.4 and 10.3): messages in which every data set can be decoded.

A message passes unchanged, but for sets whose template has not come, which wait for it, and for withdrawals, which over
UDP are ignored. A definition replaces the one before it; one that is malformed, or an exporter that begins anew, ends
what its number meant until then, and says so to those behind by a withdrawal of ours. A set that is malformed within a
message that is not costs itself only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Sequence

from attrs import define, field, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.parking import Parking
from sapflow.flows.datagrams.reboots import Reboots
from sapflow.flows.ipfix.encode import make_set
from sapflow.flows.ipfix.mending import mended, set_around, withdrawal
from sapflow.flows.ipfix.sequences import Numbers, SequenceCounter
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import RefusedTemplate, Template, read_template_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import (
    FIRST_DATA_SET,
    MESSAGE_AND_SET,
    MESSAGE_HEADER,
    OPTIONS_TEMPLATE_SET,
    SET_HEADER,
    TEMPLATE_SET,
    VERSION,
)

_U16 = struct.Struct("!H")


@frozen
class _Head:
    export_time: int
    number: int
    domain: int

    def message(self, sets: bytes) -> bytes:
        """A message of these sets; none without."""
        if not sets:
            return b""
        length = MESSAGE_HEADER.size + len(sets)
        return MESSAGE_HEADER.pack(VERSION, length, self.export_time, self.number, self.domain) + sets


@define
class _Survey:
    """A message taken apart: what can be decoded, and what waits."""

    kept: list[bytes] = field(factory=list)
    early: list[tuple[int, bytes]] = field(factory=list)
    """Sets before their template, by its id."""
    defined: set[int] = field(factory=set)
    forgotten: set[int] = field(factory=set)
    """Templates that mean nothing from here on, since they were defined by what cannot be used."""
    whole: bool = True
    """All of it can be decoded, and is kept."""


@define
class IpfixDatagrams:
    """One exporter's messages; `sequences` is what was lost, by observation domain (records)."""

    limits: FlowLimits = FlowLimits()
    on_fault: Callable[[MalformedMessage], None] = lambda _: None
    """Told of sets and templates that were left out, and of datagrams of a run that were dropped."""
    sequences: dict[int, SequenceCounter] = field(factory=dict)
    parking: Parking[_Head] = field(factory=Parking)
    definitions: int = 0
    """Templates that came, whether they were known or not."""
    _replayed_records: int = 0
    """Since `take_numbers`: those that came before their template, and count as read now."""
    _reboots: Reboots = field(factory=Reboots)
    _session: Session = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._session = Session(self.limits, mends=True)

    def run_of(self, datagram: bytes) -> Hashable:
        """Whether it is of one data set of a known template, as those are that `translate_all` takes together."""
        if len(datagram) < MESSAGE_AND_SET.size:
            return None
        version, length, _, _, domain, set_id, set_length = MESSAGE_AND_SET.unpack_from(datagram)
        if version != VERSION or length != len(datagram) or set_length + MESSAGE_HEADER.size != length:
            return None
        template = self._session.templates.get(domain << 16 | set_id)
        return True if template is not None and template.record_bytes else None

    def translate_all(self, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """Datagrams of one run; those that just follow on are looked at no further."""
        templates, sequences = self._session.templates, self.sequences
        made: list[bytes] = []
        for datagram in datagrams:
            _, length, _, number, domain, set_id, _ = MESSAGE_AND_SET.unpack_from(datagram)
            template, counter = templates.get(domain << 16 | set_id), sequences.get(domain)
            if template is not None and counter is not None:
                count = (length - MESSAGE_AND_SET.size) // template.record_bytes
                if count and counter.advance(number, count):
                    made.append(datagram)
                    continue
            try:
                made.append(self.translate(datagram, received_s))
            except MalformedMessage as fault:
                self.on_fault(fault)
        return b"".join(made)

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The message, and behind it what was parked for the templates it brings. Raises MalformedMessage."""
        datagram = _one_message(datagram)
        head = _Head(*MESSAGE_HEADER.unpack_from(datagram)[2:])
        try:
            return self._translated(datagram, head)
        except MalformedMessage:
            counter = self.sequences.get(head.domain)
            if counter is not None and counter.expected == head.number:
                # It came, whatever is in it: the next number tells how much, and that is no loss.
                counter.follow(head.number, None)
            raise

    def _translated(self, datagram: bytes, head: _Head) -> bytes:
        session = self._session
        if head.domain not in self.sequences and len(self.sequences) >= self.limits.max_domains:
            what = f"more than {self.limits.max_domains:,} observation domains of one exporter"
            raise MalformedMessage(what, offset=12, reason="domains")
        survey = self._survey(datagram, head)
        message = datagram if survey.whole else head.message(b"".join(survey.kept))
        learned = session.changes
        walk = session.walk(message)
        if walk.fault is not None:
            raise walk.fault
        made = [mended(message, walk.cuts)]
        for cut in walk.cuts:
            self.on_fault(cut.fault)
        for number in survey.forgotten:
            self._reboots.forgotten((head.domain, number))
        for number, whole in survey.early:
            self.parking.park((head.domain, number), whole, head)
        self.definitions += len(survey.defined)
        for number in survey.defined:
            self._reboots.defined((head.domain, number))
        counter = self.sequences.setdefault(head.domain, SequenceCounter())
        counter.follow(head.number, None if survey.early or walk.cuts else walk.records, at_least=walk.records)
        for key in self._reboots.stale(head.domain, counter):
            made.append(self._withdrawn(key[1], head))
        if session.changes != learned:
            made += self._replayed(head.domain)
        return b"".join(made)

    def _survey(self, datagram: bytes, head: _Head) -> _Survey:
        """Raises MalformedMessage for lengths of sets that cannot be."""
        survey = _Survey()
        at, end = MESSAGE_HEADER.size, len(datagram)
        while end - at >= SET_HEADER.size:
            set_id, length = SET_HEADER.unpack_from(datagram, at)
            if length < SET_HEADER.size or length > end - at:
                what = f"set {set_id} says {length:,} bytes, but {end - at:,} are left of its message"
                raise MalformedMessage(what, offset=at, reason="set")
            whole = datagram[at : at + length]
            if set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
                self._survey_templates(datagram, at, at + length, head, survey)
            elif set_id >= FIRST_DATA_SET and length > SET_HEADER.size and not self._knows(set_id, head, survey):
                survey.whole = False
                survey.early.append((set_id, whole))
            else:
                survey.kept.append(whole)
            at += length
        if at < end:
            raise MalformedMessage(f"{end - at} bytes after the last set", offset=at, reason="set")
        return survey

    def _knows(self, number: int, head: _Head, survey: _Survey) -> bool:
        held = head.domain << 16 | number in self._session.templates and number not in survey.forgotten
        return held or number in survey.defined

    def _survey_templates(self, datagram: bytes, start: int, end: int, head: _Head, survey: _Survey) -> None:
        set_id, _ = SET_HEADER.unpack_from(datagram, start)
        records: list[bytes] = []
        whole = True
        for item in read_template_set(datagram, start + SET_HEADER.size, end, set_id, self.limits):
            if isinstance(item, Template):
                records.append(item.raw)
                survey.defined.add(item.id)
                continue
            whole = False
            if isinstance(item, RefusedTemplate):
                self.on_fault(item.fault)
                if self._knows(item.id, head, survey):
                    records.append(withdrawal(item.id))
                    survey.forgotten.add(item.id)
                    survey.defined.discard(item.id)
        survey.whole = survey.whole and whole
        survey.kept.append(datagram[start:end] if whole else set_around(set_id, records))

    def _withdrawn(self, number: int, head: _Head) -> bytes:
        """The message by which a template is forgotten, here and by all who come behind."""
        template = self._session.templates[head.domain << 16 | number]
        message = head.message(make_set(template.set_id, struct.pack("!HH", number, 0)))
        walk = self._session.walk(message)
        assert walk.fault is None, walk.fault
        self._session.cut()  # nobody asks what it used; it would remember what has been withdrawn
        return message

    def _replayed(self, domain: int) -> list[bytes]:
        made = []
        for number in self.parking.waiting(domain):
            if domain << 16 | number in self._session.templates:
                for whole, head in self.parking.take((domain, number)):
                    message = head.message(whole)
                    walk = self._session.walk(message)
                    faults = [cut.fault for cut in walk.cuts] if walk.fault is None else [walk.fault]
                    if not faults:
                        made.append(message)
                        self._replayed_records += walk.records
                        continue
                    self.parking.misfit()
                    for fault in faults:
                        self.on_fault(fault)
        return made

    def take_numbers(self) -> Numbers:
        """What the sequence numbers say since this was last asked (records)."""
        total = Numbers(unread=-self._replayed_records)
        self._replayed_records = 0
        for counter in self.sequences.values():
            total += counter.take()
        return total

    @property
    def template_changes(self) -> int:
        """How often templates were defined that were not known so."""
        return self._session.changes

    def template_sets(self) -> list[bytes]:
        """Messages that define all templates."""
        return self._session.definitions()

    def restore(self, datagrams: Sequence[bytes]) -> bytes:
        """Learn what `template_sets` gave. Raises MalformedMessage."""
        for datagram in datagrams:
            walk = self._session.walk(datagram)
            if walk.fault is not None:
                raise walk.fault
        for key in self._session.templates:
            self._reboots.defined((key >> 16, key & 0xFFFF))
        return b"".join(datagrams)


def _one_message(datagram: bytes) -> bytes:
    """The one message of a datagram, without the zeros that some fill up with. Raises MalformedMessage."""
    if len(datagram) < MESSAGE_HEADER.size:
        raise MalformedMessage("a message header is cut off", offset=0, reason="truncated")
    version, length = SET_HEADER.unpack_from(datagram)
    if version != VERSION:
        raise MalformedMessage(f"version {version}, not 10", offset=0, reason="version")
    if not MESSAGE_HEADER.size <= length <= len(datagram):
        what = f"a message of {length:,} bytes in a datagram of {len(datagram):,}"
        raise MalformedMessage(what, offset=2, reason="length")
    if length == len(datagram):
        return datagram
    if any(datagram[length:]):
        raise MalformedMessage("bytes behind the message of a datagram", offset=length, reason="length")
    return datagram[:length]
