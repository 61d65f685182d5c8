"""One exporter's transport session: templates of each observation domain, records counted, sequences followed.

Messages are walked once and never changed. A message is taken whole or not at all: its template changes count only
when all of it is well formed. Only a session that `mends` (that of an intake) takes a message without those of its sets
that cannot be read: they are in `Walk.cuts`, to be cut out before it is passed on. What a message says of its own and
its sets' lengths must hold either way. `cut` ends a batch: it gives the messages that define the templates which the
batch used and did not itself define, so that the batch can be read alone. What lists refer to is not looked for: a
batch with templates that hold lists (RFC 6313) gets all templates that their observation domain had when it began.
"""

from __future__ import annotations

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.domains import Domain
from sapflow.flows.ipfix.mending import Cut
from sapflow.flows.ipfix.messages import MessageSets, OnData
from sapflow.flows.ipfix.sequences import Numbers
from sapflow.flows.ipfix.session_state import SessionState
from sapflow.flows.ipfix.telling import tells
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import registry
from sapflow.flows.wire import (
    FIRST_DATA_SET,
    MAX_MESSAGE_BYTES,
    MESSAGE_AND_SET,
    MESSAGE_HEADER,
    OPTIONS_TEMPLATE_SET,
    SET_HEADER,
    TEMPLATE_SET,
    VERSION,
)

_MASK = 0xFFFFFFFF


@define(slots=True)
class Walk:
    """What a walk over whole messages found."""

    messages: int = 0
    records: int = 0
    taken: int = 0
    """Bytes of the messages taken: all before the first malformed one."""
    fault: MalformedMessage | None = None
    """With its offset in the data walked."""
    undecodable_sets: int = 0
    ignored_sets: int = 0
    lost_records: int = 0
    """Less than 0 where what was told as lost was not."""
    repeats: int = 0
    redefined: int = 0
    """Templates defined over others that had not been withdrawn (RFC 7011, 8: they should be)."""
    stray_withdrawals: int = 0
    """Of templates that were not known."""
    may_tell: bool = False
    """A template of records that tell of the exporter itself was defined: a self-contained batch may hold some."""
    cuts: list[Cut] = field(factory=list)
    """Of a session that mends: the sets that cannot be read."""


