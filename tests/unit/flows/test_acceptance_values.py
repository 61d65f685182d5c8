"""Values that no type expects: out as JSON all the same, and never as anything else than they are."""

import csv
import io
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.batching import Batcher
from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import open_writer
from sapflow.flows.ipfix.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import VARIABLE_LENGTH
from tests.hostile import records_of


def a_record(*fields: tuple[int, bytes], pen: int = 0) -> bytes:
    """Messages that hold one record of these elements, each as long as its octets."""
    template = make_template(256, [(pen, element, len(octets)) for element, octets in fields])
    data = make_set(256, b"".join(octets for _, octets in fields))
    return make_message(make_set(2, template.raw)) + make_message(data)


def value(element: int, octets: bytes) -> Any:
    """One value as JSON says it."""
    # Beside one that no record is without: an element of length 0 cannot stand alone.
    (row,) = records_of(a_record((element, octets), (4, b"\x06")))
    return next(iter(row.values()))


# F23
@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("element", [1, 2, 7, 10, 4])
def test_f23_unsigned_integers_of_one_to_eight_bytes_are_numbers(element: int, size: int) -> None:
    octets = bytes(range(0xF1, 0xF1 + size))
    assert value(element, octets) == int.from_bytes(octets, "big")


# F23
@pytest.mark.parametrize("size", range(1, 9))
def test_f23_signed_integers_keep_their_sign_in_any_size(size: int) -> None:
    octets = b"\xff" * (size - 1) + b"\xfe"
    assert value(434, octets) == -2


# F23
@pytest.mark.parametrize(
    ("element", "size"),
    [
        (8, 50),
        (8, 2),
        (8, 0),
        (27, 4),
        (27, 50),
        (27, 0),
        (56, 5),
        (56, 50),
        (1, 0),
        (1, 9),
        (1, 50),
        (152, 4),
        (156, 7),
    ],
)
def test_f23_a_length_that_its_type_cannot_have_gives_raw_bytes(element: int, size: int) -> None:
    octets = bytes(range(1, size + 1))
    assert value(element, octets) in (octets.hex(), None)


# F24
@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("form", ["!f", "!d"])
def test_f24_a_float_that_is_no_number_is_null(form: str, text: str) -> None:
    assert value(320, struct.pack(form, float(text))) is None


# F24
@pytest.mark.parametrize("number", [1.5, -0.0, 1e-45, 3.4e38])
def test_f24_a_float_that_is_one_is_that_number(number: float) -> None:
    assert math.isclose(value(320, struct.pack("!d", number)), number)


# F24
@pytest.mark.parametrize("element", [150, 152, 154, 156])
def test_f24_the_last_moment_of_a_clock_is_a_time_or_null(element: int) -> None:
    size = 4 if element == 150 else 8
    for octets in (b"\xff" * size, bytes(size), b"\x7f" + b"\xff" * (size - 1), b"\x80" + bytes(size - 1)):
        text = value(element, octets)
        assert text is None or (text.endswith("Z") and text[4] == "-")


# F24
@pytest.mark.parametrize(("octet", "said"), [(1, True), (2, False), (7, False), (0, False)])
def test_f24_a_boolean_is_true_only_by_its_one_number(octet: int, said: bool) -> None:
    assert value(276, bytes([octet])) is said


BAD_TEXT = b'a\xffb\x00c\nd\re\x1b[31mf\xc2\x9bg\xed\xa0\x80"\\'


# F25
@pytest.mark.parametrize("size", [len(BAD_TEXT), VARIABLE_LENGTH])
def test_f25_bad_text_is_one_line_of_json_without_a_control_character(size: int) -> None:
    template = make_template(256, [(0, 82, size), (0, 4, 1)])
    octets = make_variable(BAD_TEXT) if size == VARIABLE_LENGTH else BAD_TEXT
    payload = make_message(make_set(2, template.raw) + make_set(256, octets + b"\x06"))
    out = io.BytesIO()
    open_writer("jsonl", out).write(payload, Context())
    text = out.getvalue()
    assert text.count(b"\n") == 1
    assert not any(byte < 0x20 for byte in text[:-1])
    assert b"\x7f" not in text
    said = json.loads(text)["interfaceName"]
    assert said.startswith("a�b\0c\nd\re\x1b[31mf")


# F25
def test_f25_bad_text_stays_in_its_row_of_csv() -> None:
    out = io.BytesIO()
    writer = open_writer("csv", out, ["interfaceName", "protocolIdentifier"])
    writer.write(a_record((82, b'a"b\nc,d'), (4, b"\x06")), Context())
    writer.close()
    rows = list(csv.reader(io.StringIO(out.getvalue().decode(), newline="")))
    assert rows == [["interfaceName", "protocolIdentifier"], ['a"b\nc,d', "6"]]


ELEMENT = st.sampled_from(
    [1, 4, 8, 27, 34, 56, 82, 95, 130, 150, 152, 154, 156, 176, 243, 276, 291, 313, 320, 434, 999]
)


# F23 F24 F25
@given(st.lists(st.tuples(ELEMENT, st.binary(max_size=17)), min_size=1, max_size=6), st.sampled_from([0, 9, 29_305]))
def test_any_octets_of_any_length_in_any_type_are_valid_json(fields: list[tuple[int, bytes]], pen: int) -> None:
    payload = a_record(*fields, (4, b"\x06"), pen=pen)
    (row,) = records_of(payload)
    assert len(row) == len(fields) + 1


# F16
@given(st.lists(st.sampled_from([0, 1, 4, VARIABLE_LENGTH]), min_size=1, max_size=6), st.binary(max_size=60))
def test_f16_an_element_of_no_length_is_taken_or_refused_and_never_lost_in(lengths: list[int], body: bytes) -> None:
    template = make_template(256, [(0, 82 if size == VARIABLE_LENGTH else 8, size) for size in lengths])
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 20)
    batcher.feed(make_message(make_set(2, template.raw) + make_set(256, body)))
    draft = batcher.flush()
    assert draft is not None
    assert sum(batch.records for batch in decode(draft.payload)) == draft.records == len(records_of(draft.payload))
    if not any(lengths):
        assert batcher.counts.refused_sets["template"] == 1
