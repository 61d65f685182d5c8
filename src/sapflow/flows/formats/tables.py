"""Arrow streams and Parquet files: one table, whatever templates its records come from.

The table's columns are the context's fields, then the elements of all templates that the first LOOK_AHEAD_RECORDS
records have, in the order seen; fields named are the columns instead, and where the registry knows them nothing is
waited for. A record is null where its template has no such element. What templates that come later have beside the
table's columns is left out, and `left_out` names it. Memory is bounded: by what is looked ahead at, then by one Arrow
batch or one row group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import define, field

from sapflow.flows.arrow import CONTEXT_TYPES, arrow_type, column_array, context_arrays
from sapflow.flows.columns import FlowBatch
from sapflow.flows.formats.text import batches_of
from sapflow.flows.records import Context
from sapflow.flows.registry import registry
from sapflow.flows.stages import Stage

LOOK_AHEAD_RECORDS = 65_536
LOOK_AHEAD_BYTES = 16 << 20
"""Of messages; whichever is reached first."""
ROW_GROUP_RECORDS = 131_072
ROW_GROUP_BYTES = 32 << 20


class Sink(Protocol):
    """Where a table's batches go."""

    def write_batch(self, batch: Any) -> None:
        """One pyarrow RecordBatch of the table's schema."""

    def close(self) -> None:
        """Write what ends the table."""


class TableWriter:
    """Writes one table of the records of any templates."""

    def __init__(
        self,
        out: BinaryIO,
        fields: Sequence[str] | None = None,
        stages: Sequence[Stage] = (),
        *,
        open_sink: Callable[[Any, Any], Sink],
    ) -> None:
        self.left_out: set[str] = set()
        self._out = out
        self._open_sink = open_sink
        self._fields = None if fields is None else tuple(dict.fromkeys(fields))
        self._stages = stages
        self._types: dict[str, Any] = {}
        self._sink: Sink | None = None
        self._waiting: list[tuple[list[FlowBatch], Context]] = []
        self._waiting_records = self._waiting_bytes = 0
        if self._fields is not None:
            self._types = {name: kind for name in self._fields if (kind := _known_type(name)) is not None}
            if len(self._types) == len(self._fields):
                self._begin()

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write records: returns how many."""
        batches = batches_of(data, context, self._stages, limit)
        count = sum(batch.records for batch in batches)
        if self._sink is not None:
            self._put(self._sink, batches, context)
            return count
        self._waiting.append((batches, context))
        self._waiting_records += count
        self._waiting_bytes += len(data)
        if self._waiting_records >= LOOK_AHEAD_RECORDS or self._waiting_bytes >= LOOK_AHEAD_BYTES:
            self._begin()
        return count

    def close(self) -> None:
        """End the table; without records it is one of no rows."""
        (self._sink or self._begin()).close()
        self._out.flush()

    def _begin(self) -> Sink:
        """The columns are known from here on."""
        seen = dict(CONTEXT_TYPES)
        for batches, _ in self._waiting:
            for batch in batches:
                for name, element in zip(batch.columns, batch.elements, strict=True):
                    seen.setdefault(name, arrow_type(element))
        if self._fields is None:
            self._types = seen
        else:
            self._types = {name: self._types.get(name) or seen.get(name, pa.string()) for name in self._fields}
        self._sink = sink = self._open_sink(pa.PythonFile(_Out(self._out), mode="w"), pa.schema(self._types.items()))
        for batches, context in self._waiting:
            self._put(sink, batches, context)
        self._waiting.clear()
        return sink

    def _put(self, sink: Sink, batches: Sequence[FlowBatch], context: Context) -> None:
        """The records of one piece of data, in the order that they came."""
        if not batches:
            return
        rows = [self._rows(batch, context) for batch in batches]
        if len(rows) == 1:
            sink.write_batch(rows[0])
            return
        order = np.argsort(np.concatenate([batch.order for batch in batches]), kind="stable")
        for batch in pa.Table.from_batches(rows).take(order).combine_chunks().to_batches():
            sink.write_batch(batch)

    def _rows(self, batch: FlowBatch, context: Context) -> Any:
        found = context_arrays(batch, context)
        for name, element in zip(batch.columns, batch.elements, strict=True):
            if name not in self._types:
                if self._fields is None:
                    self.left_out.add(name)
            elif arrow_type(element) == self._types[name]:
                found[name] = column_array(batch, name, element)
            else:
                # Another element of that name, of another type.
                self.left_out.add(name)
        columns = [found.get(name) for name in self._types]
        arrays = [
            pa.nulls(batch.records, kind) if column is None else column
            for column, kind in zip(columns, self._types.values(), strict=True)
        ]
        return pa.record_batch(arrays, schema=pa.schema(self._types.items()))


def arrow_stream(out: Any, schema: Any) -> Sink:
    """An Arrow IPC stream: a record batch for each piece of data written."""
    sink: Sink = pa.ipc.new_stream(out, schema)
    return sink


def parquet_file(out: Any, schema: Any) -> Sink:
    """A Parquet file of bounded row groups."""
    return _RowGroups(pq.ParquetWriter(out, schema, compression="zstd"))


@define
class _RowGroups:
    """Batches put together into row groups, which are what readers skip and decompress at once."""

    file: Any
    _pending: list[Any] = field(factory=list)
    _records: int = 0
    _bytes: int = 0

    def write_batch(self, batch: Any) -> None:
        self._pending.append(batch)
        self._records += batch.num_rows
        self._bytes += batch.get_total_buffer_size()
        if self._records >= ROW_GROUP_RECORDS or self._bytes >= ROW_GROUP_BYTES:
            self._write()

    def close(self) -> None:
        if self._pending:
            self._write()
        self.file.close()

    def _write(self) -> None:
        self.file.write_table(pa.Table.from_batches(self._pending), row_group_size=self._records)
        self._pending.clear()
        self._records = self._bytes = 0


class _Out:
    """An output that is only ever appended to, a pipe too: it counts where it is, and is not ours to close."""

    closed = False

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._at = 0

    def write(self, data: Any) -> int:
        self._out.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


def _known_type(name: str) -> Any:
    """The type of a column by its name alone; None when no registry has it."""
    if name in CONTEXT_TYPES:
        return CONTEXT_TYPES[name]
    if re.fullmatch(r"e\d+id\d+", name):
        return pa.binary()
    forward = f"{name[7:8].lower()}{name[8:]}" if name.startswith("reverse") else name
    for candidate in (name, re.sub(r"_\d+$", "", name), re.sub(r"_\d+$", "", forward)):
        try:
            return arrow_type(registry().by_name(candidate))
        except KeyError:
            continue
    return None
