"""Records in Arrow, Arrow streams and Parquet files."""

import io
import json
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import Context, values_of
from sapflow.flows.columns.variable import VariableColumn
from sapflow.flows.formats import open_writer, tables
from sapflow.flows.ipfix.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.meaning.view import View, view
from sapflow.flows.reference import reference_work
from sapflow.flows.wire import VARIABLE_LENGTH
from tests.unit.flows.test_formats import a_record, messages
from tests.unit.flows.test_lines import messages as any_messages

V = VARIABLE_LENGTH
CONTEXT = Context("acme", "192.0.2.7", "ab", 3)


def a_batch(fields: list[tuple[int, int, int]], *records: bytes) -> FlowBatch:
    (batch,) = decode(some(fields, *records))
    return batch


def some(fields: list[tuple[int, int, int]], *records: bytes, number: int = 300) -> bytes:
    template = make_template(number, fields)
    sets = make_set(2, template.raw) + make_set(number, b"".join(records))
    return make_message(sets, domain=1)


def table_of(format_: str, *pieces: bytes, fields: list[str] | None = None) -> tuple[Any, set[str]]:
    out = io.BytesIO()
    writer = open_writer(format_, out, fields)
    for piece in pieces:
        writer.write(piece, CONTEXT)
    writer.close()
    out.seek(0)
    return pa.ipc.open_stream(out).read_all() if format_ == "arrow" else pq.read_table(out), writer.left_out


def test_each_type_has_its_form_in_arrow() -> None:
    (batch,) = decode(messages(a_record(b"eth\xff")))
    (row,) = batch.to_arrow(CONTEXT).to_pylist()
    at = datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert row == {
        "_org": "acme",
        "_exporter": "192.0.2.7",
        "_stream": "ab",
        "_domain": 5,
        "_template": 256,
        "_position": 3,
        "sourceIPv4Address": bytes([192, 0, 2, 1]),
        "sourceIPv6Address": bytes(15) + b"\x01",
        "sourceMacAddress": bytes.fromhex("0a0b0c0d0e0f"),
        "octetDeltaCount": 70_000,
        "flowStartSeconds": at.replace(microsecond=0),
        "flowStartMilliseconds": at,
        "flowStartMicroseconds": at,
        "flowStartNanoseconds": at,
        "interfaceName": "eth\ufffd",
        "dataRecordsReliability": True,
        "absoluteError": 1.5,
        "e4242id7": b"\xbe\xef",
        "sourceIPv4Address_2": bytes([198, 51, 100, 9]),
    }


def test_arrow_shares_the_memory_of_columns() -> None:
    (batch,) = decode(reference_work(4))
    arrow = batch.to_arrow()
    shared = {
        name
        for name, column in batch.columns.items()
        if isinstance(column, np.ndarray) and arrow[name].buffers()[1].address == column.ctypes.data
    }
    # Interfaces came in 4 octets and flags in 1, of 4 and 2 that their elements have.
    assert batch.columns.keys() - shared == {"tcpControlBits"}
    names = a_batch([(0, 82, V), (0, 313, V), (4242, 7, 3)], b"\x02ab\x01xabc", b"\x01c\x02yzabc")
    arrow = names.to_arrow()
    for name in ("interfaceName", "ipHeaderPacketSection"):
        column = names.columns[name]
        assert isinstance(column, VariableColumn)
        _, offsets, data = arrow[name].buffers()
        assert (offsets.address, data.address) == (column.offsets.ctypes.data, column.data.ctypes.data)
    octets = names.columns["e4242id7"]
    assert isinstance(octets, np.ndarray)
    assert arrow["e4242id7"].buffers()[2].address == octets.ctypes.data


def test_a_part_of_a_batch_is_a_part_in_arrow() -> None:
    batch = a_batch([(0, 82, V), (0, 8, 4), (0, 276, 1)], *(b"\x02a%dabc%d\x01" % (n, n) for n in range(9)))
    assert batch.part(3, 5).to_arrow().to_pydict() == {
        "interfaceName": ["a3", "a4"],
        "sourceIPv4Address": [b"abc3", b"abc4"],
        "dataRecordsReliability": [True, True],
    }


