"""One exporter's transport session: templates of each observation domain, records counted, sequences followed.

Messages are walked once and never changed. A message is taken whole or not at all: its template changes count only
when all of it is well formed. `cut` ends a batch: it gives the messages that define the templates which the batch
used and did not itself define, so that the batch can be read alone. What lists refer to is not looked for: a batch
with templates that hold lists (RFC 6313) gets all templates that their observation domain had when it began.
"""

from __future__ import annotations

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.limits import FlowLimits
from sapflow.flows.sequences import SequenceCounter
from sapflow.flows.structured import holds_lists
from sapflow.flows.templates import Template, Withdrawal, count_variable, parse_template_set
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


@define(slots=True)
class _Domain:
    """Per observation domain: what sequence number comes next (None: unknown), and this batch's beginning."""

    expected: int | None = None
    export_time: int = 0
    first_sequence: int | None = None
    sequences: SequenceCounter = field(factory=SequenceCounter)


class Session:
    """State of one transport session. Template ids mean something only within it and their domain."""

    def __init__(self, limits: FlowLimits | None = None) -> None:
        self.templates: dict[int, Template] = {}
        """By domain << 16 | template id."""
        self.changes = 0
        """How often a template was defined that was not known so, or withdrawn."""
        self._limits = limits or FlowLimits()
        self._domains: dict[int, _Domain] = {}
        self._template_bytes = 0
        self._used: dict[int, Template | None] = {}
        """Templates that data of this batch used (None: defined in the batch itself)."""
        self._before: dict[int, Template | None] = {}
        """What this batch defined anew or withdrew, as it was when the batch began."""
        self._listing: set[int] = set()
        """Templates held whose records have lists."""
        self._whole: set[int] = set()
        """Domains in which this batch defined or withdrew such templates."""

    def walk(self, data: bytes) -> Walk:
        """Go through whole messages, learning their templates. Never raises for what the data say."""
        result = Walk()
        at, end = 0, len(data)
        records = messages = 0
        templates, used, domains = self.templates, self._used, self._domains
        unpack = MESSAGE_AND_SET.unpack_from
        last = end - MESSAGE_AND_SET.size
        while at < end:
            if at <= last:
                version, length, _, sequence, domain_id, set_id, set_length = unpack(data, at)
                # Most messages are one set of fixed-length records that follow on what came before.
                if set_length + 16 == length and set_id >= FIRST_DATA_SET and version == VERSION:
                    key = domain_id << 16 | set_id
                    template = templates.get(key)
                    if template is not None and template.record_bytes and at + length <= end:
                        domain = domains[domain_id]
                        if domain.expected == sequence and domain.first_sequence is not None and set_length >= 4:
                            count = (set_length - 4) // template.record_bytes
                            domain.expected = (sequence + count) & _MASK
                            records += count
                            messages += 1
                            at += length
                            if key not in used:
                                used[key] = template
                            continue
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
        return result

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

    def _needed(self) -> dict[int, Template | None]:
        whole = self._whole.union(key >> 16 for key in self._listing.intersection(self._used))
        if not whole:
            return self._used
        began = {**self.templates, **self._before}
        return {**self._used, **{key: template for key, template in began.items() if key >> 16 in whole}}

    def definitions(self) -> list[bytes]:
        """Messages that define all templates held; as few as hold them."""
        by_domain: dict[int, list[Template]] = {}
        for key, template in self.templates.items():
            by_domain.setdefault(key >> 16, []).append(template)
        return [message for domain, templates in by_domain.items() for message in _definitions(templates, domain, 0, 0)]

    def _message(self, data: bytes, start: int, end: int, result: Walk) -> tuple[int, int]:
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
        sets = _Sets(self, domain_id, result)
        sets.read(data, start + MESSAGE_HEADER.size, stop)
        sets.apply()
        domain = self._domains.setdefault(domain_id, _Domain())
        if domain.first_sequence is None:
            domain.first_sequence, domain.export_time = sequence, export_time
        _follow(domain, sequence, sets.records, sets.undecodable > 0, result)
        return stop, sets.records


def _follow(domain: _Domain, sequence: int, records: int, unknown: bool, result: Walk) -> None:
    """Sequence numbers count data records (RFC 7011, 3.1); after an undecodable set the next is not known."""
    counter = domain.sequences
    if sequence == domain.expected and not unknown and not counter.counts_own:
        domain.expected = (sequence + records) & _MASK
        return
    lost, repeats = counter.lost, counter.repeats
    counter.expect(domain.expected)
    counter.follow(sequence, None if unknown else records)
    domain.expected = counter.expected
    result.lost_records += counter.lost - lost
    result.repeats += counter.repeats - repeats