class Session:
    """State of one transport session. Template ids mean something only within it and their domain."""

    def __init__(self, limits: FlowLimits | None = None, *, mends: bool = False) -> None:
        self.templates: dict[int, Template] = {}
        """By domain << 16 | template id."""
        self.changes = 0
        """How often a template was defined that was not known so, or withdrawn."""
        self._limits = limits or FlowLimits()
        self._mends = mends
        self._walked = 0
        """Messages before this walk."""
        self._unread = -1
        """The last message of which nothing could be read, and how many there were in a row with it."""
        self._unread_in_a_row = 0
        self._domains: dict[int, Domain] = {}
        self._template_bytes = 0
        self._fixed: dict[int, int] = {}
        """Length of the records of templates whose records are all alike, and are sure to be within limits."""
        self._used: dict[int, Template | None] = {}
        """Templates that data of this batch used (None: defined in the batch itself)."""
        self._before: dict[int, Template | None] = {}
        """What this batch defined anew or withdrew, as it was when the batch began."""
        self._listing: set[int] = set()
        """Templates held whose records have lists."""
        self._whole: set[int] = set()
        """Domains in which this batch defined or withdrew such templates."""

    @classmethod
    def resumed(cls, state: SessionState, limits: FlowLimits | None = None, *, mends: bool = False) -> Session:
        """One that goes on where another was."""
        session, lists = cls(limits, mends=mends), registry().list_elements
        for number, counter in state.domains.items():
            session._domains[number] = Domain(counter)
        for key, template in state.templates.items():
            shape = template.shape
            session.templates[key] = template
            session._domains.setdefault(key >> 16, Domain()).keys.add(key)
            session._template_bytes += template.raw_bytes
            if shape.record_bytes and not shape.sparse:
                session._fixed[key] = shape.record_bytes
            if not lists.isdisjoint(shape.elements):
                session._listing.add(key)
        session.changes, session._walked = state.changes, state.walked
        session._unread, session._unread_in_a_row = state.unread, state.unread_in_a_row
        return session

    def state(self) -> SessionState:
        """What another needs to go on with it, right after a `cut`."""
        assert not self._used
        assert all(domain.first_sequence is None for domain in self._domains.values())
        domains = {number: its.caught_up() for number, its in self._domains.items()}
        counts = (self.changes, self._walked, self._unread, self._unread_in_a_row)
        return SessionState(self.templates, domains, *counts)

    def walk(self, data: bytes) -> Walk:
        """Go through whole messages, learning their templates. Never raises for what the data say."""
        result = Walk()
        at, end = 0, len(data)
        records = messages = 0
        fixed, used, domains = self._fixed, self._used, self._domains
        unpack = MESSAGE_AND_SET.unpack_from
        last = end - MESSAGE_AND_SET.size
        while at < end:
            if at <= last:
                version, length, _, sequence, domain_id, set_id, set_length = unpack(data, at)
                # Most messages are one set of fixed-length records that follow on what came before.
                if set_length + 16 == length and set_id >= FIRST_DATA_SET and version == VERSION:
                    key = domain_id << 16 | set_id
                    record_bytes = fixed.get(key)
                    if record_bytes is not None and at + length <= end:
                        domain = domains[domain_id]
                        if domain.expected == sequence and domain.first_sequence is not None and set_length >= 4:
                            count = (set_length - 4) // record_bytes
                            domain.expected = (sequence + count) & _MASK
                            if count != domain.records:
                                domain.records, domain.sizes_differ = count, True
                            records += count
                            messages += 1
                            at += length
                            if key not in used:
                                used[key] = self.templates[key]
                            continue
            result.messages = messages
            try:
                at, count = self._message(data, at, end, result)
            except MalformedMessage as fault:
                result.fault = fault
                break
            messages += 1
            records += count
        result.taken = at
        result.messages = messages
        result.records = records
        self._walked += messages
        return result

    def read(self, data: bytes, start: int, on_data: OnData) -> int:
        """One message, as `walk` does: where the next begins. `on_data` hears of each data set of a known template.

        It is of no batch that `cut` ends: who reads columns makes none, and has a third less to do for each template.
        Raises MalformedMessage with nothing changed, with the offset in `data`; sets before that have been told.
        """
        stop, _ = self._message(data, start, len(data), Walk(), on_data)
        return stop

    def cut(self) -> bytes:
        """End the batch: the messages that must stand before it, b"" when none need to."""
        needed: dict[int, list[Template]] = {}
        for key, template in self._needed().items():
            if template is not None:
                needed.setdefault(key >> 16, []).append(template)
        pieces = []
        for domain_id, templates in needed.items():
            domain = self._domains[domain_id]
            pieces += _definitions(templates, domain_id, domain.export_time, domain.first_sequence or 0)
        for domain in self._domains.values():
            domain.first_sequence = None
        self._used.clear()
        self._before.clear()
        self._whole.clear()
        return b"".join(pieces)

    def take_numbers(self) -> Numbers:
        """What the exporter's sequence numbers say since this was last asked, of all observation domains."""
        total = Numbers()
        for domain in self._domains.values():
            total += domain.caught_up().take()
        return total

    def _needed(self) -> dict[int, Template | None]:
        whole = self._whole.union(key >> 16 for key in self._listing.intersection(self._used))
        if not whole:
            return self._used
        began = {**self.templates, **self._before}
        return {**self._used, **{key: template for key, template in began.items() if key >> 16 in whole}}

    def in_force(self, domain_id: int) -> dict[int, Template]:
        """The templates of a domain, by id."""
        domain = self._domains.get(domain_id)
        return {} if domain is None else {key & 0xFFFF: self.templates[key] for key in domain.keys}

    def definitions(self) -> list[bytes]:
        """Messages that define all templates held; as few as hold them."""
        by_domain: dict[int, list[Template]] = {}
        for key, template in self.templates.items():
            by_domain.setdefault(key >> 16, []).append(template)
        return [message for domain, templates in by_domain.items() for message in _definitions(templates, domain, 0, 0)]

    def _message(
        self, data: bytes, start: int, end: int, result: Walk, on_data: OnData | None = None
    ) -> tuple[int, int]:
        """One message in full: where the next begins, and its records. Raises before anything has changed."""
        if end - start < MESSAGE_HEADER.size:
            raise MalformedMessage("a message header is cut off", offset=start, reason="truncated")
        version, length, export_time, sequence, domain_id = MESSAGE_HEADER.unpack_from(data, start)
        if version != VERSION:
            raise MalformedMessage(f"version {version}, not 10", offset=start, reason="version")
        stop = start + length
        if length < MESSAGE_HEADER.size or stop > end:
            raise MalformedMessage(f"a message of {length:,} bytes in {end - start:,}", offset=start, reason="length")
        known = domain_id in self._domains
        if not known and len(self._domains) >= self._limits.max_domains:
            what = f"more than {self._limits.max_domains:,} observation domains in one session"
            raise MalformedMessage(what, offset=start, reason="domains")
        domain = self._domains.get(domain_id) or Domain()
        keys = domain.keys if known else None
        sets = MessageSets(domain_id, self.templates, keys, self._used, self._limits, mends=self._mends)
        sets.read(data, start, stop, on_data)
        if sets.cuts and not sets.kept:
            self._note_unread(start, sets.cuts[-1].reason, self._walked + result.messages)
        self._admit(sets, start)
        if on_data is None:
            self._note(domain_id, sets, result)
        self._apply(domain, sets)
        self._domains[domain_id] = domain
        result.undecodable_sets += sets.undecodable
        result.ignored_sets += sets.ignored
        result.stray_withdrawals += sets.stray_withdrawals
        result.cuts += sets.cuts
        if domain.first_sequence is None:
            domain.first_sequence, domain.export_time = sequence, export_time
        lost, repeats = domain.follow(sequence, sets.records, unknown=sets.uncounted > 0)
        result.lost_records += lost
        result.repeats += repeats
        return stop, sets.records

    def _note_unread(self, start: int, reason: str, number: int) -> None:
        self._unread_in_a_row = self._unread_in_a_row + 1 if self._unread == number - 1 else 1
        self._unread = number
        most = self._limits.max_malformed_in_a_row
        if most and self._unread_in_a_row >= most:
            what = f"{self._unread_in_a_row} messages in a row of which no set could be read"
            raise MalformedMessage(what, offset=start, reason=reason)

    def _admit(self, sets: MessageSets, start: int) -> None:
        """Count the templates of a well-formed message. Raises, before anything has changed, when they are too many."""
        size, count, limits = self._template_bytes, len(self.templates), self._limits
        for key, template in sets.changes.items():
            if template is not None:
                size += template.raw_bytes
                count += 1
            if (old := self.templates.get(key)) is not None:
                size -= old.raw_bytes
                count -= 1
        if count > limits.max_templates or size > limits.max_template_bytes:
            what = f"{count:,} templates of {size:,} bytes in one session (limits {limits.max_templates:,} and "
            raise MalformedMessage(f"{what}{limits.max_template_bytes:,})", offset=start, reason="templates")
        self._template_bytes = size

    def _note(self, domain_id: int, sets: MessageSets, result: Walk) -> None:
        """What its batch has to know of a message's templates, before they count."""
        lists = registry().list_elements
        for key, template in sets.changes.items():
            old = self.templates.get(key)
            same = old is not None and template is not None and old.same_as(template)
            self._before.setdefault(key, old)
            self._note_lists(key, domain_id, template, lists, same=same)
            if template is not None:
                # Defined over another that was not withdrawn.
                result.redefined += old is not None and not same
                result.may_tell = result.may_tell or tells(template)
        self._used.update(sets.used)

    def _apply(self, domain: Domain, sets: MessageSets) -> None:
        """The message's templates count from now on."""
        templates, keys, fixed = self.templates, domain.keys, self._fixed
        for key, template in sets.changes.items():
            old = templates.pop(key, None)
            if template is None or old is None or not old.same_as(template):
                self.changes += 1
            if old is not None:
                keys.discard(key)
                fixed.pop(key, None)
            if template is not None:
                shape = template.shape
                templates[key] = template
                keys.add(key)
                if shape.record_bytes and not shape.sparse:
                    fixed[key] = shape.record_bytes

    def _note_lists(
        self, key: int, domain_id: int, new: Template | None, elements: frozenset[tuple[int, int]], *, same: bool
    ) -> None:
        listed = key in self._listing
        lists = listed if same else new is not None and not elements.isdisjoint(new.shape.elements)
        if lists or listed:
            self._whole.add(domain_id)
        if lists:
            self._listing.add(key)
        elif listed:
            self._listing.discard(key)


def _definitions(templates: list[Template], domain_id: int, export_time: int, sequence: int) -> list[bytes]:
    """Messages that define these templates; as few as hold them."""
    messages = []
    for set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
        pending: list[bytes] = []
        room = MAX_MESSAGE_BYTES - MESSAGE_HEADER.size - SET_HEADER.size
        left = room
        for raw in [template.raw for template in templates if template.set_id == set_id]:
            if len(raw) > left:
                messages.append(_message_of(set_id, pending, domain_id, export_time, sequence))
                pending, left = [], room
            pending.append(raw)
            left -= len(raw)
        if pending:
            messages.append(_message_of(set_id, pending, domain_id, export_time, sequence))
    return messages


def _message_of(set_id: int, raws: list[bytes], domain_id: int, export_time: int, sequence: int) -> bytes:
    body = b"".join(raws)
    head = MESSAGE_HEADER.pack(VERSION, 20 + len(body), export_time, sequence, domain_id)
    return head + SET_HEADER.pack(set_id, SET_HEADER.size + len(body)) + body