@pytest.mark.parametrize(
    ("fields", "record", "expected"),
    [
        ([(0, 8, 5)], b"abcde", None),
        ([(0, 8, V)], b"\x04abcd", b"abcd"),
        ([(0, 8, V)], b"\x05abcde", None),
        ([(0, 27, 4)], b"abcd", None),
        ([(0, 4, 8)], bytes(7) + b"\x06", 6),
        ([(0, 4, 8)], b"\x01" + bytes(7), None),
        ([(0, 4, V)], b"\x01\x06", 6),
        ([(0, 4, V)], b"\x09" + bytes(9), None),
        ([(0, 434, 3)], b"\xff\xff\xfe", -2),
        ([(0, 152, 8)], b"\xff" * 8, None),
        ([(0, 152, 8)], b"\x00\xff" + bytes(6), None),
        ([(0, 150, 8)], bytes(8), None),
        ([(0, 320, 4)], struct.pack("!f", 0.5), 0.5),
        ([(0, 276, 1)], b"\x07", False),
        ([(0, 82, 8)], b"eth0\0\0\0\0", "eth0"),
        ([(0, 82, V)], make_variable("nä".encode()), "nä"),
        ([(0, 82, V)], b"\x02a\0", "a"),
        ([(0, 291, V)], make_variable(b"\x03\x00\x04\x00\x01\x06"), '[{"protocolIdentifier":6}]'),
    ],
)
def test_f23_f24_what_a_type_has_no_form_for_is_null(
    fields: list[tuple[int, int, int]], record: bytes, expected: object
) -> None:
    assert a_batch(fields, record).to_arrow().column(0).to_pylist() == [expected]


def test_a_character_cut_between_two_values_is_replaced_in_both() -> None:
    batch = a_batch([(0, 82, V)], b"\x02a\xc3", b"\x01\xa4")
    assert batch.to_arrow().column(0).to_pylist() == ["a\ufffd", "\ufffd"]


@given(any_messages())
def test_arrow_never_fails_and_has_the_strings_and_integers_of_json(data: bytes) -> None:
    for batch in decode(data):
        arrow, values = batch.to_arrow(CONTEXT), values_of(batch)
        arrow.validate(full=True)
        for name, element in zip(batch.columns, batch.elements, strict=True):
            found = arrow[name]
            if element.type == "string" or element.type in ("unsigned64", "signed32"):
                assert found.to_pylist() == values[name]
            elif element.is_list:
                assert [json.loads(text) for text in found.to_pylist()] == values[name]
            elif element.type == "octetArray":
                assert [octets.hex() for octets in found.to_pylist()] == values[name]


