"""Records in their output formats."""

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import ConfigurationError
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import open_writer
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.session import Session
from sapflow.flows.wire import VARIABLE_LENGTH

ALL = make_template(
    256,
    [
        (0, 8, 4),
        (0, 27, 16),
        (0, 56, 6),
        (0, 1, 3),
        (0, 150, 4),
        (0, 152, 8),
        (0, 154, 8),
        (0, 156, 8),
        (0, 82, VARIABLE_LENGTH),
        (0, 276, 1),
        (0, 320, 8),
        (4242, 7, 2),
        (0, 8, 4),
    ],
)


def a_record(name: bytes = b"eth0", number: float = 1.5) -> bytes:
    ntp = (2_208_988_800 + 1) << 32 | 1 << 31
    return (
        bytes([192, 0, 2, 1])
        + bytes(15)
        + b"\x01"
        + bytes.fromhex("0a0b0c0d0e0f")
        + (70_000).to_bytes(3, "big")
        + struct.pack("!IQQQ", 1, 1500, ntp, ntp)
        + make_variable(name)
        + b"\x01"
        + struct.pack("!d", number)
        + b"\xbe\xef"
        + bytes([198, 51, 100, 9])
    )


def messages(*records: bytes) -> bytes:
    encoder = Encoder(domain=5)
    return encoder.templates([ALL], export_time=1) + encoder.records(ALL, records, export_time=1)


def as_json(data: bytes) -> list[dict[str, object]]:
    out = io.BytesIO()
    open_writer("jsonl", out).write(data, Context("acme", "192.0.2.7", "ab", 3))
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_each_type_has_its_form_in_json() -> None:
    (row,) = as_json(messages(a_record()))
    assert row == {
        "_org": "acme",
        "_exporter": "192.0.2.7",
        "_stream": "ab",
        "_domain": 5,
        "_template": 256,
        "_position": 3,
        "sourceIPv4Address": "192.0.2.1",
        "sourceIPv6Address": "::1",
        "sourceMacAddress": "0a:0b:0c:0d:0e:0f",
        "octetDeltaCount": 70_000,
        "flowStartSeconds": "1970-01-01T00:00:01Z",
        "flowStartMilliseconds": "1970-01-01T00:00:01.500Z",
        "flowStartMicroseconds": "1970-01-01T00:00:01.500000Z",
        "flowStartNanoseconds": "1970-01-01T00:00:01.500000000Z",
        "interfaceName": "eth0",
        "dataRecordsReliability": True,
        "absoluteError": 1.5,
        "e4242id7": "beef",
        "sourceIPv4Address_2": "198.51.100.9",
    }


def test_f24_f25_what_json_has_no_form_for_is_null_and_bad_text_is_escaped() -> None:
    rows = as_json(messages(a_record(b"\xff\n\x1b[31m", float("nan")), a_record(number=float("inf"))))
    assert rows[0]["interfaceName"] == "\ufffd\n\x1b[31m"
    assert rows[0]["absoluteError"] is None
    assert rows[1]["absoluteError"] is None


def test_csv_has_one_header_and_says_what_it_left_out() -> None:
    out = io.BytesIO()
    writer = open_writer("csv", out)
    writer.write(messages(a_record()), Context())
    other = Encoder()
    template = make_template(300, [(0, 4, 1)])
    writer.write(
        other.templates([template], export_time=1) + other.records(template, [b"\x06"], export_time=1), Context()
    )
    writer.close()
    lines = out.getvalue().decode().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("_org,_exporter")
    assert writer.left_out == {"protocolIdentifier"}


def test_ipfix_output_reads_as_one_session_though_streams_share_ids() -> None:
    out = io.BytesIO()
    writer = open_writer("ipfix", out)
    one, two = make_template(256, [(0, 4, 1)]), make_template(256, [(0, 8, 4)])
    for template, record in ((one, b"\x06"), (two, b"abcd"), (one, b"\x11"), (one, b"\x12")):
        encoder = Encoder(domain=1)
        data = encoder.templates([template], export_time=1) + encoder.records(template, [record], export_time=1)
        assert writer.write(data, Context()) == 1
    walk = Session().walk(out.getvalue())
    assert (walk.records, walk.undecodable_sets, walk.lost_records, walk.fault, walk.redefined) == (4, 0, 0, None, 0)


def test_a_limit_is_kept() -> None:
    out = io.BytesIO()
    assert open_writer("jsonl", out).write(messages(a_record(), a_record()), Context(), limit=1) == 1
    assert len(out.getvalue().splitlines()) == 1


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["fixed", "variable"]), st.integers(1, 5)), max_size=4), max_size=5),
    st.integers(1, 60),
)
def test_an_ipfix_file_has_the_first_records_to_the_record(sent: list[list[tuple[str, int]]], limit: int) -> None:
    fixed, variable = make_template(300, [(0, 4, 1)]), make_template(301, [(0, 82, VARIABLE_LENGTH), (0, 4, 1)])
    data = Encoder(domain=5).templates([fixed, variable], export_time=1)
    count = 0
    for sets in sent:
        body = b""
        for kind, records in sets:
            rows = [bytes([each % 250]) for each in range(count, count + records)]
            count += records
            if kind == "variable":
                body += make_set(301, b"".join(make_variable(b"e" * (row[0] % 9)) + row for row in rows))
            else:
                body += make_set(300, b"".join(rows))
        data += make_message(body, domain=5, sequence=0, export_time=1)
    out = io.BytesIO()
    assert open_writer("ipfix", out).write(data, Context(), limit=limit) == min(limit, count)
    found = [row["protocolIdentifier"] for row in as_json(out.getvalue())]
    assert found == [each % 250 for each in range(min(limit, count))]


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no format 'xml'"):
        open_writer("xml", io.BytesIO())
