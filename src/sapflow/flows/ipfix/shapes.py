"""What templates have in common that differ in their id alone: their fields, and how long records of them are.

Exporters send the same fields under many ids, and again and again. So a shape is parsed once and kept, by its octets.
"""

from __future__ import annotations

import struct
from typing import Generic, NamedTuple, TypeVar

from attrs import define, field

from sapflow.flows.wire import OPTIONS_TEMPLATE_SET, TEMPLATE_SET, VARIABLE_LENGTH

MAX_FIELDS_KEPT = 1 << 17
"""Of all shapes kept: about 25 MiB, their elements included. When there are more, all are parsed again as they come."""
VALUE_COSTS_FIELDS = 4
"""What is kept costs as much as so many fields beside its own."""

_PAIR = struct.Struct("!HH")
_PEN = struct.Struct("!I")
_TEMPLATE_MARK, _OPTIONS_MARK = TEMPLATE_SET.to_bytes(2, "big"), OPTIONS_TEMPLATE_SET.to_bytes(2, "big")
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
            self.clear()
        self.fields += cost
        self._values[key] = value

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.fields = 0


class Field(NamedTuple):
    """A field specifier: which element, and its length in the record (65,535: variable).

    A tuple, for it is made in half the time of an attrs class, and hostile messages make 16,000 of them.
    """

    pen: int
    id: int
    length: int


@define(eq=False)
class Shape:
    """The fields of a template record, in any number of templates. Nobody changes it.

    What is known of it is worked out when it is made, or once: a hostile message makes thousands of shapes, and
    `cached_property` takes longer than most of what there is to work out.
    """

    raw: bytes
    """The template record without its id."""
    scope_count: int
    fields: tuple[Field, ...]
    record_bytes: int
    """Length of every record, or 0 when records vary."""
    min_record_bytes: int
    set_id: int
    """The id of the set that such a template record stands in."""
    key: bytes
    """What tells it from all others."""
    sparse: bool
    """Whether a record may have more values than bytes: its elements of length 0 are many."""
    gaps: tuple[int, ...]
    """Bytes of fixed length before each element of variable length, and after the last."""
    tells: bool | None = None
    """Whether records tell of the exporter itself, once somebody asked (`telling.tells`)."""
    _elements: frozenset[tuple[int, int]] | None = None
    _strides: tuple[int, ...] | None = None

    @property
    def elements(self) -> frozenset[tuple[int, int]]:
        """The elements' enterprises and ids."""
        found = self._elements
        if found is None:
            found = self._elements = frozenset([(pen, number) for pen, number, _ in self.fields])
        return found

    @property
    def strides(self) -> tuple[int, ...]:
        """From each length octet to the next, the last one's to that of the record behind, for values of no octets."""
        found = self._strides
        if found is None:
            first, *inner, tail = self.gaps
            found = self._strides = tuple([1 + gap for gap in (*inner, tail + first)])
        return found


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
    key = (set_id, raw)
    known = _shapes.get(key)
    if known is None:
        known = _parse(raw, set_id)
        _shapes.keep(key, known, len(known.fields))
    return known


def make_shape(raw: bytes, scopes: int, fields: tuple[Field, ...]) -> Shape:
    """The shape of these fields."""
    gap = least = 0
    gaps: list[int] = []
    for _, _, length in fields:
        if length == VARIABLE_LENGTH:
            gaps.append(gap)
            gap = 0
            least += 1
        else:
            gap += length
            least += length
    set_id, mark = (OPTIONS_TEMPLATE_SET, _OPTIONS_MARK) if scopes else (TEMPLATE_SET, _TEMPLATE_MARK)
    every = (*gaps, gap) if gaps else (gap,)
    fixed = 0 if gaps else least
    return Shape(raw, scopes, fields, fixed, least, set_id, mark + raw, len(fields) > least, every)


def _parse(raw: bytes, set_id: int) -> Shape:
    scopes, at = 0, _COUNT_BYTES
    if set_id == OPTIONS_TEMPLATE_SET:
        scopes, at = int.from_bytes(raw[2:4], "big"), _COUNTS_BYTES
    count = int.from_bytes(raw[:2], "big")
    if len(raw) == at + _PAIR.size * count:
        # Nine in ten are made here: _make takes half the time of a call with arguments.
        make = Field._make
        return make_shape(raw, scopes, tuple([make((0, *pair)) for pair in _PAIR.iter_unpack(raw[at:])]))
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
