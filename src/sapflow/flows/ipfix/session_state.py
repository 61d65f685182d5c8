"""A session between two batches, so that another process can go on with it: values, and how they are written down.

What belongs to a batch is no part of it: a session is taken down when its batch was cut. Sequence numbers go with all
that was learned of them, so that what the next process counts adds up with what this one did.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import cattrs
from attrs import frozen

from sapflow.flows.ipfix.sequences import SequenceCounter
from sapflow.flows.ipfix.shapes import shape_of
from sapflow.flows.ipfix.templates import Template

_TEMPLATE = struct.Struct("!IHHI")
"""Domain, set id, template id, length of the shape behind it."""
_converter = cattrs.Converter(forbid_extra_keys=True)


@frozen
class SessionState:
    """All that a session knows between two batches."""

    templates: Mapping[int, Template]
    """By domain << 16 | template id."""
    domains: Mapping[int, SequenceCounter]
    """By observation domain."""
    changes: int
    walked: int
    """Messages, …"""
    unread: int
    """… the last of them of which nothing could be read, and how many there were in a row with it."""
    unread_in_a_row: int

    def fields(self) -> dict[str, Any]:
        """All but the templates, as JSON has it."""
        domains = {str(number): _converter.unstructure(counter) for number, counter in self.domains.items()}
        numbers = [self.changes, self.walked, self.unread, self.unread_in_a_row]
        return {"domains": domains, "numbers": numbers}

    def definitions(self) -> bytes:
        """The templates."""
        pieces = []
        for key, template in self.templates.items():
            shape = template.shape.raw
            pieces += [_TEMPLATE.pack(key >> 16, template.set_id, template.id, len(shape)), shape]
        return b"".join(pieces)

    @classmethod
    def read(cls, fields: Mapping[str, Any], definitions: bytes) -> SessionState:
        """From what `fields` and `definitions` gave. Raises ValueError, KeyError or TypeError when it is not."""
        domains = {int(number): _counter(counter) for number, counter in fields["domains"].items()}
        changes, walked, unread, in_a_row = map(int, fields["numbers"])
        return cls(_templates(definitions), domains, changes, walked, unread, in_a_row)


def _counter(fields: Any) -> SequenceCounter:
    try:
        return _converter.structure(fields, SequenceCounter)
    except cattrs.BaseValidationError as error:
        raise ValueError(f"an observation domain's numbers cannot be read: {error}") from None


def _templates(data: bytes) -> dict[int, Template]:
    found: dict[int, Template] = {}
    at = 0
    try:
        while at < len(data):
            domain, set_id, number, length = _TEMPLATE.unpack_from(data, at)
            at += _TEMPLATE.size
            if length > len(data) - at:
                raise ValueError("a template is cut off")
            found[domain << 16 | number] = Template(number, shape_of(data[at : at + length], set_id))
            at += length
    except struct.error as error:
        raise ValueError(f"a template cannot be read: {error}") from None
    return found
