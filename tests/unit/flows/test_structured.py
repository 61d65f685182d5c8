"""Lists within records (RFC 6313): what they hold, how deep they go, and which templates they take with them."""

import io
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context, values_of
from sapflow.flows.columns.sets import MAX_SNAPSHOTS
from sapflow.flows.formats import open_writer
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.structured import MAX_DEPTH, ListDecoder, Value, render
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.registry import LIST_TYPES, registry
from sapflow.flows.wire import VARIABLE_LENGTH

ALL_OF = 3
BASIC_LIST, SUB_LIST, MULTI_LIST = 291, 292, 293
INGRESS = 10
INTERFACE_NAME = 82

PAIR = make_template(300, [(0, 4, 1), (0, 11, 2)])
NAMED = make_template(301, [(0, 10, 4), (0, INTERFACE_NAME, VARIABLE_LENGTH)])
SELF = make_template(302, [(0, SUB_LIST, VARIABLE_LENGTH)])
OUTER = make_template(256, [(0, 4, 1), (0, SUB_LIST, VARIABLE_LENGTH)])
KNOWN = {template.id: template for template in (PAIR, NAMED, SELF, OUTER)}


def a_basic_list(element: int, length: int, content: bytes, *, pen: int = 0) -> bytes:
    if pen:
        return struct.pack("!BHHI", ALL_OF, element | 0x8000, length, pen) + content
    return struct.pack("!BHH", ALL_OF, element, length) + content


def a_sub_list(template: int, content: bytes) -> bytes:
    return struct.pack("!BH", ALL_OF, template) + content


def an_entry(template: int, content: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("!HH", template, 4 + len(content) if length is None else length) + content


def a_multi_list(*entries: bytes) -> bytes:
    return bytes([ALL_OF]) + b"".join(entries)


def a_pair(protocol: int, port: int) -> bytes:
    return struct.pack("!BH", protocol, port)


def a_name(interface: int, name: bytes) -> bytes:
    return struct.pack("!I", interface) + make_variable(name)


def nested(levels: int) -> bytes:
    """As many basicLists one within another, the innermost of two interfaces."""
    data = a_basic_list(INGRESS, 4, struct.pack("!II", 1, 2))
    for _ in range(levels - 1):
        data = a_basic_list(BASIC_LIST, len(data) if len(data) < VARIABLE_LENGTH else 0, data)
    return data


def decoded(kind: str, data: bytes, templates: dict[int, Template] = KNOWN) -> list[Value]:
    return ListDecoder(templates.get, registry()).decode(kind, data)


def refused(kind: str, data: bytes, templates: dict[int, Template] = KNOWN) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        decoded(kind, data, templates)
    return caught.value


def as_json(data: bytes) -> list[dict[str, object]]:
    out = io.BytesIO()
    open_writer("jsonl", out).write(data, Context())
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_basic_list_is_an_array_of_objects() -> None:
    data = a_basic_list(INGRESS, 4, struct.pack("!III", 7, 8, 0))
    assert decoded("basicList", data) == [{"ingressInterface": 7}, {"ingressInterface": 8}, {"ingressInterface": 0}]


def test_a_basic_list_of_an_enterprise_element_has_its_number_behind_its_length() -> None:
    assert decoded("basicList", a_basic_list(7, 2, b"\xbe\xef", pen=4242)) == [{"e4242id7": "beef"}]


def test_f22_values_of_variable_length_have_it_in_one_byte_or_three() -> None:
    values = make_variable(b"a") + make_variable(b"") + make_variable(b"b" * 300) + b"\xff\x00\x01c"
    rows = decoded("basicList", a_basic_list(INTERFACE_NAME, VARIABLE_LENGTH, values))
    assert rows == [{"interfaceName": name} for name in ("a", "", "b" * 300, "c")]


def test_a_sub_template_list_has_an_object_for_each_record() -> None:
    rows = decoded("subTemplateList", a_sub_list(301, a_name(1, b"eth0") + a_name(2, b"eth1")))
    assert rows == [
        {"ingressInterface": 1, "interfaceName": "eth0"},
        {"ingressInterface": 2, "interfaceName": "eth1"},
    ]


def test_a_multi_list_has_the_records_of_all_entries_in_order() -> None:
    entries = an_entry(300, a_pair(6, 443) + a_pair(17, 53)), an_entry(301, a_name(9, b"lo")), an_entry(300, b"")
    assert decoded("subTemplateMultiList", a_multi_list(*entries)) == [
        {"protocolIdentifier": 6, "destinationTransportPort": 443},
        {"protocolIdentifier": 17, "destinationTransportPort": 53},
        {"ingressInterface": 9, "interfaceName": "lo"},
    ]


def test_an_element_that_is_repeated_in_a_record_keeps_each_value() -> None:
    twice = make_template(310, [(0, 4, 1), (0, 4, 1)])
    rows = decoded("subTemplateList", a_sub_list(310, b"\x06\x11"), {310: twice})
    assert rows == [{"protocolIdentifier": 6, "protocolIdentifier_2": 17}]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("basicList", a_basic_list(INGRESS, 4, b"")),
        ("basicList", a_basic_list(INGRESS, 0, b"")),
        ("subTemplateList", a_sub_list(300, b"")),
        ("subTemplateList", a_sub_list(999, b"")),
        ("subTemplateMultiList", a_multi_list()),
        ("subTemplateMultiList", a_multi_list(an_entry(999, b""), an_entry(300, b""))),
    ],
)
def test_a_list_may_be_empty_even_of_an_unknown_template(kind: str, data: bytes) -> None:
    assert decoded(kind, data) == []


