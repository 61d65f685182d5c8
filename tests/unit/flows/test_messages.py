"""Records as messages that each stand for themselves."""

import io

import pyarrow as pa
import pytest

from sapflow.flows.columns.records import Context
from sapflow.flows.formats import open_writer
from sapflow.flows.formats.messages import maker
from sapflow.flows.reference import reference_work
from tests.unit.flows.flows_made import messages

CONTEXT = Context("acme", "192.0.2.1:9", "00", 7)
TWO_TEMPLATES = messages(
    *[{"octetDeltaCount": n, "sourceTransportPort": n} for n in range(60)], template=300
) + messages(*[{"interfaceName": "eth0\n" * n} for n in range(60)], template=301)


def written(form: str, data: bytes, fields: list[str] | None = None) -> bytes:
    out = io.BytesIO()
    writer = open_writer(form, out, fields)
    writer.write(data, CONTEXT)
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("data", [reference_work(3), TWO_TEMPLATES, b""])
@pytest.mark.parametrize("fields", [None, ["_position", "octetDeltaCount"], ["nothing"]])
def test_each_object_is_a_line_of_the_same_output(data: bytes, fields: list[str] | None) -> None:
    made = list(maker("jsonl", fields)(data, CONTEXT, 1000))
    assert b"".join(value + b"\n" for some in made for value in some.values) == written("jsonl", data, fields)
    assert {some.records for some in made} <= {1}


def test_a_record_whose_line_is_longer_than_a_block_is_one_object() -> None:
    data = messages({"interfaceName": "\x01" * 60_000})
    (made,) = maker("jsonl")(data, CONTEXT, 1000)
    assert [value + b"\n" for value in made.values] == [written("jsonl", data)]
    assert len(made.values[0]) > 360_000


def test_each_arrow_message_is_a_stream_of_one_template_within_the_bytes_that_it_may_have() -> None:
    made = list(maker("arrow")(TWO_TEMPLATES, CONTEXT, 4000))
    assert all(len(value) <= 4000 for some in made for value in some.values)
    tables = [pa.ipc.open_stream(some.values[0]).read_all() for some in made]
    assert [table.num_rows for table in tables] == [some.records for some in made]
    whole = pa.ipc.open_stream(written("arrow", TWO_TEMPLATES)).read_all()
    assert pa.concat_tables(tables, promote_options="default").select(whole.schema.names).equals(whole)


def test_fields_that_are_named_are_columns_of_every_arrow_message() -> None:
    made = list(maker("arrow", ["octetDeltaCount", "interfaceName", "nothing"])(TWO_TEMPLATES, CONTEXT, 1 << 20))
    tables = [pa.ipc.open_stream(some.values[0]).read_all() for some in made]
    assert [table.schema.names for table in tables] == [["octetDeltaCount", "interfaceName"]] * 2
    assert pa.concat_tables(tables)["octetDeltaCount"].null_count == 60


def test_one_record_is_never_cut() -> None:
    (made,) = maker("arrow")(messages({"interfaceName": "x" * 9000}), CONTEXT, 4000)
    assert made.records == 1
    assert len(made.values[0]) > 9000
