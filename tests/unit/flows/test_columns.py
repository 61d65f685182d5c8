"""Records as columns: what they hold, whatever their template, however many sets they come in."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import values_of
from sapflow.flows.columns.variable import MIN_LANES, VariableColumn, record_starts
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.structured import render
from sapflow.flows.ipfix.templates import Template, count_variable, variable_records, variable_starts
from sapflow.flows.registry import registry
from sapflow.flows.wire import VARIABLE_LENGTH

V = VARIABLE_LENGTH
MANY = MIN_LANES + 3

FIELDS = st.lists(
    st.sampled_from(
        [
            *[(0, 1, length) for length in range(1, 9)],
            *[(0, 434, length) for length in (1, 3, 4, 7, 8)],
            (0, 8, 4),
            (0, 8, 5),
            (0, 27, 16),
            (0, 56, 6),
            (0, 82, V),
            (0, 82, 7),
            (0, 96, V),
            (0, 1, V),
            (0, 150, 4),
            (0, 276, 1),
            (4242, 7, V),
            (4242, 7, 2),
            (0, 4, 0),
        ]
    ),
    min_size=1,
    max_size=9,
).filter(lambda fields: any(length for _, _, length in fields))

VARYING = FIELDS.filter(lambda fields: any(length == V for _, _, length in fields))
Specs = list[tuple[int, int, int]]


def messages(template: Template, sets: Sequence[bytes]) -> bytes:
    """One message a set."""
    return make_message(make_set(2, template.raw), domain=1) + b"".join(
        make_message(make_set(template.id, body), domain=1) for body in sets
    )


@st.composite
def a_record(draw: st.DrawFn, template: Template) -> bytes:
    record = b""
    for field in template.fields:
        if field.length != V:
            record += draw(st.binary(min_size=field.length, max_size=field.length))
        else:
            value = draw(st.binary(max_size=40) | st.just(bytes(255)) | st.just(b"x" * 300))
            long = draw(st.booleans())
            record += b"\xff" + struct.pack("!H", len(value)) + value if long else make_variable(value)
    return record


@given(st.data(), FIELDS, st.sampled_from([1, 2, MANY]))
def test_columns_hold_what_records_hold_one_by_one(
    data: st.DataObject, fields: list[tuple[int, int, int]], times: int
) -> None:
    template = make_template(300, fields)
    least = template.min_record_bytes
    padding = st.binary(max_size=least - 1)
    bodies = st.lists(st.lists(a_record(template), max_size=4).map(b"".join), min_size=1, max_size=4)
    sets = [body + data.draw(padding) for body in data.draw(bodies)] * times
    (batch,) = decode(messages(template, sets))
    found = list(zip(*values_of(batch).values(), strict=True))
    elements = [registry().lookup(field.pen, field.id) for field in template.fields]
    assert found == [
        tuple(render(element.type, body[start:stop]) for element, (start, stop) in zip(elements, spans, strict=True))
        for body in sets
        for spans in variable_records(body, 0, len(body), template)
    ]
    assert batch.order.tolist() == list(range(len(found)))


@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=6),
    FIELDS.filter(lambda fields: any(f[2] == V for f in fields)),
    st.sampled_from([1, MANY]),
)
def test_records_of_many_sets_begin_where_those_of_each_do_and_the_first_fault_is_told(
    bodies: list[bytes], fields: list[tuple[int, int, int]], times: int
) -> None:
    template = make_template(300, fields)
    bodies = bodies * times
    data = b"".join(bodies)
    stops = np.cumsum([len(body) for body in bodies])
    begins = stops - [len(body) for body in bodies]

    def one_by_one() -> list[int]:
        starts = []
        for start, stop in zip(begins.tolist(), stops.tolist(), strict=True):
            at = start
            for spans in variable_records(data, start, stop, template):
                starts.append(at)
                at = spans[-1][1]
        return starts

    def told(work: object) -> object:
        assert callable(work)
        try:
            return list(work())
        except MalformedMessage as fault:
            return (fault.what, fault.offset, fault.reason)

    expected = told(one_by_one)
    assert told(lambda: record_starts(data, begins, stops, template).tolist()) == expected
    if times == 1 and len(bodies) == 1:
        assert told(lambda: variable_starts(data, 0, len(data), template)) == expected
        if isinstance(expected, list):
            assert count_variable(data, 0, len(data), template) == len(expected)


def test_f21_a_length_past_its_set_is_told_where_it_stands() -> None:
    template = make_template(300, [(0, 4, 1), (0, 82, V)])
    good = [b"\x06\x02ab"] * 60
    data = messages(template, [*good, b"\x06\x00", b"\x06\xff\xff\xff0123456789", *good])
    at = len(data) - 60 * 24 - 14
    with pytest.raises(MalformedMessage, match="300 runs past the end of its set") as caught:
        decode(data)
    assert (caught.value.offset, caught.value.reason) == (at, "record")


def test_the_first_fault_of_several_templates_is_told() -> None:
    one, two = make_template(300, [(0, 82, V)]), make_template(301, [(0, 4, 1), (0, 82, V)])
    head = make_message(make_set(2, one.raw + two.raw), domain=1)
    good, bad = make_message(make_set(300, b"\x01a"), domain=1), make_message(make_set(300, b"\x02a"), domain=1)
    earlier = make_message(make_set(301, b"\x06\x09"), domain=1)
    with pytest.raises(MalformedMessage) as caught:
        decode(head + good + earlier + bad + b"\0\x09")
    assert caught.value.offset == len(head + good) + 20


def test_addresses_are_binary_times_datetime64_and_varying_elements_two_arrays() -> None:
    template = make_template(
        300, [(0, 8, 4), (0, 27, 16), (0, 56, 6), (0, 150, 4), (0, 152, 8), (0, 156, 8), (0, 82, V)]
    )
    record = bytes(range(26)) + struct.pack("!IQQ", 1, 1500, 2_208_988_801 << 32) + b"\x02ab"
    (batch,) = decode(messages(template, [record * 2]))
    kinds = {name: column.dtype.str for name, column in batch.columns.items() if isinstance(column, np.ndarray)}
    assert kinds == {
        "sourceIPv4Address": "|V4",
        "sourceIPv6Address": "|V16",
        "sourceMacAddress": "|V6",
        "flowStartSeconds": "<M8[s]",
        "flowStartMilliseconds": "<M8[ms]",
        "flowStartNanoseconds": "<M8[ns]",
    }
    names = batch.columns["interfaceName"]
    assert isinstance(names, VariableColumn)
    assert (names.offsets.tolist(), names.offsets.dtype, names.data.tobytes()) == ([0, 2, 4], np.int32, b"abab")


def test_a_variable_column_is_a_sequence_of_bytes() -> None:
    column = VariableColumn.of([b"a", b"", b"bcd", b"ef"])
    assert column.tolist() == list(column) == [b"a", b"", b"bcd", b"ef"]
    assert (len(column), column[2], column[-1]) == (4, b"bcd", b"ef")
    part = column[1:3]
    assert (part.tolist(), part.octets().tobytes(), len(column[3:1])) == ([b"", b"bcd"], b"bcd", 0)
    assert np.shares_memory(part.data, column.data)
    assert column[::2].tolist() == [b"a", b"bcd"]
    with pytest.raises(IndexError):
        column[4]


def test_a_time_that_64_bits_do_not_hold_is_none() -> None:
    (batch,) = decode(messages(make_template(300, [(0, 152, 8)]), [b"\xff" * 8 + bytes(8)]))
    assert np.isnat(batch.columns["flowStartMilliseconds"]).tolist() == [True, False]
    assert values_of(batch)["flowStartMilliseconds"] == [None, "1970-01-01T00:00:00.000Z"]


def test_templates_of_the_same_fields_make_one_batch() -> None:
    fields = [(0, 4, 1), (0, 82, V)]
    templates = [make_template(300 + number, fields) for number in range(3)]
    data = make_message(make_set(2, b"".join(template.raw for template in templates)), domain=1)
    for number in (0, 1, 2, 1, 0):
        body = bytes([number]) + make_variable(b"%d" % number)
        data += make_message(make_set(300 + number, body) + make_set(300, body), domain=1)
    (batch,) = decode(data)
    assert batch.template.id == 300
    assert batch.order.tolist() == list(range(10))
    assert batch.template_ids.tolist() == [300, 300, 301, 300, 302, 300, 301, 300, 300, 300]
    assert batch.columns["interfaceName"].tolist() == [b"0", b"0", b"1", b"1", b"2", b"2", b"1", b"1", b"0", b"0"]
    assert batch.part(2, 4).template_ids.tolist() == [301, 300]


@st.composite
def exported(draw: st.DrawFn) -> list[tuple[int, Template, int, list[bytes]]]:
    """Sets of templates in turn, many of the same fields: domain, template, export time, records."""
    shapes = draw(st.lists(FIELDS, min_size=1, max_size=3))
    templates = [
        make_template(256 + n, draw(st.sampled_from(shapes)), scopes=draw(st.integers(0, 1))) for n in range(5)
    ]
    turns = st.tuples(st.integers(0, 2), st.sampled_from(templates), st.integers(0, 9))
    return [
        (domain, template, time, draw(st.lists(a_record(template), max_size=3)))
        for domain, template, time in draw(st.lists(turns, max_size=12))
    ]


@given(exported())
def test_each_record_has_its_domain_template_and_time_in_the_order_that_they_came(
    sets: list[tuple[int, Template, int, list[bytes]]],
) -> None:
    data = b"".join(
        make_message(make_set(template.set_id, template.raw), domain=domain)
        for domain in range(3)
        for template in {template.id: template for _, template, _, _ in sets}.values()
    )
    expected = []
    for domain, template, time, records in sets:
        data += make_message(make_set(template.id, b"".join(records)), domain=domain, export_time=time)
        for record in records:
            (spans,) = variable_records(record, 0, len(record), template)
            values = tuple(
                render(registry().lookup(spec.pen, spec.id).type, record[start:stop])
                for spec, (start, stop) in zip(template.fields, spans, strict=True)
            )
            expected.append((domain, template.id, template.scope_count, time, values))
    found = {}
    for batch in decode(data):
        ids = batch.template_ids.tolist() or [batch.template.id] * batch.records
        rows = zip(*values_of(batch).values(), strict=True)
        for place, number, time, row in zip(batch.order.tolist(), ids, batch.export_times.tolist(), rows, strict=True):
            found[place] = (batch.domain, number, batch.template.scope_count, time, row)
    assert [found[place] for place in sorted(found)] == expected
    assert sorted(found) == list(range(len(expected)))


def test_a_template_sent_again_with_every_message_makes_one_batch() -> None:
    template = make_template(300, [(0, 4, 1)])
    message = make_message(make_set(2, template.raw) + make_set(300, b"\x06"), domain=1)
    (batch,) = decode(message * 100)
    assert batch.records == 100


def test_sets_are_read_by_the_template_before_them_in_their_message() -> None:
    one, two = make_template(300, [(0, 4, 1)]), make_template(300, [(0, 7, 2)])
    withdrawal = struct.pack("!HH", 2, 0)
    message = make_message(
        make_set(300, b"\x00\x50")
        + make_set(2, one.raw)
        + make_set(300, b"\x06\x11")
        + make_set(2, two.raw)
        + make_set(300, b"\x00\x50")
        + make_set(2, withdrawal)
        + make_set(300, b"\x00\x50"),
        domain=1,
    )
    assert [values_of(batch) for batch in decode(message)] == [
        {"protocolIdentifier": [6, 17]},
        {"sourceTransportPort": [80]},
    ]


def test_records_of_thousands_of_templates_are_told_apart() -> None:
    session, data = Session(), b""
    templates = [make_template(256 + number, [(0, 4, 1), (0, 7, 2)]) for number in range(4000)]
    for template in templates:
        data += make_message(make_set(2, template.raw), domain=1)
    for template in templates:
        data += make_message(make_set(template.id, b"\x06" + struct.pack("!H", template.id)), domain=1)
    batches: list[FlowBatch] = decode(data, session)
    (batch,) = batches
    assert batch.columns["sourceTransportPort"].tolist() == batch.template_ids.tolist() == list(range(256, 4256))


def test_a_part_of_a_batch_is_over_the_same_memory() -> None:
    template = make_template(300, [(0, 4, 1), (0, 82, V)])
    encoder = Encoder(1)
    data = encoder.templates([template], export_time=1)
    (batch,) = decode(data + encoder.records(template, [b"\x06\x01a", b"\x11\x01b", b"\x01\x01c"], export_time=1))
    part = batch.part(1, 3)
    assert (part.records, values_of(part)) == (2, {"protocolIdentifier": [17, 1], "interfaceName": ["b", "c"]})
    numbers = part.columns["protocolIdentifier"]
    assert isinstance(numbers, np.ndarray)
    assert np.shares_memory(numbers, batch.columns["protocolIdentifier"])