def test_lists_within_lists_are_arrays_within_objects() -> None:
    inner = a_sub_list(300, a_pair(6, 80))
    outer = a_basic_list(SUB_LIST, VARIABLE_LENGTH, make_variable(inner) + make_variable(a_sub_list(300, b"")))
    assert decoded("basicList", outer) == [
        {"subTemplateList": [{"protocolIdentifier": 6, "destinationTransportPort": 80}]},
        {"subTemplateList": []},
    ]


def test_f26_eight_levels_are_decoded_and_nine_are_a_depth_error() -> None:
    value: object = decoded("basicList", nested(MAX_DEPTH))
    for _ in range(MAX_DEPTH - 1):
        assert isinstance(value, list)
        value = value[0]["basicList"]
    assert value == [{"ingressInterface": 1}, {"ingressInterface": 2}]
    assert refused("basicList", nested(MAX_DEPTH + 1)).reason == "depth"


def test_f26_13_000_levels_are_a_depth_error_and_no_recursion_error() -> None:
    data = nested(13_000)
    assert len(data) > 64_000
    fault = refused("basicList", data)
    assert (fault.reason, fault.offset) == ("depth", MAX_DEPTH * 5)


def test_f26_a_template_that_lists_itself_ends_at_the_depth_or_with_its_bytes() -> None:
    data = b""
    for _ in range(MAX_DEPTH):
        data = a_sub_list(SELF.id, make_variable(data) if data else b"")
    value: object = decoded("subTemplateList", data)
    for _ in range(MAX_DEPTH - 1):
        assert isinstance(value, list)
        value = value[0]["subTemplateList"]
    assert value == []
    deeper = a_sub_list(SELF.id, make_variable(data))
    assert refused("subTemplateList", deeper).reason == "depth"


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_f27_an_entry_shorter_than_its_head_is_refused_with_its_offset(length: int) -> None:
    data = a_multi_list(an_entry(300, a_pair(6, 80)), an_entry(300, b"", length=length))
    fault = refused("subTemplateMultiList", data)
    assert (fault.reason, fault.offset) == ("list", 8)


@pytest.mark.parametrize(
    ("kind", "data"),
    [("subTemplateList", a_sub_list(999, b"x")), ("subTemplateMultiList", a_multi_list(an_entry(999, b"x")))],
)
def test_f27_a_list_of_an_unknown_template_says_so(kind: str, data: bytes) -> None:
    fault = refused(kind, data)
    assert fault.reason == "list_template"
    assert "999" in fault.what


