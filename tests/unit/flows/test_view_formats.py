"""The view of flows in every output: nulls are nulls, and one query works for all exporters."""

import io
import json
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from sapflow.flows.formats import open_writer
from sapflow.flows.names import Names
from sapflow.flows.records import Context
from sapflow.flows.sampling import Sampling
from sapflow.flows.view import View, view
from tests.unit.flows.flows_made import Record, a_batch, messages

CONTEXT = Context("acme", "192.0.2.1:4739")
FOUR: Record = {"sourceIPv4Address": "192.0.2.1", "octetDeltaCount": 10, "samplingInterval": 100, "ingressInterface": 7}
SIX: Record = {"sourceIPv6Address": "2001:db8::1", "octetTotalCount": 5, "flowStartSeconds": 1_700_000_001}


def written(format_: str, *records: Record) -> bytes:
    out = io.BytesIO()
    stages = [Sampling(scale=True), Names(), View(scale=True, names=True)]
    writer = open_writer(format_, out, stages=stages)
    for record in records:
        writer.write(messages(*[record] * 60, domain=len(record)), CONTEXT)
    writer.close()
    return out.getvalue()


def table_of(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_stream(data).read_all().to_pylist()
    return rows


def test_json_lines_have_null_for_what_is_not_known_however_many_records_there_are() -> None:
    rows = [json.loads(line) for line in written("jsonl", FOUR, SIX).splitlines()]
    assert len(rows) == 120
    assert {(row["src_addr"], row["bytes"], row["scaled_bytes"], row["in_if"]) for row in rows} == {
        ("192.0.2.1", 10, 1000, 7),
        ("2001:db8::1", 5, None, None),
    }


def test_csv_has_nothing_for_what_is_not_known() -> None:
    header, *rows = [line.split(",") for line in written("csv", FOUR, SIX).decode().splitlines()]
    named = [dict(zip(header, row, strict=True)) for row in rows]
    assert {(row["src_addr"], row["bytes"], row["sampling"], row["in_if"], row["exporter"]) for row in named} == {
        ("192.0.2.1", "10", "100.0", "7", "192.0.2.1"),
        ("2001:db8::1", "5", "", "", "192.0.2.1"),
    }


def test_a_column_that_is_null_here_and_there_is_so_in_text_and_tables() -> None:
    batch = view(a_batch(*[{"ipClassOfService": n.to_bytes(2, "big")} for n in (5, 300)] * 40))
    assert batch.columns["tos"].tolist() == [5, None] * 40
    assert batch.to_arrow().column("tos").to_pylist() == [5, None] * 40


def test_arrow_has_the_same_types_for_every_exporter() -> None:
    one, other = (view(a_batch(record)).to_arrow() for record in (FOUR, SIX))
    assert one.schema == other.schema
    (row,) = other.to_pylist()
    assert row["src_addr"] == bytes.fromhex("20010db8000000000000000000000001")
    assert row["dst_addr"] is None
    assert row["sampling"] is None or row["sampling"] != row["sampling"]


@pytest.mark.parametrize("format_", ["arrow"])
def test_one_query_works_for_all_exporters(format_: str) -> None:
    flows = pa.ipc.open_stream(written(format_, FOUR, SIX)).read_all()
    found = duckdb.sql("select src_addr, sum(bytes), count(scaled_bytes) from flows group by 1 order by 2").fetchall()
    assert [(total, scaled) for _, total, scaled in found] == [(300, 0), (600, 60)]
    assert flows.num_rows == 120
