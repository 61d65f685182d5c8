"""IPFIX over UDP (RFC 7011, 8.4 and 10.3): messages in which every data set can be decoded.

A message passes unchanged, but for sets whose template has not come, which wait for it, and for withdrawals, which over
UDP are ignored. A definition replaces the one before it; one that is malformed, or an exporter that begins anew, ends
what its number meant until then, and says so to those behind by a withdrawal of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Sequence

from attrs import define, field, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.encode import make_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.parking import Parking
from sapflow.flows.reboots import Reboots
from sapflow.flows.sequences import SequenceCounter
from sapflow.flows.session import Session
from sapflow.flows.templates import Template, Withdrawal, parse_template_set
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
_NUMBER = struct.Struct("!I")


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
    defined: list[int] = field(factory=list)
    whole: bool = True
    """All of it can be decoded, and is kept."""


@define
class IpfixDatagrams:
    """One exporter's messages; `sequences` is what was lost, by observation domain (records)."""

    limits: FlowLimits = FlowLimits()
    on_fault: Callable[[MalformedMessage], None] = lambda _: None
    """Told of sets that their template did not fit when it came, and of datagrams of a run that were dropped."""
    sequences: dict[int, SequenceCounter] = field(factory=dict)
    parking: Parking[_Head] = field(factory=Parking)
    definitions: int = 0
    """Templates that came, whether they were known or not."""
    _reboots: Reboots = field(factory=Reboots)
    _session: Session = field(init=False)
    _owed: list[bytes] = field(factory=list)
    """Withdrawals that go out with the next message."""

    def __attrs_post_init__(self) -> None:
        self._session = Session(self.limits)

    def run_of(self, datagram: bytes) -> Hashable:
        """Datagrams of one data set of a known template: the same for those that `translate_all` takes together."""
        if len(datagram) < MESSAGE_AND_SET.size:
            return None
        version, length, _, _, domain, set_id, set_length = MESSAGE_AND_SET.unpack_from(datagram)
        if version != VERSION or length != len(datagram) or set_length + MESSAGE_HEADER.size != length:
            return None
        template = self._session.templates.get(domain << 16 | set_id)
        return (domain, set_id) if template is not None and template.record_bytes else None

    def translate_all(self, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """Datagrams of one run; those that just follow on are looked at no further."""
        _, _, _, _, domain, set_id, _ = MESSAGE_AND_SET.unpack_from(datagrams[0])
        key, templates = domain << 16 | set_id, self._session.templates
        counter = self.sequences.get(domain)
        made: list[bytes] = []
        for datagram in datagrams:
            template = templates.get(key)
            count = (len(datagram) - MESSAGE_AND_SET.size) // template.record_bytes if template is not None else 0
            if counter is not None and count and not self._owed:
                (number,) = _NUMBER.unpack_from(datagram, 8)
                if counter.advance(number, count):
                    made.append(datagram)
                    continue
            try:
                made.append(self.translate(datagram, received_s))
            except MalformedMessage as fault:
                self.on_fault(fault)
        return b"".join(made)

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The message, and behind it what was parked for the templates it brings. Raises MalformedMessage."""
        session = self._session
        datagram = _one_message(datagram)
        head = _Head(*MESSAGE_HEADER.unpack_from(datagram)[2:])
        if head.domain not in self.sequences and len(self.sequences) >= self.limits.max_domains:
            what = f"more than {self.limits.max_domains:,} observation domains of one exporter"
            raise MalformedMessage(what, offset=12, reason="domains")
        survey = self._survey(datagram, head)
        message = datagram if survey.whole else head.message(b"".join(survey.kept))
        learned = session.changes
        walk = session.walk(message)
        if walk.fault is not None:
            raise walk.fault
        made = [*self._owed, message]
        self._owed.clear()
        for number, whole in survey.early:
            self.parking.park((head.domain, number), whole, head)
        self.definitions += len(survey.defined)
        for number in survey.defined:
            self._reboots.defined((head.domain, number))
        counter = self.sequences.setdefault(head.domain, SequenceCounter())
        counter.follow(head.number, None if survey.early else walk.records)
        for key in self._reboots.stale(head.domain, counter):
            made.append(self._withdrawn(key[1], head))
        if session.changes != learned:
            made += self._replayed(head.domain)
        return b"".join(made)

    def _survey(self, datagram: bytes, head: _Head) -> _Survey:
        """Raises MalformedMessage for a template that is malformed, after which its number means nothing."""
        survey = _Survey()
        at, end = MESSAGE_HEADER.size, len(datagram)
        while end - at >= SET_HEADER.size:
            set_id, length = SET_HEADER.unpack_from(datagram, at)
            if length < SET_HEADER.size or length > end - at:
                what = f"set {set_id} says {length:,} bytes, but {end - at:,} are left of its message"
                raise MalformedMessage(what, offset=at, reason="set")
            whole = datagram[at : at + length]
            if set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
                self._survey_templates(whole, set_id, head, survey)
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
        return head.domain << 16 | number in self._session.templates or number in survey.defined

    def _survey_templates(self, whole: bytes, set_id: int, head: _Head, survey: _Survey) -> None:
        parsed: list[Template | Withdrawal] = []
        try:
            parsed += parse_template_set(whole, SET_HEADER.size, len(whole), set_id, self.limits)
        except MalformedMessage as fault:
            (number,) = _U16.unpack_from(whole, fault.offset)
            if head.domain << 16 | number in self._session.templates:
                self._owed.append(self._withdrawn(number, head))
                self._reboots.forgotten((head.domain, number))
            raise
        templates = [item for item in parsed if isinstance(item, Template)]
        if len(templates) < len(parsed):
            survey.whole = False
            whole = make_set(set_id, b"".join(template.raw for template in templates)) if templates else b""
        survey.defined += [template.id for template in templates]
        survey.kept.append(whole)

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
                    if walk.fault is None:
                        made.append(message)
                    else:
                        self.parking.misfit()
                        self.on_fault(walk.fault)
        return made

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
