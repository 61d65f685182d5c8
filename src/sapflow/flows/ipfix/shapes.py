"""What templates have in common that differ in their id alone: their fields, and how long records of them are.

Exporters send the same fields under many ids, and again and again. So a shape is parsed once and kept, by its octets.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

from attrs import define, field, frozen

from sapflow.flows.wire import OPTIONS_TEMPLATE_SET, TEMPLATE_SET, VARIABLE_LENGTH

MAX_FIELDS_KEPT = 1 << 17
"""Of all shapes kept: about 25 MiB, their elements included. When there are more, all are parsed again as they come."""
VALUE_COSTS_FIELDS = 4
"""What is kept costs as much as so many fields beside its own."""

_PAIR = struct.Struct("!HH")
_PEN = struct.Struct("!I")
_COUNT_BYTES, _COUNTS_BYTES = 2, 4
"""What stands before the fields of a template and of an options template, without the id."""


K = TypeVar("K")
V = TypeVar("V")


@define
class Kept(Generic[K, V]):
    """What was made of templates' fields, kept for those to come; bounded by how many fields it was made of."""

    max_fields: int = MAX_FIELDS_KEPT
    fields: int = 0
    _values: dict[K, V] = field(factory=dict)

    def get(self, key: K) -> V | None:
        """What is kept."""
        return self._values.get(key)

    def keep(self, key: K, value: V, fields: int) -> None:
        """When there is no room, everything else goes."""
        cost = fields + VALUE_COSTS_FIELDS
        if self.fields + cost > self.max_fields:
            self._values.clear()
            self.fields = 0
        self.fields += cost
        self._values[key] = value


class Field(NamedTuple):
    """A field specifier: which element, and its length in the record (65,535: variable).

    A tuple, for it is made in half the time of an attrs class, and hostile messages make 16,000 of them.
    """

    pen: int
    id: int
    length: int


@frozen(eq=False, slots=False)
class Shape:
    """The fields of a template record, in any number of templates."""

    raw: bytes
    """The template record without its id."""
    scope_count: int
    fields: tuple[Field, ...]
    record_bytes: int
    """Length of every record, or 0 when records vary."""
    min_record_bytes: int

    @property
    def set_id(self) -> int:
        """The id of the set that such a template record stands in."""
        return OPTIONS_TEMPLATE_SET if self.scope_count else TEMPLATE_SET

    @cached_property
    def key(self) -> bytes:
        """What tells it from all others."""
        return self.set_id.to_bytes(2, "big") + self.raw

    @cached_property
    def elements(self) -> frozenset[tuple[int, int]]:
        """The elements' enterprises and ids."""
        return frozenset((spec.pen, spec.id) for spec in self.fields)

    @cached_property
    def sparse(self) -> bool:
        """Whether a record may have more values than bytes: its elements of length 0 are many."""
        return len(self.fields) > self.min_record_bytes

    @cached_property
    def gaps(self) -> tuple[int, ...]:
        """Bytes of fixed length before each element of variable length, and after the last."""
        gaps = [0]
        for spec in self.fields:
            if spec.length == VARIABLE_LENGTH:
                gaps.append(0)
            else:
                gaps[-1] += spec.length
        return tuple(gaps)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """From each length octet to the next, the last one's to that of the record behind, for values of no octets."""
        first, *inner, tail = self.gaps
        return tuple(1 + gap for gap in (*inner, tail + first))


def shape_end(data: bytes, start: int, end: int, set_id: int) -> int:
    """Where the shape at `start` ends, which is behind the id of its template record; -1 when it is cut off."""
    count = data[start] << 8 | data[start + 1]
    at = start + (_COUNTS_BYTES if count and set_id == OPTIONS_TEMPLATE_SET else _COUNT_BYTES)
    plain = at + _PAIR.size * count
    if plain <= end and data[at : plain : _PAIR.size].isascii():
        # No element number has its enterprise bit.
        return plain
    for _ in range(count):
        if at >= end:
            return -1
        at += _PAIR.size + (_PEN.size if data[at] & 0x80 else 0)
    return at if at <= end else -1


def shape_of(raw: bytes, set_id: int) -> Shape:
    """The shape that these octets are, which are whole."""
    known = _shapes.get((set_id, raw))
    if known is None:
        known = _parse(raw, set_id)
        _shapes.keep((set_id, raw), known, len(known.fields))
    return known


def make_shape(raw: bytes, scopes: int, fields: tuple[Field, ...]) -> Shape:
    """The shape of these fields."""
    fixed = True
    least = 0
    for _, _, length in fields:
        if length == VARIABLE_LENGTH:
            fixed = False
            length = 1
        least += length
    return Shape(raw, scopes, fields, least if fixed else 0, least)


def _parse(raw: bytes, set_id: int) -> Shape:
    scopes, at = 0, _COUNT_BYTES
    if set_id == OPTIONS_TEMPLATE_SET:
        scopes, at = int.from_bytes(raw[2:4], "big"), _COUNTS_BYTES
    count = int.from_bytes(raw[:2], "big")
    if len(raw) == at + _PAIR.size * count:
        return make_shape(raw, scopes, tuple([Field(0, *pair) for pair in _PAIR.iter_unpack(raw[at:])]))
    fields = []
    for _ in range(count):
        number, length = _PAIR.unpack_from(raw, at)
        at += _PAIR.size
        pen = 0
        if number & 0x8000:
            (pen,) = _PEN.unpack_from(raw, at)
            at += _PEN.size
        fields.append(Field(pen, number & 0x7FFF, length))
    return make_shape(raw, scopes, tuple(fields))


_shapes: Kept[tuple[int, bytes], Shape] = Kept()
