"""Data sets found in whole messages and gathered by their fields: where they are, nothing of what they hold.

Sets see the templates that stand before them. What is gathered of a template whose records have lists (RFC 6313) ends
where templates change, for its lists mean others from then on.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.layouts import Layout, layout_of
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template, parse_template_set
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

MAX_SNAPSHOTS = 64
"""How often the templates of lists may change within data decoded at once; lists after that are left undecoded."""


_NONE: Mapping[int, Template] = {}
_CHECKED = FlowLimits(max_fields_per_template=65_535)
"""What the session has taken within its own limits is not held to others."""


@define(eq=False)
class LikeSets:
    """The data sets of one domain whose templates have the same fields, in their order."""

    domain: int
    template: Template
    """The first of theirs: but for its id, what all of them say."""
    layout: Layout
    templates: Mapping[int, Template]
    """What its lists refer to, by id."""
    places: list[int] = field(factory=list)
    """Four numbers for each set: its place among all gathered, where its body begins and ends, when it was exported."""


@define
class Gathering:
    """Goes through messages. `fault` is the first malformed one: what stands before it is gathered."""

    session: Session
    count: int = 0
    """Sets gathered."""
    fault: MalformedMessage | None = None
    _all: list[LikeSets] = field(factory=list)
    _last: dict[tuple[int, bytes], LikeSets] = field(factory=dict)
    """The last of each domain and shape; there are others before where the templates of lists changed."""
    _open: dict[int, LikeSets] = field(factory=dict)
    """By domain << 16 | id, as long as no templates come."""
    _snapshots: dict[int, Mapping[int, Template]] = field(factory=dict)
    _snapshots_left: int = MAX_SNAPSHOTS

    def gather(self, data: bytes) -> list[LikeSets]:
        """The sets whose template is known."""
        templates, found = self.session.templates, self._open
        unpack = MESSAGE_AND_SET.unpack_from
        at, end, turn = 0, len(data), 0
        last = end - MESSAGE_AND_SET.size
        try:
            while at < end:
                if at <= last:
                    version, length, exported, _, domain, set_id, size = unpack(data, at)
                    stop = at + length
                    # Most messages are one data set of a known template.
                    if size + 16 == length and size >= 4 and stop <= end and version == VERSION:
                        key = domain << 16 | set_id
                        sets = found.get(key)
                        if sets is None and (template := templates.get(key)) is not None:
                            sets = found[key] = self._sets(domain, template, templates)
                        if sets is not None:
                            sets.places += (turn, at + 20, stop, exported)
                            turn += 1
                            at = stop
                            continue
                self.count = turn
                at = self._message(data, at)
                turn = self.count
        except MalformedMessage as fault:
            self.fault = fault
        self.count = turn
        return self._all

    def _message(self, data: bytes, start: int) -> int:
        """A message of any sets: where the next begins. Raises MalformedMessage."""
        plain = _data_sets(data, start)
        if plain is not None:
            for set_id, body, end in plain.sets:
                self._put(plain.domain, set_id, body, end, plain.exported, self.session.templates)
            return plain.stop
        return self._defining(data, start)

    def _defining(self, data: bytes, start: int) -> int:
        """A message with templates, or a malformed one: walked first, then its sets."""
        if len(data) - start < MESSAGE_HEADER.size:
            raise MalformedMessage("a message header is cut off", offset=start, reason="truncated")
        length, exported, domain = _header(data, start)[1:]
        stop = start + length
        # Only data sets beside the templates need to know what was known before.
        learned = _Learned(self.session.templates if _holds_data(data, start, stop) else {}, domain)
        walk = self.session.walk(data[start : max(stop, start + 1)])
        if walk.fault is not None:
            fault = walk.fault
            raise MalformedMessage(fault.what, offset=start + fault.offset, reason=fault.reason)
        at = start + MESSAGE_HEADER.size
        while at < stop:
            set_id, size = SET_HEADER.unpack_from(data, at)
            body, end = at + SET_HEADER.size, at + size
            if set_id >= FIRST_DATA_SET:
                self._put(domain, set_id, body, end, exported, learned.templates)
            elif set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
                learned.learn(data, body, end, set_id)
                self._open.clear()
            at = end
        return stop

    def _put(
        self, domain: int, set_id: int, body: int, stop: int, exported: int, templates: Mapping[int, Template]
    ) -> None:
        key = domain << 16 | set_id
        sets = self._open.get(key)
        if sets is None:
            template = templates.get(key)
            if template is None:
                return
            sets = self._open[key] = self._sets(domain, template, templates)
        sets.places += (self.count, body, stop, exported)
        self.count += 1

    def _sets(self, domain: int, template: Template, known: Mapping[int, Template]) -> LikeSets:
        """Those of templates like this one: what was sent again stays the same."""
        key = (domain, template.shape.key)
        sets = self._last.get(key)
        if sets is not None and not sets.layout.holds_lists:
            return sets
        layout = layout_of(template) if sets is None else sets.layout
        lists = self._snapshot(domain, known) if layout.holds_lists else _NONE
        if sets is None or sets.templates is not lists:
            sets = self._last[key] = LikeSets(domain, template, layout, lists)
            self._all.append(sets)
        return sets

    def _snapshot(self, domain: int, known: Mapping[int, Template]) -> Mapping[int, Template]:
        now = {key & 0xFFFF: template for key, template in known.items() if key >> 16 == domain}
        last = self._snapshots.get(domain, {})
        if len(now) == len(last) and all(key in last and last[key].same_as(now[key]) for key in now):
            return last
        if not self._snapshots_left:
            return _NONE
        self._snapshots_left -= 1
        self._snapshots[domain] = now
        return now


@frozen
class _Plain:
    exported: int
    domain: int
    stop: int
    sets: list[tuple[int, int, int]]
    """Of each its id, and where its body begins and ends."""


def _header(data: bytes, start: int) -> tuple[int, int, int, int]:
    """Version, length, export time and domain."""
    version, length, exported, _, domain = MESSAGE_HEADER.unpack_from(data, start)
    return version, length, exported, domain


def _data_sets(data: bytes, start: int) -> _Plain | None:
    """The data sets of a well-formed message that defines no templates; None when it is not one."""
    if len(data) - start < MESSAGE_HEADER.size:
        return None
    version, length, exported, domain = _header(data, start)
    stop = start + length
    if version != VERSION or length < MESSAGE_HEADER.size or stop > len(data):
        return None
    found = []
    at = start + MESSAGE_HEADER.size
    while at < stop:
        if stop - at < SET_HEADER.size:
            return None
        set_id, size = SET_HEADER.unpack_from(data, at)
        if size < SET_HEADER.size or size > stop - at or set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
            return None
        if set_id >= FIRST_DATA_SET:
            found.append((set_id, at + SET_HEADER.size, at + size))
        at += size
    return _Plain(exported, domain, stop, found)


def _holds_data(data: bytes, start: int, stop: int) -> bool:
    """Whether a message that may be malformed has a data set."""
    at = start + MESSAGE_HEADER.size
    last = min(stop, len(data)) - SET_HEADER.size
    while at <= last:
        set_id, size = SET_HEADER.unpack_from(data, at)
        if set_id >= FIRST_DATA_SET:
            return True
        at += max(size, SET_HEADER.size)
    return False


class _Learned:
    """The templates in force at one place of a message that defines some."""

    def __init__(self, known: Mapping[int, Template], domain: int) -> None:
        self.templates = dict(known)
        self._domain = domain
        self._live: dict[int, set[int]] | None = None
        """Those of this domain by the id of their set: kept once all are withdrawn, as some do again and again."""

    def learn(self, data: bytes, body: int, end: int, set_id: int) -> None:
        """Take in what a well-formed set of template records defines and withdraws."""
        for definition in parse_template_set(data, body, end, set_id, _CHECKED):
            key = self._domain << 16 | definition.id
            if isinstance(definition, Template):
                self._set(key, definition)
            elif definition.id >= FIRST_DATA_SET:
                self._set(key, None)
            else:
                self._withdraw_all(definition.id)

    def _set(self, key: int, template: Template | None) -> None:
        before = self.templates.pop(key, None)
        if before is not None and self._live is not None:
            self._live[before.set_id].discard(key)
        if template is not None:
            self.templates[key] = template
            if self._live is not None:
                self._live[template.set_id].add(key)

    def _withdraw_all(self, set_id: int) -> None:
        if self._live is None:
            self._live = {TEMPLATE_SET: set(), OPTIONS_TEMPLATE_SET: set()}
            for key, template in self.templates.items():
                if key >> 16 == self._domain:
                    self._live[template.set_id].add(key)
        for key in self._live[set_id]:
            del self.templates[key]
        self._live[set_id].clear()