@pytest.mark.parametrize(
    ("kind", "data", "offset"),
    [
        ("basicList", b"", 0),
        ("basicList", b"\x03\x00\x0a\x00", 0),
        ("basicList", struct.pack("!BHH", 3, 0x8007, 4) + b"\x00\x00", 5),
        ("basicList", a_basic_list(INGRESS, 4, bytes(6)), 9),
        ("basicList", a_basic_list(INGRESS, 0, b"\x00"), 5),
        ("basicList", a_basic_list(INTERFACE_NAME, VARIABLE_LENGTH, b"\x05abc"), 5),
        ("basicList", a_basic_list(INTERFACE_NAME, VARIABLE_LENGTH, b"\xff"), 5),
        ("basicList", a_basic_list(INTERFACE_NAME, VARIABLE_LENGTH, b"\x01a\xff\xff"), 7),
        ("subTemplateList", b"\x03\x01", 0),
        ("subTemplateList", a_sub_list(300, a_pair(6, 80) + b"\x00"), 6),
        ("subTemplateList", a_sub_list(301, a_name(1, b"eth0")[:-1]), 3),
        ("subTemplateMultiList", b"", 0),
        ("subTemplateMultiList", a_multi_list(b"\x01\x2c\x00"), 1),
        ("subTemplateMultiList", a_multi_list(an_entry(300, b"", length=5)), 1),
    ],
)
def test_a_malformed_list_is_refused_with_its_offset(kind: str, data: bytes, offset: int) -> None:
    fault = refused(kind, data)
    assert (fault.reason, fault.offset) == ("list", offset)


def test_elements_of_no_length_end_and_cannot_multiply() -> None:
    assert len(decoded("basicList", a_basic_list(INTERFACE_NAME, VARIABLE_LENGTH, bytes(16_384)))) == 16_384
    wide = make_template(320, [(0, 4, 1), *[(0, INTERFACE_NAME, 0)] * 2000])
    fault = refused("subTemplateList", a_sub_list(320, bytes(65_000)), {320: wide})
    assert "more than 16,384 values" in fault.what
    nothing = make_template(321, [(0, INTERFACE_NAME, 0)])
    assert refused("subTemplateList", a_sub_list(321, b"x"), {321: nothing}).reason == "list"


@pytest.mark.parametrize(
    ("kind", "octets", "value"),
    [
        ("unsigned32", "0102", 258),
        ("signed16", "fffe", -2),
        ("float32", "3fc00000", 1.5),
        ("float64", "7ff8000000000000", None),
        ("float32", "3fc0", "3fc0"),
        ("boolean", "01", True),
        ("boolean", "02", False),
        ("macAddress", "0a0b0c0d0e0f", "0a:0b:0c:0d:0e:0f"),
        ("ipv4Address", "c0000201", "192.0.2.1"),
        ("ipv6Address", "00" * 15 + "01", "::1"),
        ("string", "ff61", "\ufffda"),
        ("octetArray", "dead", "dead"),
        ("dateTimeSeconds", "00000001", "1970-01-01T00:00:01Z"),
        ("dateTimeMilliseconds", "00000000000005dc", "1970-01-01T00:00:01.500Z"),
        ("dateTimeMilliseconds", "ff" * 8, None),
        ("dateTimeMicroseconds", "83aa7e8180000000", "1970-01-01T00:00:01.500000Z"),
        ("dateTimeNanoseconds", "83aa7e8180000000", "1970-01-01T00:00:01.500000000Z"),
        ("dateTimeNanoseconds", "83aa", "83aa"),
    ],
)
def test_a_value_has_the_form_that_columns_give_it(kind: str, octets: str, value: object) -> None:
    assert render(kind, bytes.fromhex(octets)) == value