ONE, TWO = [(0, 4, 1), (0, 82, V)], [(0, 8, 4), (0, 4, 1)]


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_the_templates_of_a_table_are_joined_and_their_records_in_order(format_: str) -> None:
    both = some(ONE, b"\x06\x01a") + some(TWO, b"abcd\x11", number=301) + some(ONE, b"\x07\x01b")
    table, left_out = table_of(format_, both)
    assert left_out == set()
    columns = ["_template", "protocolIdentifier", "interfaceName", "sourceIPv4Address"]
    assert list(zip(*table.select(columns).to_pydict().values(), strict=True)) == [
        (300, 6, "a", None),
        (301, 17, None, b"abcd"),
        (300, 7, "b", None),
    ]


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_what_comes_after_the_look_ahead_is_left_out_and_told(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LOOK_AHEAD_RECORDS", 2)
    table, left_out = table_of(format_, some(ONE, b"\x06\x01a" * 2), some(TWO, b"abcd\x11"))
    assert left_out == {"sourceIPv4Address"}
    assert table["protocolIdentifier"].to_pylist() == [6, 6, 17]


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_fields_named_are_the_columns_and_nothing_is_waited_for(format_: str) -> None:
    fields = ["interfaceName", "_exporter", "reverseOctetDeltaCount", "e4242id7", "unheardOf", "sourceIPv4Address_2"]
    table, left_out = table_of(format_, some(ONE, b"\x06\x01a"), fields=fields[:4])
    assert table.to_pylist() == [
        {"interfaceName": "a", "_exporter": "192.0.2.7", "reverseOctetDeltaCount": None, "e4242id7": None}
    ]
    assert table.schema.field("reverseOctetDeltaCount").type == pa.uint64()
    assert left_out == set()
    table, _ = table_of(format_, some(ONE, b"\x06\x01a"), fields=fields)
    assert table.column_names == fields


def test_a_live_stream_with_fields_named_is_written_as_it_comes() -> None:
    out = io.BytesIO()
    writer = open_writer("arrow", out, ["protocolIdentifier"])
    sizes = [len(out.getvalue())]
    for _ in range(3):
        writer.write(some(ONE, b"\x06\x01a"), CONTEXT)
        sizes.append(len(out.getvalue()))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_a_table_of_no_records_is_valid(format_: str) -> None:
    table, _ = table_of(format_)
    assert (table.num_rows, table.column_names[0]) == (0, "_org")


def test_row_groups_and_what_is_held_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LOOK_AHEAD_RECORDS", 100)
    monkeypatch.setattr(tables, "ROW_GROUP_RECORDS", 1_000)
    out = io.BytesIO()
    writer = open_writer("parquet", out)
    for _ in range(30):
        writer.write(reference_work(5), CONTEXT)
    writer.close()
    file = pq.ParquetFile(out)
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert (sum(groups), max(groups) <= 1_000 + 5 * 24, len(groups)) == (3_600, True, 4)


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_a_limit_is_kept_in_tables(format_: str) -> None:
    out = io.BytesIO()
    writer = open_writer(format_, out)
    assert writer.write(reference_work(5), CONTEXT, limit=50) == 50
    writer.close()
    out.seek(0)
    assert (pa.ipc.open_stream(out).read_all() if format_ == "arrow" else pq.read_table(out)).num_rows == 50


def test_what_a_stage_does_not_know_is_null() -> None:
    batch = a_batch([(0, 8, 4), (0, 12, 4), (0, 1, 8), (0, 56, 6)], b"abcdefgh" + bytes(7) + b"\x09" + b"hwaddr")
    (row,) = view(batch, CONTEXT).to_arrow().to_pylist()
    found = {name: row[name] for name in ("src_addr", "bytes", "src_mac", "dst_mac", "packets", "app", "nat_src_addr")}
    assert found == {
        "src_addr": bytes(10) + b"\xff\xffabcd",
        "bytes": 9,
        "src_mac": b"hwaddr",
        "dst_mac": None,
        "packets": None,
        "app": None,
        "nat_src_addr": None,
    }


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_a_view_fits_every_template_into_one_table(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LOOK_AHEAD_RECORDS", 1)
    out = io.BytesIO()
    writer = open_writer(format_, out, None, [View()])
    for fields, record in (([(0, 8, 4), (0, 1, 4)], b"abcd" + bytes(4)), ([(0, 27, 16), (0, 2, 4)], bytes(20))):
        writer.write(some(fields, record), CONTEXT)
    writer.close()
    out.seek(0)
    table = pa.ipc.open_stream(out).read_all() if format_ == "arrow" else pq.read_table(out)
    assert (table.num_rows, writer.left_out) == (2, set())
    assert table["src_addr"].to_pylist() == [bytes(10) + b"\xff\xffabcd", bytes(16)]


def test_duckdb_and_polars_read_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "flows.parquet"
    with path.open("wb") as file:
        writer = open_writer("parquet", file)
        writer.write(reference_work(10), CONTEXT)
        writer.close()
    (batch,) = decode(reference_work(10))
    octets = batch.columns["octetDeltaCount"]
    assert isinstance(octets, np.ndarray)
    total = int(octets.sum())
    query = "select sum(octetDeltaCount), count(distinct sourceIPv4Address) from read_parquet(?)"
    connection = duckdb.connect()
    assert connection.execute(query, [str(path)]).fetchall() == [(total, 240)]
    arrow = pa.Table.from_batches([batch.to_arrow(CONTEXT)])
    connection.register("flows", arrow)
    assert connection.execute("select sum(octetDeltaCount) from flows").fetchall() == [(total,)]
    frame = polars.read_parquet(path)
    assert frame["octetDeltaCount"].sum() == total
    assert frame["flowStartMilliseconds"].dtype == polars.Datetime("ms", "UTC")
    shared = polars.from_arrow(arrow)
    assert isinstance(shared, polars.DataFrame)
    assert shared["octetDeltaCount"].sum() == total


def test_pyarrow_is_loaded_only_where_it_is_used() -> None:
    code = "import sys, sapflow.cli, sapflow.client, sapflow.flows.formats; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
