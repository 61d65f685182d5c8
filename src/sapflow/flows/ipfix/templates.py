"""Templates: their records parsed with every length checked (RFC 7011, 3.4), and the tables that hold them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from attrs import define, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.shapes import Field, Shape, shape_end, shape_of
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import FIRST_DATA_SET, OPTIONS_TEMPLATE_SET, TEMPLATE_SET, VARIABLE_LENGTH

_PAIR = struct.Struct("!HH")
_OPTIONS_HEAD = struct.Struct("!HHH")
"""id, count of fields, how many of them are scopes."""
MAX_RECORD_BYTES = 65_515


@define(eq=False)
class Template:
    """A template: an id for a shape. `raw` is the template record as it came; two are the same when that is.

    Nobody changes it. It is not frozen, for a hostile message makes thousands.
    """

    id: int
    shape: Shape

    @property
    def raw(self) -> bytes:
        """The template record."""
        return self.id.to_bytes(2, "big") + self.shape.raw

    @property
    def raw_bytes(self) -> int:
        """How long the template record is."""
        return 2 + len(self.shape.raw)

    @property
    def scope_count(self) -> int:
        """How many of the fields, from the first, are scopes."""
        return self.shape.scope_count

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields, in the order that they have in the record."""
        return self.shape.fields

    @property
    def record_bytes(self) -> int:
        """Length of every record, or 0 when records vary."""
        return self.shape.record_bytes

    @property
    def min_record_bytes(self) -> int:
        """Length of the shortest possible record."""
        return self.shape.min_record_bytes

    @property
    def set_id(self) -> int:
        """The id of the set that the template record stands in."""
        return self.shape.set_id

    def same_as(self, other: Template) -> bool:
        """Whether the two were defined by the same template record."""
        return self.id == other.id and (self.shape is other.shape or self.shape.key == other.shape.key)


@frozen
class Withdrawal:
    """A template is withdrawn: `id` 2 or 3 withdraws all templates or all options templates (RFC 7011, 8.1)."""

    id: int


@frozen
class RefusedTemplate:
    """A template record that cannot be used: its id, whatever it meant before, means nothing from here on."""

    id: int
    raw: bytes
    fault: MalformedMessage


def parse_template_set(
    data: bytes, start: int, end: int, set_id: int, limits: FlowLimits
) -> Iterator[Template | Withdrawal]:
    """The template records of a set's body, `data[start:end]`.

    Trailing bytes too few for a record are padding. Raises MalformedMessage, with the offset in `data`.
    """
    for item in read_template_set(data, start, end, set_id, limits):
        if isinstance(item, RefusedTemplate):
            raise item.fault
        yield item


def read_template_set(
    data: bytes, start: int, end: int, set_id: int, limits: FlowLimits
) -> Iterator[Template | Withdrawal | RefusedTemplate]:
    """As `parse_template_set`, but a record that cannot be used is told in its place, and those behind it follow."""
    at, padding = start, -1
    while end - at >= _PAIR.size:
        number, count = _PAIR.unpack_from(data, at)
        if count == 0 and (number >= FIRST_DATA_SET or number == set_id):
            yield Withdrawal(number)
            at += _PAIR.size
            continue
        if number == 0:
            # Looked for once: a set may be zeros but for its last byte.
            padding = start + len(data[start:end].rstrip(b"\0")) if padding < 0 else padding
            if at >= padding:
                return
        stop = shape_end(data, at + 2, end, set_id)
        item: Template | RefusedTemplate
        if set_id == TEMPLATE_SET and stop > 0 and number >= FIRST_DATA_SET and count <= limits.max_fields_per_template:
            shape = shape_of(data[at + 2 : stop], set_id)
            if 1 <= shape.min_record_bytes <= MAX_RECORD_BYTES:
                yield Template(number, shape)
                at = stop
                continue
        try:
            item = _parse_record(data, at, stop, end, set_id, limits)
        except MalformedMessage as fault:
            item = RefusedTemplate(number, data[at : end if stop < 0 else stop], fault)
        yield item
        at = end if stop < 0 else stop


