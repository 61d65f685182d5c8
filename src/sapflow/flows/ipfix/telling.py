"""Which templates tell of the exporter itself: its sampling, what its interfaces, VRFs, applications are called.

Such records are options data (RFC 7011, 3.4.2.2), whose templates name a scope. Some exporters leave the scope out:
their tables are known by what they hold. What such records are *of* is their scope and their numbers (`IDENTITIES`):
many say `System` for a scope, and tell sampler 1 from sampler 2 by a field behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.structured import holds_lists
from sapflow.flows.ipfix.templates import Template, Withdrawal, parse_template_set
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

_FLOW = {(0, number) for number in (1, 2, 8, 12, 27, 28, 85, 86, 231)}
"""Addresses and counters: records that have one of these are flows, whatever else they say."""
_RATES = {(0, number) for number in (34, 50, 305, 310, 311, 396)}
_NUMBERED = {(0, number) for number in (8, 10, 14, 27, 48, 95, 234, 235, 302)}
_NAMES = {(0, number) for number in (82, 83, 84, 94, 96, 236, 335, 371)}
_TABLE = _NUMBERED | _NAMES
IDENTITIES = frozenset(
    (0, number)
    for number in (
        *(8, 12, 27, 28),  # users, by address
        *(10, 14, 252, 253),  # interfaces
        *(48, 301, 302),  # samplers and selectors
        *(234, 235),  # VRFs
        95,  # applications
        *(58, 243),  # VLANs
        *(145, 137, 138, 141, 142, 143, 144, 149),  # templates, and parts of the exporter
        *(303, 346),  # elements that it describes
    )
)
"""Elements that say what a record is of, wherever in it they stand."""


def says_rates(template: Template) -> bool:
    """Whether its records say how flows are sampled, and are none themselves (some have no scope)."""
    numbers = template.shape.elements
    return not numbers.isdisjoint(_RATES) and (template.scope_count > 0 or numbers.isdisjoint(_FLOW))


def tells(template: Template) -> bool:
    """Whether its records tell of the exporter itself."""
    shape = template.shape
    if shape.tells is None:
        shape.tells = shape.scope_count > 0 or says_rates(template) or _is_table(shape.elements)
    return shape.tells


def _is_table(numbers: frozenset[tuple[int, int]]) -> bool:
    """Whether they are nothing but numbers and their names."""
    return numbers <= _TABLE and not (numbers.isdisjoint(_NUMBERED) or numbers.isdisjoint(_NAMES))


Told = tuple[int, int, Template, int, int]
"""Observation domain, export time, template, where the body of its data set begins and ends."""


def sets_that_tell(data: bytes) -> Iterator[Told]:
    """The data sets of self-contained messages that tell of the exporter, in order.

    All else is stepped over unread: it was walked before. Raises MalformedMessage where that cannot have been. Records
    with lists (RFC 6313) are left out, for what their lists refer to is in other templates.
    """
    known: dict[int, Template] = {}
    at, end = 0, len(data)
    last = end - MESSAGE_AND_SET.size
    unpack = MESSAGE_AND_SET.unpack_from
    while at <= last:
        version, length, time, _, domain, set_id, set_length = unpack(data, at)
        if version != VERSION or length < MESSAGE_HEADER.size or at + length > end:
            raise MalformedMessage("no message where one should begin", offset=at, reason="version")
        # Most messages are one set of flows.
        if set_length + MESSAGE_HEADER.size != length or set_id < FIRST_DATA_SET or domain << 16 | set_id in known:
            yield from _of_message(data, at, at + length, domain, time, known)
        at += length


def _of_message(
    data: bytes, start: int, stop: int, domain: int, time: int, known: dict[int, Template]
) -> Iterator[Told]:
    at = start + MESSAGE_HEADER.size
    while at + SET_HEADER.size <= stop:
        set_id, length = SET_HEADER.unpack_from(data, at)
        body, end = at + SET_HEADER.size, at + length
        if length < SET_HEADER.size or end > stop:
            raise MalformedMessage(f"a set of {length:,} bytes", offset=at, reason="set")
        if set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
            for item in parse_template_set(data, body, end, set_id, FlowLimits()):
                _define(item, domain, known)
        elif (template := known.get(domain << 16 | set_id)) is not None:
            yield domain, time, template, body, end
        at = end


def _define(item: Template | Withdrawal, domain: int, known: dict[int, Template]) -> None:
    if isinstance(item, Template):
        known.pop(domain << 16 | item.id, None)
        if tells(item) and not holds_lists(item):
            known[domain << 16 | item.id] = item
    elif item.id >= FIRST_DATA_SET:
        known.pop(domain << 16 | item.id, None)
    else:
        for key in [key for key, one in known.items() if key >> 16 == domain and one.set_id == item.id]:
            del known[key]