@given(
    element=st.sampled_from([1, 4, 8, 27, 56, 82, 150, 152, 154, 156, 276, 320]),
    octets=st.binary(min_size=8, max_size=16),
)
def test_values_in_lists_and_in_records_are_the_same(element: int, octets: bytes) -> None:
    kind = registry().lookup(0, element)
    width = {"ipv6Address": 16, "macAddress": 6, "ipv4Address": 4, "boolean": 1, "dateTimeSeconds": 4}.get(kind.type, 8)
    value = (octets * 2)[:width]
    if kind.type == "dateTimeMilliseconds":
        value = b"\0" + value[1:]
    template = make_template(256, [(0, element, len(value)), (0, BASIC_LIST, VARIABLE_LENGTH)])
    record = value + make_variable(a_basic_list(element, len(value), value))
    encoder = Encoder()
    (row,) = as_json(encoder.templates([template], export_time=0) + encoder.records(template, [record], export_time=0))
    assert row["basicList"] == [{kind.name: row[kind.name]}]


@given(kind=st.sampled_from(sorted(LIST_TYPES)), data=st.binary(max_size=300))
@settings(max_examples=500)
def test_any_bytes_give_a_list_or_a_malformed_message(kind: str, data: bytes) -> None:
    fault = None
    try:
        json.dumps(decoded(kind, data))
    except MalformedMessage as caught:
        fault = caught
    if fault is not None:
        assert fault.reason in ("list", "list_template", "depth")
        assert 0 <= fault.offset <= len(data)


def lists_of(depth: int) -> st.SearchStrategy[tuple[str, bytes, list[Value]]]:
    """A list's kind, octets and meaning, with lists within it."""
    numbers = st.lists(st.integers(0, 0xFFFF_FFFF), max_size=4).map(
        lambda chosen: (
            "basicList",
            a_basic_list(INGRESS, 4, b"".join(struct.pack("!I", number) for number in chosen)),
            [{"ingressInterface": number} for number in chosen],
        )
    )
    if depth == 1:
        return numbers
    return st.one_of(numbers, st.lists(lists_of(depth - 1), max_size=3).map(a_list_of_lists))


def a_list_of_lists(members: list[tuple[str, bytes, list[Value]]]) -> tuple[str, bytes, list[Value]]:
    entries = []
    rows: list[Value] = []
    for kind, data, meaning in members:
        number = {"basicList": BASIC_LIST, "subTemplateMultiList": MULTI_LIST}[kind]
        entries.append(an_entry(number + 100, make_variable(data)))
        rows.append({kind: meaning})
    return "subTemplateMultiList", a_multi_list(*entries), rows


@given(built=lists_of(5))
def test_what_was_nested_comes_out_nested(built: tuple[str, bytes, list[Value]]) -> None:
    templates = {
        number + 100: make_template(number + 100, [(0, number, VARIABLE_LENGTH)]) for number in (BASIC_LIST, MULTI_LIST)
    }
    kind, data, meaning = built
    assert decoded(kind, data, templates) == meaning


def an_outer(encoder: Encoder, *lists: bytes) -> bytes:
    return encoder.records(OUTER, [b"\x06" + make_variable(data) for data in lists], export_time=1)


def test_json_has_lists_as_arrays_of_objects_and_says_which_it_could_not_decode() -> None:
    encoder = Encoder()
    unknown = a_sub_list(999, b"\x01\x02")
    data = encoder.templates([PAIR, OUTER], export_time=1)
    data += an_outer(encoder, a_sub_list(300, a_pair(17, 53)), unknown, a_sub_list(300, b""))
    assert [row["subTemplateList"] for row in as_json(data)] == [
        [{"protocolIdentifier": 17, "destinationTransportPort": 53}],
        [{"_undecoded": unknown.hex(), "_reason": "list_template"}],
        [],
    ]
    assert [row["protocolIdentifier"] for row in as_json(data)] == [6, 6, 6]