def _parse_record(data: bytes, at: int, stop: int, end: int, set_id: int, limits: FlowLimits) -> Template:
    """The template record `data[at:stop]` of a set that ends at `end`."""
    number, count = _PAIR.unpack_from(data, at)
    if number < FIRST_DATA_SET:
        raise MalformedMessage(f"template id {number}; ids begin at 256", offset=at, reason="template")
    if count > limits.max_fields_per_template:
        what = f"template {number} has {count:,} fields (limit {limits.max_fields_per_template:,})"
        raise MalformedMessage(what, offset=at, reason="template_fields")
    if set_id == OPTIONS_TEMPLATE_SET:
        if end - at < _OPTIONS_HEAD.size:
            raise MalformedMessage(f"options template {number} is cut off", offset=at, reason="truncated")
        _, _, scopes = _OPTIONS_HEAD.unpack_from(data, at)
        if not 1 <= scopes <= count:
            what = f"options template {number} has {scopes} scope fields of {count}"
            raise MalformedMessage(what, offset=at, reason="template")
    if stop < 0:
        raise MalformedMessage(f"template {number} is cut off", offset=at, reason="truncated")
    shape = shape_of(data[at + 2 : stop], set_id)
    least = shape.min_record_bytes
    if not 1 <= least <= MAX_RECORD_BYTES:
        what = f"records of template {number} would be at least {least:,} bytes (1 to {MAX_RECORD_BYTES:,} fit)"
        raise MalformedMessage(what, offset=at, reason="template")
    return Template(number, shape)


def count_variable(data: bytes, start: int, end: int, template: Template) -> int:
    """How many records of varying length a set's body holds. Raises as `variable_places` does."""
    return len(variable_places(data, start, end, template))


def variable_starts(data: bytes, start: int, end: int, template: Template) -> list[int]:
    """Where each record of varying length begins in a set's body. Raises as `variable_places` does."""
    first = template.shape.gaps[0]
    return [place - first for place in variable_places(data, start, end, template)]


def variable_places(data: bytes, start: int, end: int, template: Template) -> list[int]:
    """Where the first length octet of each record of varying length is in a set's body, `data[start:end]`.

    Trailing bytes fewer than the shortest record are padding (RFC 7011, 3.3.1). Raises MalformedMessage, with the
    offset, when a variable-length element runs past the set.
    """
    first, strides = template.shape.gaps[0], template.shape.strides
    last = end + first - template.min_record_bytes
    at = start + first
    places: list[int] = []
    put = places.append
    try:
        while at <= last:
            put(at)
            for stride in strides:
                if (length := data[at]) == 255:
                    length = (data[at + 1] << 8 | data[at + 2]) + 2
                at += length + stride
    except IndexError:
        at = end + first + 1
    # Only the last record can run past the end, and lengths read past it do not bring it back.
    if at > end + first:
        raise _past(template, places[-1] - first)
    return places


def record_anchors(
    data: bytes, bodies: Sequence[int], stops: Sequence[int], template: Template, anchors: list[int], lengths: list[int]
) -> list[int]:
    """Where each run of fixed fields begins in records of varying length, and the length of what varies before it.

    The sets' bodies are `data[bodies[i]:stops[i]]`. For each record one of `anchors` and `lengths` is added for each
    run: the first has no element before it (length 0), each other begins where an element of so many octets ends.
    Gives how many records each set has. Raises MalformedMessage as `variable_places` does.
    """
    first, *gaps = template.shape.gaps
    least = template.min_record_bytes
    put, put_length = anchors.append, lengths.append
    counts = []
    for body, stop in zip(bodies, stops, strict=True):
        at, last, count = body, stop - least, 0
        try:
            while at <= last:
                count += 1
                put(at)
                put_length(0)
                at += first
                for gap in gaps:
                    length = data[at]
                    at += 1
                    if length == 255:
                        length = data[at] << 8 | data[at + 1]
                        at += 2
                    at += length
                    put(at)
                    put_length(length)
                    at += gap
        except IndexError:
            at = stop + 1
        if at > stop:
            variable_places(data, body, stop, template)
        counts.append(count)
    return counts


def variable_records(data: bytes, start: int, end: int, template: Template) -> Iterator[list[tuple[int, int]]]:
    """Each record's fields as (start, end) offsets."""
    lengths = [field.length for field in template.fields]
    least = template.min_record_bytes
    at = start
    while end - at >= least:
        spans = []
        begin = at
        for length in lengths:
            if length == VARIABLE_LENGTH:
                if at >= end:
                    raise _past(template, begin)
                length = data[at]
                at += 1
                if length == 255:
                    if end - at < 2:
                        raise _past(template, begin)
                    length = data[at] << 8 | data[at + 1]
                    at += 2
            spans.append((at, at + length))
            at += length
            if at > end:
                raise _past(template, begin)
        yield spans


def _past(template: Template, offset: int) -> MalformedMessage:
    return MalformedMessage(
        f"a record of template {template.id} runs past the end of its set", offset=offset, reason="record"
    )
