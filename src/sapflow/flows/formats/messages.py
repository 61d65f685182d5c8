"""Records as messages that each stand for themselves: a JSON object, or an Arrow stream of one schema.

For logs such as Kafka's, whose readers get messages one by one and in any place. What a message holds is what the
writers of the same formats give; made in pieces, so that no more than one of them is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context
from sapflow.flows.formats.pieces import pieces, weigh_columns
from sapflow.flows.formats.text import json_lines

if TYPE_CHECKING:
    import pyarrow

MESSAGE_FORMATS = ("jsonl", "arrow")


@frozen(slots=True)
class Messages:
    """Some messages, and how many records are in each of them."""

    values: list[bytes] = field(repr=False)
    records: int = 1


Make: TypeAlias = Callable[[bytes, Context, int], Iterator[Messages]]
"""Of self-contained IPFIX messages and their context, messages of at most so many bytes each, where that can be: a
single record is never cut. Raises MalformedMessage."""


def maker(name: str, fields: Sequence[str] | None = None) -> Make:
    """A format of MESSAGE_FORMATS, of all fields or of those named."""
    if name == "jsonl":
        return partial(_json, fields=fields)
    assert name == "arrow", name
    return partial(_arrow, fields=fields)


def _json(data: bytes, context: Context, most_bytes: int, *, fields: Sequence[str] | None) -> Iterator[Messages]:
    """An object each, as the lines that `tail` gives."""
    rest: list[bytes] = []
    for block in json_lines(data, context, fields):
        *whole, last = block.split(b"\n")
        if whole and rest:
            whole[0] = b"".join((*rest, whole[0]))
            rest.clear()
        if last:
            rest.append(last)
        if whole:
            yield Messages(whole)
    assert not rest, "every line ends"


def _arrow(data: bytes, context: Context, most_bytes: int, *, fields: Sequence[str] | None) -> Iterator[Messages]:
    """A stream for the records of each template, in the order in which they came."""
    for batches in pieces(data, context, (), None, weigh_columns):
        for batch in batches:
            columns = _columns(batch, context, fields)
            if columns.num_columns:
                yield from _streams(columns, most_bytes)


def _streams(batch: pyarrow.RecordBatch, most_bytes: int) -> Iterator[Messages]:
    # pyarrow is loaded where it is used, and nowhere else.
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    made = sink.getvalue()
    if made.size <= most_bytes or batch.num_rows <= 1:
        yield Messages([made.to_pybytes()], batch.num_rows)
        return
    half = batch.num_rows // 2
    yield from _streams(batch.slice(0, half), most_bytes)
    yield from _streams(batch.slice(half), most_bytes)


def _columns(batch: FlowBatch, context: Context, fields: Sequence[str] | None) -> pyarrow.RecordBatch:
    """All columns, or those named, in their order: null where the template has none of a name that is known."""
    import pyarrow as pa

    from sapflow.flows.columns.arrow import record_batch
    from sapflow.flows.formats.tables import known_type

    found = record_batch(batch, context)
    if fields is None:
        return found
    arrays = {}
    for name in dict.fromkeys(fields):
        if name in found.schema.names:
            arrays[name] = found.column(name)
        elif (kind := known_type(name)) is not None:
            arrays[name] = pa.nulls(batch.records, kind)
    return pa.record_batch(list(arrays.values()), list(arrays))