def test_a_list_of_fixed_length_is_decoded_too() -> None:
    content = a_basic_list(INGRESS, 4, bytes(7) + b"\x09")
    template = make_template(256, [(0, BASIC_LIST, len(content)), (0, 4, 1)])
    encoder = Encoder()
    data = encoder.templates([template], export_time=1)
    data += encoder.records(template, [content + b"\x06"] * 2, export_time=1)
    assert [row["basicList"] for row in as_json(data)] == [[{"ingressInterface": 0}, {"ingressInterface": 9}]] * 2


def test_a_list_means_the_template_that_stood_before_it() -> None:
    encoder = Encoder()
    data = encoder.templates([PAIR, OUTER], export_time=1)
    for fields in ([(0, 4, 1), (0, 11, 2)], [(0, 5, 1), (0, 7, 2)], [(0, 6, 3)]):
        data += encoder.templates([make_template(300, fields)], export_time=1)
        data += an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    assert [row["subTemplateList"] for row in as_json(data)] == [
        [{"protocolIdentifier": 1, "destinationTransportPort": 2}],
        [{"ipClassOfService": 1, "sourceTransportPort": 2}],
        [{"tcpControlBits": 65538}],
    ]


def test_a_list_means_the_template_that_stood_before_it_in_its_message() -> None:
    other = make_template(300, [(0, 5, 1), (0, 7, 2)])
    row = make_set(256, b"\x06" + make_variable(a_sub_list(300, a_pair(1, 2))))
    message = make_message(make_set(2, OUTER.raw + PAIR.raw), domain=1)
    message += make_message(row + make_set(2, other.raw) + row + make_set(2, PAIR.raw) + row, domain=1)
    message += make_message(row, domain=1) + make_message(make_set(2, other.raw), domain=1)
    message += make_message(row, domain=1) + make_message(row + make_set(2, b"\x01\x2c\0\0") + row, domain=1)
    pair = [{"protocolIdentifier": 1, "destinationTransportPort": 2}]
    others = [{"ipClassOfService": 1, "sourceTransportPort": 2}]
    *rows, last = [row["subTemplateList"] for row in as_json(message)]
    assert rows == [pair, others, pair, pair, others, others]
    assert "_undecoded" in str(last)


def test_templates_said_again_and_again_take_one_snapshot() -> None:
    encoder = Encoder()
    data = b""
    for _ in range(MAX_SNAPSHOTS * 2):
        data += encoder.templates([PAIR, OUTER], export_time=1) + an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    batches = decode(data)
    assert sum(batch.records for batch in batches) == MAX_SNAPSHOTS * 2
    assert len({id(batch.templates) for batch in batches}) == 1


def test_templates_changed_without_end_leave_later_lists_undecoded() -> None:
    encoder = Encoder()
    data = encoder.templates([OUTER], export_time=1)
    for index in range(MAX_SNAPSHOTS + 3):
        changed = make_template(300, [(4242, index + 1, 3)])
        data += encoder.templates([changed], export_time=1) + an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    rows = [row["subTemplateList"] for row in as_json(data)]
    assert ["_undecoded" in str(row) for row in rows] == [False] * MAX_SNAPSHOTS + [True] * 3


def test_templates_of_other_domains_do_not_serve() -> None:
    one, two = Encoder(domain=1), Encoder(domain=2)
    data = one.templates([PAIR], export_time=1) + two.templates([OUTER], export_time=1)
    data += an_outer(two, a_sub_list(300, a_pair(1, 2)))
    (row,) = as_json(data)
    assert row["subTemplateList"] == [{"_undecoded": a_sub_list(300, a_pair(1, 2)).hex(), "_reason": "list_template"}]


def test_a_batch_without_lists_carries_no_templates() -> None:
    encoder = Encoder()
    (batch,) = decode(encoder.templates([PAIR], export_time=1) + encoder.records(PAIR, [a_pair(1, 2)], export_time=1))
    assert batch.templates == {}


