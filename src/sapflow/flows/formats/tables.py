"""Arrow streams and Parquet files: one table, whatever templates its records come from.

The table's columns are the context's fields, then the elements of all templates that the first LOOK_AHEAD_RECORDS
records have, in the order seen, up to MAX_COLUMNS; fields named are the columns instead, and where the registry knows
them nothing is waited for. A record is null where its template has no such element. What templates have beside the
table's columns is left out, and `left_out` names it. Memory is bounded: by what is looked ahead at, then by one Arrow
batch or one row group, and in Parquet by what its footer says of MAX_CHUNKS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import define, field, frozen
from numpy.typing import NDArray

from sapflow.errors import SapflowError
from sapflow.flows.columns.arrow import CONTEXT_TYPES, arrow_type, column_array, context_arrays
from sapflow.flows.columns.batches import FlowBatch, joined
from sapflow.flows.columns.records import Context
from sapflow.flows.formats.pieces import leave_out, pieces, weigh_columns
from sapflow.flows.meaning.stages import Stage
from sapflow.flows.registry import registry

LOOK_AHEAD_RECORDS = 65_536
LOOK_AHEAD_BYTES = 16 << 20
"""Of columns in memory; whichever is reached first."""
MAX_COLUMNS = 1_024
"""Of a table whose columns nobody named: an exporter may have as many elements as it likes."""
ROW_GROUP_RECORDS = 131_072
ROW_GROUP_BYTES = 32 << 20
MAX_CHUNKS = 65_536
"""Row groups times columns of a Parquet file: its footer, which is written at its end, holds some 850 bytes of each."""
ARRAY_BYTES = 256
"""What an array takes before it has any values."""


class Sink(Protocol):
    """Where a table's batches go."""

    def write_batch(self, batch: Any, held: int) -> None:
        """One pyarrow RecordBatch of the table's schema, and the bytes that it holds."""

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
        self._seen: dict[str, Any] = dict(CONTEXT_TYPES)
        self._table: _Table | None = None
        self._sink: Sink | None = None
        self._waiting: list[tuple[list[FlowBatch], Context]] = []
        self._waiting_records = self._waiting_bytes = 0
        if self._fields is not None:
            known = {name: kind for name in self._fields if (kind := known_type(name)) is not None}
            if len(known) == len(self._fields):
                self._seen = known
                self._begin()

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write records: returns how many."""
        count = 0
        for batches in pieces(data, context, self._stages, limit, weigh_columns):
            count += sum(batch.records for batch in batches)
            if self._table is not None:
                self._put(batches, context)
            else:
                self._wait(batches, context)
        return count

    def close(self) -> None:
        """End the table; without records it is one of no rows."""
        if self._table is None:
            self._begin()
        assert self._sink is not None
        self._sink.close()
        self._out.flush()

    def _wait(self, batches: list[FlowBatch], context: Context) -> None:
        """The piece waits for the columns to be known, which are then all that were seen."""
        for batch, (each, fixed) in zip(batches, weigh_columns(batches), strict=True):
            self._see(batch)
            self._waiting_records += batch.records
            self._waiting_bytes += int(np.broadcast_to(each, batch.records).sum()) + fixed
        self._waiting.append((batches, context))
        if self._waiting_records >= LOOK_AHEAD_RECORDS or self._waiting_bytes >= LOOK_AHEAD_BYTES:
            self._begin()

    def _see(self, batch: FlowBatch) -> None:
        for name, element in zip(batch.columns, batch.elements, strict=True):
            wanted = len(self._seen) < MAX_COLUMNS if self._fields is None else name in self._fields
            if name not in self._seen and wanted:
                self._seen[name] = arrow_type(element)

    def _begin(self) -> None:
        """The columns are known from here on."""
        types = self._seen
        if self._fields is not None:
            types = {name: known_type(name) or self._seen.get(name) or pa.string() for name in self._fields}
        self._table = _Table(types, self.left_out, chosen=self._fields is not None)
        self._sink = self._open_sink(pa.PythonFile(_Out(self._out), mode="w"), self._table.schema)
        waiting, self._waiting = self._waiting, []
        for batches, context in waiting:
            self._put(batches, context)

    def _put(self, batches: Sequence[FlowBatch], context: Context) -> None:
        assert self._table is not None
        assert self._sink is not None
        self._sink.write_batch(*self._table.rows(batches, context))


class _Table:
    """Records of any templates as rows of one schema."""

    def __init__(self, types: Mapping[str, Any], left_out: set[str], *, chosen: bool) -> None:
        self.schema = pa.schema(types.items())
        self._types = types
        self._left_out = left_out
        self._chosen = chosen
        """Nothing beside the columns was asked for."""
        self._nulls: dict[Any, Any] = {}

    def rows(self, batches: Sequence[FlowBatch], context: Context) -> tuple[Any, int]:
        """A record batch of the records in the order that they came, and the bytes of its own that it has."""
        # What the context says is made once: pieces may be of thousands of batches.
        beside = context_arrays(joined(batches), context)
        found = {name: [(0, array)] for name, array in beside.items() if name in self._types}
        first = 0
        for batch in batches:
            for name, array in self._arrays(batch).items():
                found.setdefault(name, []).append((first, array))
            first += batch.records
        ranks = None
        if len(batches) > 1:
            order = np.argsort(np.concatenate([batch.order for batch in batches]), kind="stable")
            ranks = np.empty(first, np.int64)
            ranks[order] = np.arange(first)
        columns = [
            self._null(kind, first) if (parts := found.get(name)) is None else _column(parts, first, ranks)
            for name, kind in self._types.items()
        ]
        held = sum(column.nbytes for name, column in zip(self._types, columns, strict=True) if name in found)
        return pa.record_batch(columns, schema=self.schema), held + ARRAY_BYTES * len(columns)

    def _arrays(self, batch: FlowBatch) -> dict[str, Any]:
        arrays = {}
        for name, element in zip(batch.columns, batch.elements, strict=True):
            if self._types.get(name) == arrow_type(element):
                arrays[name] = column_array(batch, name, element)
            elif name in self._types or not self._chosen:
                # Among the columns it may be another element of that name, of another type.
                leave_out(self._left_out, [name])
        return arrays

    def _null(self, kind: Any, count: int) -> Any:
        """A column of nothing, over memory that all such columns share."""
        known = self._nulls.get(kind)
        if known is None or len(known) < count:
            known = self._nulls[kind] = pa.nulls(count, kind)
        return known[:count]


def _column(parts: list[tuple[int, Any]], count: int, ranks: NDArray[np.int64] | None) -> Any:
    """The rows of a column in their order, of arrays whose rows stand from those places on; null where none does.

    `ranks` says where in that order each row is; None: as they stand.
    """
    if ranks is None:
        return parts[0][1]
    places = np.full(count, -1)
    at = 0
    for first, array in parts:
        size = len(array)
        places[ranks[first : first + size]] = np.arange(at, at + size)
        at += size
    arrays = [array for _, array in parts]
    every = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
    return every.take(pa.array(places, mask=None if at == count else places < 0))


def arrow_stream(out: Any, schema: Any) -> Sink:
    """An Arrow IPC stream: a record batch for each piece of data written."""
    return _Stream(pa.ipc.new_stream(out, schema))


def parquet_file(out: Any, schema: Any) -> Sink:
    """A Parquet file of bounded row groups. Of text its footer has no bounds, which may be as long as the text."""
    bounded = [
        name
        for name, kind in zip(schema.names, schema.types, strict=True)
        if name in CONTEXT_TYPES or not (pa.types.is_string(kind) or pa.types.is_binary(kind))
    ]
    return _RowGroups(pq.ParquetWriter(out, schema, compression="zstd", write_statistics=bounded), len(schema))


@frozen
class _Stream:
    """Batches as they come."""

    file: Any

    def write_batch(self, batch: Any, held: int) -> None:
        self.file.write_batch(batch)

    def close(self) -> None:
        self.file.close()


@define
class _RowGroups:
    """Batches put together into row groups, which are what readers skip and decompress at once."""

    file: Any
    columns: int
    _pending: list[Any] = field(factory=list)
    _records: int = 0
    _bytes: int = 0
    _chunks: int = 0
    _written: int = 0

    def write_batch(self, batch: Any, held: int) -> None:
        """Raises SapflowError when the file has ended for its footer's size."""
        self._pending.append(batch)
        self._records += batch.num_rows
        self._bytes += held
        if self._records >= ROW_GROUP_RECORDS or self._bytes >= ROW_GROUP_BYTES:
            self._write()
            if self._chunks + self.columns > MAX_CHUNKS:
                self.close()
                raise SapflowError(self._full())

    def close(self) -> None:
        if self._pending:
            self._write()
        self.file.close()

    def _full(self) -> str:
        groups = self._chunks // self.columns
        return (
            f"a Parquet file has at most {MAX_CHUNKS:,} column chunks, for its footer is kept in memory: it ends, "
            f"whole, after {self._written:,} records in {groups:,} row groups of {self.columns:,} columns, and what "
            "came later is not in it; name fewer columns with --fields, write several files, or use --format arrow"
        )

    def _write(self) -> None:
        self.file.write_table(pa.Table.from_batches(self._pending), row_group_size=self._records)
        self._pending.clear()
        self._chunks += self.columns
        self._written += self._records
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


def known_type(name: str) -> Any:
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
