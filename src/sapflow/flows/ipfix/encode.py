"""Making IPFIX messages: for tests, the load generator, and translation of other protocols."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from attrs import define

from sapflow.flows.ipfix.shapes import Field, make_shape
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.wire import (
    FIRST_DATA_SET,
    MAX_MESSAGE_BYTES,
    MESSAGE_HEADER,
    OPTIONS_TEMPLATE_SET,
    SET_HEADER,
    TEMPLATE_SET,
    VERSION,
)


def make_template(number: int, fields: Iterable[tuple[int, int, int]], *, scopes: int = 0) -> Template:
    """A template of (pen, id, length) fields; the first `scopes` of them are scope fields."""
    assert FIRST_DATA_SET <= number <= 65_535
    chosen = tuple(Field(*field) for field in fields)
    raw = struct.pack("!H", len(chosen))
    if scopes:
        raw += struct.pack("!H", scopes)
    for field in chosen:
        raw += struct.pack("!HH", field.id | (0x8000 if field.pen else 0), field.length)
        if field.pen:
            raw += struct.pack("!I", field.pen)
    return Template(number, make_shape(raw, scopes, chosen))


def make_set(set_id: int, body: bytes) -> bytes:
    """A set around its body."""
    return SET_HEADER.pack(set_id, SET_HEADER.size + len(body)) + body


def make_message(sets: bytes, *, domain: int = 0, sequence: int = 0, export_time: int = 0) -> bytes:
    """A message around its sets."""
    length = MESSAGE_HEADER.size + len(sets)
    assert length <= MAX_MESSAGE_BYTES, length
    return MESSAGE_HEADER.pack(VERSION, length, export_time, sequence, domain) + sets


def make_variable(value: bytes) -> bytes:
    """A variable-length element with its length before it (RFC 7011, 7)."""
    if len(value) < 255:
        return bytes([len(value)]) + value
    return b"\xff" + struct.pack("!H", len(value)) + value


@define
class Encoder:
    """Messages of one observation domain with the right sequence numbers."""

    domain: int = 0
    sequence: int = 0

    def templates(self, templates: Sequence[Template], *, export_time: int) -> bytes:
        """A message that defines templates."""
        sets = b""
        for set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
            body = b"".join(template.raw for template in templates if template.set_id == set_id)
            if body:
                sets += make_set(set_id, body)
        return make_message(sets, domain=self.domain, sequence=self.sequence, export_time=export_time)

    def records(self, template: Template, records: Sequence[bytes], *, export_time: int) -> bytes:
        """Messages of data records already in their wire form, as few as hold them."""
        room = MAX_MESSAGE_BYTES - MESSAGE_HEADER.size - SET_HEADER.size
        messages = []
        pending: list[bytes] = []
        left = room
        for record in records:
            assert len(record) <= room
            if len(record) > left:
                messages.append(self._data(template, pending, export_time))
                pending, left = [], room
            pending.append(record)
            left -= len(record)
        if pending:
            messages.append(self._data(template, pending, export_time))
        return b"".join(messages)

    def _data(self, template: Template, records: list[bytes], export_time: int) -> bytes:
        sets = make_set(template.id, b"".join(records))
        message = make_message(sets, domain=self.domain, sequence=self.sequence, export_time=export_time)
        self.sequence = (self.sequence + len(records)) & 0xFFFFFFFF
        return message
