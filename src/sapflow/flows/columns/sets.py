"""Data sets found in whole messages and gathered by their fields: where they are, nothing of what they hold.

Sets see the templates that stand before them. What is gathered of a template whose records have lists (RFC 6313) ends
where templates change, for its lists mean others from then on.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.layouts import Layout, layout_of
from sapflow.flows.ipfix.messages import MessageSets
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template
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
MAX_LOOKS = 1 << 16
"""How many templates are looked at to tell whether those of lists have changed; lists after that are left undecoded."""

Version = tuple[int, int, int]
"""What tells the templates in force at one place from those at another: changes before the message, the message if it
has changed some, how often."""

_NONE: Mapping[int, Template] = {}


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
    _like: dict[tuple[int, bytes, int], LikeSets] = field(factory=dict)
    """By domain, shape, and what their lists refer to."""
    _open: dict[int, LikeSets] = field(factory=dict)
    """By domain << 16 | id, as long as no templates come."""
    _snapshots: dict[int, tuple[Version, Mapping[int, Template]]] = field(factory=dict)
    """The last of each domain."""
    _snapshots_left: int = MAX_SNAPSHOTS
    _looks_left: int = MAX_LOOKS

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
                            sets = found[key] = self._sets(domain, template, None)
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
        return list(self._like.values())

    def _message(self, data: bytes, start: int) -> int:
        """A message of any sets: where the next begins. Raises MalformedMessage."""
        plain = _data_sets(data, start)
        if plain is None:
            # With templates, or malformed.
            self._open.clear()
            stop = self.session.read(data, start, self._put)
            self._open.clear()
            return stop
        templates, found = self.session.templates, self._open
        for set_id, body, end in plain.sets:
            key = plain.domain << 16 | set_id
            sets = found.get(key)
            if sets is None and (template := templates.get(key)) is not None:
                sets = found[key] = self._sets(plain.domain, template, None)
            if sets is not None:
                sets.places += (self.count, body, end, plain.exported)
                self.count += 1
        return plain.stop

    def _put(self, message: MessageSets, template: Template, body: int, stop: int) -> None:
        self._add(message.domain_id, template, body, stop, message.export_time, message)

    def _add(
        self, domain: int, template: Template, body: int, stop: int, exported: int, message: MessageSets | None
    ) -> None:
        sets = self._sets(domain, template, message)
        sets.places += (self.count, body, stop, exported)
        self.count += 1

    def _sets(self, domain: int, template: Template, message: MessageSets | None) -> LikeSets:
        """Those of templates like this one, as it stands in a message that changes templates, or behind all changes."""
        shape = template.shape.key
        sets = self._like.get((domain, shape, 0))
        if sets is None:
            layout = layout_of(template)
            lists = self._snapshot(domain, message) if layout.holds_lists else _NONE
            key = (domain, shape, id(lists) if layout.holds_lists else 0)
            sets = self._like.get(key)
            if sets is None:
                sets = self._like[key] = LikeSets(domain, template, layout, lists)
        return sets

    def _snapshot(self, domain: int, message: MessageSets | None) -> Mapping[int, Template]:
        """The templates of a domain now, by id; when they have changed too often, none."""
        version = (self.session.changes, -1, 0) if message is None else (self.session.changes, *message.place)
        known, last = self._snapshots.get(domain, (None, _NONE))
        if known == version:
            return last
        if self._snapshots_left <= 0 or self._looks_left <= 0:
            return _NONE
        now: Mapping[int, Template] = self.session.in_force(domain) if message is None else message.in_force()
        self._looks_left -= len(now)
        if len(now) == len(last) and all(_is_same(last.get(key), template) for key, template in now.items()):
            now = last
        else:
            self._snapshots_left -= 1
        self._snapshots[domain] = version, now
        return now


def _is_same(before: Template | None, template: Template) -> bool:
    return before is template or (before is not None and before.same_as(template))


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
