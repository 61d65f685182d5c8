"""No message of 64 KiB costs an output more than 8 MiB beside what its format keeps, nor does a run of them.

Nor does one hold up whoever writes for longer than its columns take to make: what there is is written in pieces.

What formats keep: Arrow and Parquet what is looked ahead at and a row group, IPFIX Files the templates they defined.
`pytest -s` shows the figures.
"""

import gc
import io
import struct
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meter.batching import Batcher
from sapflow.errors import SapflowError
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import ipfix, open_writer, tables
from sapflow.flows.formats.pieces import AND_OTHERS, MAX_LEFT_OUT, PIECE_BYTES
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from sapflow.flows.meaning.sampling import Sampling
from sapflow.flows.meaning.stages import Stage
from sapflow.flows.meaning.view import View
from sapflow.flows.wire import VARIABLE_LENGTH
from tests.hostile import ROOM, tick, worst_cases

MOST_BYTES = 8 << 20
CONTEXT = Context("acme", "192.0.2.7:4739", "abcd", 3)
V = VARIABLE_LENGTH


def _one(*fields: tuple[int, int, int], record: bytes) -> list[bytes]:
    template = make_template(256, fields)
    return [make_message(make_set(2, template.raw)), make_message(make_set(256, record * (ROOM // len(record))))]


LIST = struct.pack("!BHH", 3, 4, 1)
CASES = worst_cases() | {
    "four lists of 16,000 values": _one(*[(0, 291, V)] * 4, record=make_variable(LIST + bytes(16_000)) * 4),
    "lists of one value": _one((0, 291, V), record=make_variable(LIST + b"\x06")),
    "text that is escaped": _one((0, 82, V), record=make_variable(b"\x01" * 65_000)),
    "one record of 400 elements, then 65,000 of one": [
        make_message(make_set(2, make_template(257, [(0, number, 1) for number in range(1, 401)]).raw)),
        make_message(make_set(257, bytes(400))),
        *_one((0, 4, 1), record=b"\x06"),
    ],
}


OF_MANY = [case for case in CASES if case.startswith("a set for each of")] + ["sets of one record", "one-byte records"]
MOST_TICKS = 45
"""Of `tests.hostile.tick` from one write to the next; the first has all columns before it, which are most of it."""


class Nowhere(io.BytesIO):
    """An output that keeps nothing, and knows what pyarrow held at most."""

    def __init__(self) -> None:
        super().__init__()
        self.size = self.held = 0
        self._base = pa.total_allocated_bytes()

    def write(self, data: Any, /) -> int:
        size = len(data)
        self.size += size
        self.held = max(self.held, pa.total_allocated_bytes() - self._base)
        return size


def payload_of(case: str) -> bytes:
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
    for message in CASES[case]:
        batcher.feed(message)
    draft = batcher.flush()
    return b"" if draft is None else draft.payload


def peak_of(payload: bytes, format_: str, stages: Sequence[Stage]) -> int:
    open_writer(format_, Nowhere(), None, stages).write(payload, CONTEXT)
    writer = open_writer(format_, Nowhere(), None, stages)
    gc.collect()
    tracemalloc.start()
    try:
        writer.write(payload, CONTEXT)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format_", ["jsonl", "csv", "ipfix", "arrow", "parquet"])
@pytest.mark.parametrize("case", CASES)
def test_the_worst_messages_are_written_within_their_memory(case: str, format_: str) -> None:
    peak = peak_of(payload_of(case), format_, ())
    print(f"{format_} {case}: {peak / (1 << 20):.1f} MiB")
    assert peak < MOST_BYTES + (tables.LOOK_AHEAD_BYTES if format_ in ("arrow", "parquet") else 0)


@pytest.mark.parametrize("case", CASES)
def test_the_worst_messages_are_viewed_within_their_memory(case: str) -> None:
    peak = peak_of(payload_of(case), "jsonl", [View()])
    print(f"{case}: {peak / (1 << 20):.1f} MiB")
    # What is decoded is held while a piece of it is made into rows.
    assert peak < MOST_BYTES + 2 * PIECE_BYTES


class Moments(Nowhere):
    """An output that knows how much CPU time passed at most between two writes."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        self._last = time.process_time()

    def write(self, data: Any, /) -> int:
        now = time.process_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        return super().write(data)


@pytest.mark.parametrize("stages", [(), (Sampling(), View())], ids=["plain", "view"])
@pytest.mark.parametrize("format_", ["jsonl", "csv"])
@pytest.mark.parametrize("case", OF_MANY)
def test_records_of_thousands_of_templates_are_written_a_piece_at_a_time(
    case: str, format_: str, stages: Sequence[Stage]
) -> None:
    payload = payload_of(case)
    found = []
    while len(found) < 4 and not (found and min(found) < MOST_TICKS):
        around, out = tick(), Moments()
        open_writer(format_, out, None, stages).write(payload, CONTEXT)
        found.append(out.longest / max(around, tick()))
    print(f"{format_} {case}: {min(found):.1f} ticks")
    assert min(found) < MOST_TICKS


def ever_other_elements(first: int, *, templates: int, fields: int, domain: int = 1) -> bytes:
    """A record of each of some templates, whose elements nobody has described and no two share."""
    encoder = Encoder(domain=domain)
    made = [
        make_template(256 + n, [(40_000 + first + n, 1 + number, 1) for number in range(fields)])
        for n in range(templates)
    ]
    return encoder.templates(made, export_time=1) + b"".join(
        encoder.records(template, [bytes(fields)], export_time=1) for template in made
    )


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_ever_new_elements_are_no_more_columns_than_a_table_may_have(format_: str) -> None:
    out = Nowhere()
    writer = open_writer(format_, out)
    for batch in range(20):
        writer.write(ever_other_elements(100 * batch, templates=40, fields=40), CONTEXT)
    writer.close()
    print(f"{format_}: {out.held / (1 << 20):.1f} MiB in Arrow, {out.size / (1 << 20):.1f} MiB written")
    assert 0 < out.held < MOST_BYTES + tables.ROW_GROUP_BYTES
    assert len(writer.left_out) == MAX_LEFT_OUT + 1
    assert AND_OTHERS in writer.left_out


def test_a_table_has_the_columns_up_to_its_bound_and_all_records() -> None:
    out = io.BytesIO()
    writer = open_writer("parquet", out)
    for batch in range(3):
        writer.write(ever_other_elements(100 * batch, templates=40, fields=40), CONTEXT)
    writer.close()
    table = pq.read_table(out)
    assert (table.num_rows, table.num_columns) == (120, tables.MAX_COLUMNS)
    assert table.column(6).to_pylist() == [b"\0", *[None] * 119]


def test_a_parquet_file_ends_whole_where_its_footer_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CHUNKS", 4 * 7)
    monkeypatch.setattr(tables, "ROW_GROUP_RECORDS", 10)
    monkeypatch.setattr(tables, "LOOK_AHEAD_RECORDS", 1)
    out = io.BytesIO()
    writer = open_writer("parquet", out)
    data = b"".join(_one((0, 4, 1), record=b"\x06"))
    for _ in range(3):
        assert writer.write(data, CONTEXT, limit=10) == 10
    with pytest.raises(SapflowError, match=r"ends, whole, after 40 records in 4 row groups of 7 columns"):
        writer.write(data, CONTEXT, limit=10)
    writer.close()
    assert pq.read_table(out)["protocolIdentifier"].to_pylist() == [6] * 40


def test_an_ipfix_file_forgets_templates_beyond_its_bound_and_still_reads_as_one_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ipfix, "MAX_KNOWN_BYTES", 20_000)
    out = io.BytesIO()
    writer = open_writer("ipfix", out)
    assert isinstance(writer, ipfix.IpfixWriter)
    again = ever_other_elements(0, templates=10, fields=20, domain=7)
    for domain in range(50):
        writer.write(ever_other_elements(domain, templates=10, fields=20, domain=domain), CONTEXT)
        writer.write(again, CONTEXT)
        assert len(writer._known) < 60
    walk = Session().walk(out.getvalue())
    assert (walk.fault, walk.records, walk.undecodable_sets, walk.lost_records) == (None, 1_000, 0, 0)
    assert walk.redefined == 0


def test_an_ipfix_file_forgets_the_numbers_of_domains_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfix, "MAX_DOMAINS", 20)
    out = Nowhere()
    writer = open_writer("ipfix", out)
    assert isinstance(writer, ipfix.IpfixWriter)
    for domain in range(200):
        writer.write(ever_other_elements(0, templates=1, fields=1, domain=domain), CONTEXT)
        assert len(writer._sequence) <= 21


def test_csv_names_no_more_of_what_it_leaves_out_than_its_bound() -> None:
    writer = open_writer("csv", Nowhere())
    for batch in range(20):
        writer.write(ever_other_elements(100 * batch, templates=40, fields=40), CONTEXT)
    assert len(writer.left_out) == MAX_LEFT_OUT + 1