@pytest.mark.parametrize("outer", [[(0, 4, 1), (0, SUB_LIST, VARIABLE_LENGTH)], [(0, 4, 1), (0, SUB_LIST, 6)]])
def test_a_batch_cut_after_its_templates_decodes_its_lists_alone(outer: list[tuple[int, int, int]]) -> None:
    template = make_template(256, outer)
    encoder, session = Encoder(domain=7), Session()
    session.walk(encoder.templates([PAIR, NAMED, template], export_time=1))
    session.cut()
    content = a_sub_list(300, a_pair(6, 443))
    record = b"\x06" + (content if outer[1][2] == 6 else make_variable(content))
    for _ in range(2):
        data = encoder.records(template, [record], export_time=2)
        assert session.walk(data).fault is None
        (row,) = as_json(session.cut() + data)
        assert row["subTemplateList"] == [{"protocolIdentifier": 6, "destinationTransportPort": 443}]


def test_a_batch_that_defines_its_list_template_anew_gets_the_others_of_its_domain_as_they_were() -> None:
    encoder, session = Encoder(), Session()
    session.walk(encoder.templates([PAIR, OUTER], export_time=1))
    session.cut()
    batch = encoder.templates([OUTER], export_time=2) + an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    batch += encoder.templates([make_template(300, [(0, 6, 3)])], export_time=2)
    batch += an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    session.walk(batch)
    rows = [row["subTemplateList"] for row in as_json(session.cut() + batch)]
    assert rows == [[{"protocolIdentifier": 1, "destinationTransportPort": 2}], [{"tcpControlBits": 65538}]]


def test_a_batch_whose_list_template_was_withdrawn_in_it_still_decodes_alone() -> None:
    encoder, session = Encoder(), Session()
    session.walk(encoder.templates([PAIR, OUTER], export_time=1))
    session.cut()
    batch = an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    batch += make_message(make_set(2, struct.pack("!HHHH", 256, 0, 300, 0)), sequence=encoder.sequence)
    session.walk(batch)
    (row,) = as_json(session.cut() + batch)
    assert row["subTemplateList"] == [{"protocolIdentifier": 1, "destinationTransportPort": 2}]
    session.walk(make_message(b"", sequence=encoder.sequence))
    assert session.cut() == b""


def test_a_batch_without_lists_gets_only_the_templates_it_uses() -> None:
    encoder, session = Encoder(), Session()
    session.walk(encoder.templates([PAIR, NAMED, OUTER], export_time=1))
    session.cut()
    session.walk(encoder.records(PAIR, [a_pair(1, 2)], export_time=1))
    assert session.cut() == make_message(make_set(2, PAIR.raw), sequence=0, export_time=1)


actions = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=14)


@given(chosen=actions)
@settings(deadline=None)
def test_batches_cut_anywhere_give_the_same_lists_as_the_whole(chosen: list[tuple[int, bool]]) -> None:
    encoder, session = Encoder(), Session()
    other = make_template(300, [(0, 6, 3)])
    does = [
        lambda: encoder.templates([PAIR], export_time=1),
        lambda: encoder.templates([other], export_time=1),
        lambda: encoder.templates([OUTER], export_time=1),
        lambda: make_message(make_set(2, struct.pack("!HH", 300, 0)), sequence=encoder.sequence),
        lambda: an_outer(encoder, a_sub_list(300, a_pair(1, 2))),
        lambda: encoder.templates([make_template(256, [(0, 4, 1)])], export_time=1),
    ]
    whole, batch, rows = b"", b"", []
    for index, cut in [(2, True), *chosen, (4, True)]:
        message = does[index]()
        session.walk(message)
        whole, batch = whole + message, batch + message
        if cut:
            rows += as_json(session.cut() + batch)
            batch = b""
    assert rows == as_json(whole)


def test_values_of_gives_each_list_decoded() -> None:
    encoder = Encoder()
    data = encoder.templates([PAIR, OUTER], export_time=1) + an_outer(encoder, a_sub_list(300, a_pair(1, 2)))
    (batch,) = decode(data)
    assert values_of(batch)["subTemplateList"] == [[{"protocolIdentifier": 1, "destinationTransportPort": 2}]]
    assert set(batch.templates) == {256, 300}