class _Sets:
    """The sets of one message: read without changing the session, then applied."""

    def __init__(self, session: Session, domain_id: int, result: Walk) -> None:
        self.records = 0
        self.undecodable = 0
        self._session = session
        self._domain_id = domain_id
        self._result = result
        self._ignored = 0
        self._changes: dict[int, Template | None] = {}
        self._used: dict[int, Template | None] = {}

    def read(self, data: bytes, at: int, stop: int) -> None:
        """Check every length and count every record. Raises MalformedMessage."""
        while at < stop:
            if stop - at < SET_HEADER.size:
                raise MalformedMessage(f"{stop - at} bytes after the last set", offset=at, reason="set")
            set_id, length = SET_HEADER.unpack_from(data, at)
            if length < SET_HEADER.size or length > stop - at:
                what = f"set {set_id} says {length:,} bytes, but {stop - at:,} are left of its message"
                raise MalformedMessage(what, offset=at, reason="set")
            body, end = at + SET_HEADER.size, at + length
            if set_id >= FIRST_DATA_SET:
                self._data(data, body, end, set_id)
            elif set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
                self._definitions(data, body, end, set_id)
            else:
                self._ignored += 1
            at = end

    def _data(self, data: bytes, body: int, end: int, set_id: int) -> None:
        key = self._domain_id << 16 | set_id
        template = self._changes[key] if key in self._changes else self._session.templates.get(key)
        if template is None:
            if end > body:
                self.undecodable += 1
            return
        if template.record_bytes:
            self.records += (end - body) // template.record_bytes
        else:
            self.records += count_variable(data, body, end, template)
        if key not in self._session._used and key not in self._used:
            self._used[key] = template

    def _definitions(self, data: bytes, body: int, end: int, set_id: int) -> None:
        for definition in parse_template_set(data, body, end, set_id, self._session._limits):
            if isinstance(definition, Template):
                self._change(self._domain_id << 16 | definition.id, definition)
            elif definition.id >= FIRST_DATA_SET:
                self._change(self._domain_id << 16 | definition.id, None)
            else:
                self._withdraw_all(definition)

    def _withdraw_all(self, withdrawal: Withdrawal) -> None:
        first = self._domain_id << 16
        held = {**self._session.templates, **self._changes}
        for key, template in held.items():
            if first <= key < first + 65_536 and template is not None and template.set_id == withdrawal.id:
                self._change(key, None)

    def _change(self, key: int, template: Template | None) -> None:
        self._changes[key] = template
        if key not in self._session._used:
            # From here on the batch itself says what this id means; data before it in the batch had its own.
            self._used.setdefault(key, None)

    def apply(self) -> None:
        """The message was well formed: its templates count from now on. Raises when they are too many."""
        session, limits = self._session, self._session._limits
        size, count = session._template_bytes, len(session.templates)
        for key, template in self._changes.items():
            old = session.templates.get(key)
            size += (len(template.raw) if template else 0) - (len(old.raw) if old else 0)
            count += (template is not None) - (old is not None)
        if count > limits.max_templates or size > limits.max_template_bytes:
            what = f"{count:,} templates of {size:,} bytes in one session (limits {limits.max_templates:,} and "
            raise MalformedMessage(f"{what}{limits.max_template_bytes:,})", offset=0, reason="templates")
        for key, template in self._changes.items():
            old = session.templates.pop(key, None)
            self._note_lists(key, old, template)
            session.changes += template is None or old is None or old.raw != template.raw
            if template is not None:
                self._result.redefined += old is not None and old.raw != template.raw
                session.templates[key] = template
        session._template_bytes = size
        session._used.update(self._used)
        self._result.undecodable_sets += self.undecodable
        self._result.ignored_sets += self._ignored

    def _note_lists(self, key: int, old: Template | None, new: Template | None) -> None:
        session = self._session
        session._before.setdefault(key, old)
        listed = key in session._listing
        same = old is not None and new is not None and old.raw == new.raw
        lists = listed if same else new is not None and holds_lists(new)
        if lists or listed:
            session._whole.add(self._domain_id)
        if lists:
            session._listing.add(key)
        else:
            session._listing.discard(key)


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
