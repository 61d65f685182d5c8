"""JSON lines and CSV are written column by column, and read as if value by value."""

import csv
import io
import json
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context, context_fields, values_of
from sapflow.flows.formats import open_writer
from sapflow.flows.formats.text import FEW
from sapflow.flows.ipfix.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.meaning.view import View, view
from sapflow.flows.wire import VARIABLE_LENGTH

V = VARIABLE_LENGTH
CONTEXT = Context('acme "x", 100%\n', "192.0.2.7", "ab", 3)
TEXTS = st.sampled_from(
    [b"", b"eth0", b'a "quoted", \\ name', b"\xff\xfe", b"nul\0in", b"pad\0\0", "näme".encode(), b"\r\n\x1b[31m"]
)
NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [0, 1, 9, 10, 9_999, 10_000, 99_999_999, 100_000_000, 1 << 32]
)
SECONDS = st.integers(0, (1 << 32) - 1)
MILLISECONDS = st.integers(0, (1 << 64) - 1) | st.integers(0, 4_000_000_000_000)
FLOATS = st.floats(width=64)

KINDS: dict[tuple[int, int, int], st.SearchStrategy[bytes]] = {
    **{
        (0, 1, size): NUMBERS.map(lambda n, size=size: (n % (1 << 8 * size)).to_bytes(size, "big"))
        for size in (1, 2, 3, 4, 8)
    },
    (0, 434, 4): st.binary(min_size=4, max_size=4),
    (0, 8, 4): st.binary(min_size=4, max_size=4),
    (0, 8, 3): st.binary(min_size=3, max_size=3),
    (0, 27, 16): st.binary(min_size=16, max_size=16) | st.just(bytes(15) + b"\x01"),
    (0, 56, 6): st.binary(min_size=6, max_size=6),
    (0, 150, 4): SECONDS.map(lambda n: n.to_bytes(4, "big")),
    (0, 152, 8): MILLISECONDS.map(lambda n: n.to_bytes(8, "big")),
    (0, 154, 8): st.binary(min_size=8, max_size=8),
    (0, 156, 8): st.binary(min_size=8, max_size=8),
    (0, 276, 1): st.sampled_from([b"\0", b"\x01", b"\x02", b"\x07"]),
    (0, 320, 8): FLOATS.map(lambda number: struct.pack("!d", number)),
    (0, 82, V): TEXTS.map(make_variable),
    (0, 82, 12): TEXTS.map(lambda text: text[:12].ljust(12, b"\0")),
    (0, 291, V): st.just(make_variable(b"\x03\x00\x04\x00\x01\x06\x11")) | st.binary(max_size=9).map(make_variable),
    (4242, 7, V): st.binary(max_size=9).map(make_variable),
    (4242, 7, 2): st.binary(min_size=2, max_size=2),
}


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Records of one or two templates, in turns, few or many of each."""
    data, sets = b"", []
    for number in range(draw(st.integers(1, 2))):
        if not number or draw(st.booleans()):
            fields = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=7))
        template = make_template(300 + number, fields)
        data += make_message(make_set(2, template.raw), domain=1)
        for _ in range(draw(st.integers(1, 3))):
            records = [
                b"".join(draw(KINDS[field.pen, field.id, field.length]) for field in template.fields) for _ in range(3)
            ]
            sets += [(template, records)] * draw(st.sampled_from([1, 1, FEW]))
    return data + b"".join(
        make_message(make_set(template.id, b"".join(records)), domain=1)
        for template, records in draw(st.permutations(sets))
    )


def rows_of(data: bytes) -> list[dict[str, Any]]:
    """What is to be written, value by value."""
    rows = []
    for batch in decode(data):
        values = values_of(batch)
        for order, row in zip(batch.order.tolist(), zip(*values.values(), strict=True), strict=True):
            rows.append((order, {**context_fields(batch, CONTEXT), **dict(zip(values, row, strict=True))}))
        for (_, row), number in zip(rows[-batch.records :], batch.template_ids.tolist(), strict=False):
            row["_template"] = number
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def written(format_: str, data: bytes, fields: Sequence[str] | None = None, limit: int | None = None) -> str:
    out = io.BytesIO()
    writer = open_writer(format_, out, fields)
    writer.write(data, CONTEXT, limit)
    writer.close()
    return out.getvalue().decode()


@given(messages(), st.none() | st.integers(1, 200))
def test_json_lines_are_what_json_makes_of_each_record(data: bytes, limit: int | None) -> None:
    expected = [json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows_of(data)[:limit]]
    assert written("jsonl", data, limit=limit).splitlines() == expected


@given(messages(), st.booleans())
def test_csv_is_what_csv_makes_of_each_record(data: bytes, one: bool) -> None:
    fields = (
        ["octetDeltaCount"] if one else ["_org", "interfaceName", "octetDeltaCount", "basicList", "_position", "none"]
    )
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(fields)
    for row in rows_of(data):
        values = [row.get(name) for name in fields]
        rows.writerow([json.dumps(v, separators=(",", ":")) if isinstance(v, list) else v for v in values])
    assert written("csv", data, fields) == text.getvalue()


def a_column(template: Template, records: Sequence[bytes]) -> bytes:
    head = make_message(make_set(2, template.raw), domain=1)
    return head + b"".join(make_message(make_set(300, record), domain=1) for record in records)


def test_views_with_what_nobody_knows_are_written_as_value_by_value() -> None:
    template = make_template(300, [(0, 8, 4), (0, 12, 4), (0, 1, 8)])
    six = make_template(301, [(0, 27, 16), (0, 7, 2)])
    data = a_column(template, [bytes([192, 0, 2, number]) * 2 + bytes(8) for number in range(2 * FEW)])
    data += make_message(make_set(2, six.raw), domain=1)
    data += make_message(make_set(301, bytes(range(18)) * 2 * FEW), domain=1)
    out = io.BytesIO()
    open_writer("jsonl", out, None, [View()]).write(data, CONTEXT)
    rows = []
    for batch in decode(data):
        values = values_of(view(batch, CONTEXT))
        rows += [json.dumps(dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(found) == len(rows) == 4 * FEW
    assert [{name: value for name, value in row.items() if name[0] != "_"} for row in found] == [*map(json.loads, rows)]


def test_fields_named_are_written_in_their_order() -> None:
    data = a_column(make_template(300, [(0, 4, 1), (0, 82, V)]), [b"\x06\x01a"])
    assert written("jsonl", data, ["interfaceName", "none", "_template"]) == '{"interfaceName":"a","_template":300}\n'
    assert written("jsonl", data, ["none"]) == "{}\n"


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_one_long_value_among_many_short_ones_does_not_multiply(format_: str) -> None:
    template = make_template(300, [(0, 4, 1), (0, 82, V)])
    names = [b"a%d" % number for number in range(5_000)]
    names[2_500] = b"x" * 60_000
    data = a_column(template, [b"\x06" + make_variable(name) for name in names])
    tracemalloc.start()
    text = written(format_, data, ["interfaceName"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [line.strip('{}"').removeprefix('interfaceName":"') for line in text.splitlines()][-5_000:] == [
        name.decode() for name in names
    ]
    assert peak < 40 << 20
