"""JSON lines and CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from attrs import frozen

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context, column_values, context_columns, context_fields, list_values
from sapflow.flows.formats.cells import ROW, Cells, Notation, cells_of, encoded
from sapflow.flows.formats.lines import Part, in_order, lines
from sapflow.flows.formats.pieces import CONTEXT_COLUMNS, STAGED_COLUMNS, Costs, leave_out, pieces, weigh_text
from sapflow.flows.meaning.stages import Stage

FEW = 48
"""So many records are sooner rendered value by value than column by column."""
MAX_KEYS = 4_096
"""Names that are kept as they stand in JSON."""
_QUOTED = re.compile(r'[,"\r\n]')
"""What makes a value of CSV stand in quotes."""
_EMPTY_BYTES = 3
"""What a column costs in a row of CSV that has no value for it."""


def text_columns(batch: FlowBatch, wanted: Collection[str] | None, notation: Notation) -> dict[str, Cells]:
    """The text of those of a batch's columns that are wanted (None: all), and of the context's where records differ."""
    cells: dict[str, Cells] = {}
    for name, numbers in context_columns(batch).items():
        if wanted is None or name in wanted:
            cells[name] = cells_of(numbers, "unsigned32", notation) or encoded(numbers.tolist(), notation)
    few = batch.records < FEW
    for (name, column), element in zip(batch.columns.items(), batch.elements, strict=True):
        if wanted is None or name in wanted:
            if element.is_list:
                cells[name] = encoded(list_values(batch, name, element), notation)
                continue
            found = None if few else cells_of(column, element.type, notation)
            cells[name] = found or encoded(column_values(batch, name, element), notation)
    return cells


@frozen
class Head:
    """The context's fields as text, but for what batches differ in, and where they stand among the others.

    A hostile message is of thousands of batches: what they have in common is made once.
    """

    texts: Mapping[str, bytes]
    notation: Notation

    @classmethod
    def of(cls, batches: Sequence[FlowBatch], context: Context, notation: Notation) -> Head:
        """Of some batches, one at least."""
        fields = context_fields(batches[0], context)
        return cls({name: notation.encode(value) for name, value in fields.items()}, notation)

    def of_batch(self, batch: FlowBatch) -> dict[str, bytes]:
        """All of them."""
        return {**self.texts, "_domain": b"%d" % batch.domain, "_template": b"%d" % batch.template.id}


class JsonLinesWriter:
    """One JSON object a line."""

    def __init__(self, out: BinaryIO, fields: Sequence[str] | None = None, stages: Sequence[Stage] = ()) -> None:
        self.left_out: set[str] = set()
        """Nothing: every line has what its record has."""
        self._out = out
        self._fields = fields
        self._stages = stages

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write records: returns how many."""
        count = 0
        for batches in pieces(data, context, self._stages, limit, weigh_text):
            for text in _json_lines(batches, context, self._fields):
                self._out.write(text)
            count += sum(batch.records for batch in batches)
        return count

    def close(self) -> None:
        """Nothing is due."""
        self._out.flush()


def json_lines(data: bytes, context: Context, fields: Sequence[str] | None = None) -> Iterator[bytes]:
    """What JsonLinesWriter writes of self-contained messages, in blocks; a long line may go on in the next one."""
    for batches in pieces(data, context, (), None, weigh_text):
        yield from _json_lines(batches, context, fields)


def _json_lines(batches: Sequence[FlowBatch], context: Context, fields: Sequence[str] | None) -> Iterator[bytes]:
    head = Head.of(batches, context, JSON)
    return _blocks(batches, [_json_parts(batch, head, fields) for batch in batches])


def _json_parts(batch: FlowBatch, head: Head, fields: Sequence[str] | None) -> list[Part]:
    texts = head.of_batch(batch)
    names: Sequence[str] = [*texts, *batch.columns]
    if fields is not None:
        names = [name for name in dict.fromkeys(fields) if name in texts or name in batch.columns]
    cells = text_columns(batch, None if fields is None else names, JSON)
    parts: list[Part] = []
    literal, before = b"", b"{"
    for name in names:
        literal += before + _key(name)
        before = b","
        if name in cells:
            parts += (literal, cells[name])
            literal = b""
        else:
            literal += texts[name]
    return [*parts, literal + (b"}\n" if names else b"{}\n")]


@lru_cache(MAX_KEYS)
def _key(name: str) -> bytes:
    return _json(name) + b":"


class CsvWriter:
    """One header, then one row a record.

    Without fields named, the header is that of the first record; `left_out` then names what later records had beside
    it, which a fixed header has no place for.
    """

    def __init__(self, out: BinaryIO, fields: Sequence[str] | None = None, stages: Sequence[Stage] = ()) -> None:
        self.left_out: set[str] = set()
        self._out = out
        self._named = fields is not None
        self._fields: Sequence[str] | None = fields
        self._begun = False
        self._stages = stages

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write records: returns how many."""
        count = 0
        for batches in pieces(data, context, self._stages, limit, self._weigh):
            if self._fields is None:
                first = min(batches, key=lambda batch: int(batch.order[0]))
                self._fields = (*context_fields(first, context), *first.columns)
            self._begin(self._fields)
            # A row of one empty value would be an empty line, which readers pass over.
            head = Head.of(batches, context, CSV if len(self._fields) > 1 else CSV_ALONE)
            wanted = frozenset(self._fields)
            for text in _blocks(batches, [self._parts(batch, head, self._fields, wanted) for batch in batches]):
                self._out.write(text)
            count += sum(batch.records for batch in batches)
        return count

    def close(self) -> None:
        """A file with named fields has its header even when it has no record."""
        if self._fields is not None:
            self._begin(self._fields)
        self._out.flush()

    def _weigh(self, batches: Sequence[FlowBatch]) -> list[Costs]:
        """Every row has all of the header's columns, which are those of one of the batches if there is none yet."""
        if self._fields is None:
            width = max((len(batch.columns) for batch in batches), default=0) + CONTEXT_COLUMNS + STAGED_COLUMNS
        else:
            width = len(self._fields)
        return [(each + _EMPTY_BYTES * width, fixed) for each, fixed in weigh_text(batches)]

    def _begin(self, fields: Sequence[str]) -> None:
        if not self._begun:
            self._begun = True
            self._out.write(b",".join(map(_csv, fields)) + b"\r\n")

    def _parts(self, batch: FlowBatch, head: Head, fields: Sequence[str], wanted: frozenset[str]) -> list[Part]:
        if not self._named:
            leave_out(self.left_out, batch.columns.keys() - wanted)
        texts, empty = head.of_batch(batch), head.notation.encode(None)
        cells = text_columns(batch, wanted, head.notation)
        parts: list[Part] = []
        literal = b""
        for name in fields:
            if name in cells:
                parts += (literal, cells[name])
                literal = b","
            else:
                literal += texts.get(name, empty) + b","
        return [*parts, literal[:-1] + b"\r\n"]


def _blocks(batches: Sequence[FlowBatch], parts: Sequence[Sequence[Part]]) -> Iterator[bytes]:
    """The batches' records in the order that they came."""
    if len(batches) == 1:
        yield from lines(parts[0], batches[0].records)
    else:
        blocks = [b"".join(lines(part, batch.records, ROW)) for part, batch in zip(parts, batches, strict=True)]
        yield in_order(blocks, [batch.order for batch in batches])


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    return (str(value) if type(value) is int else _encode(value)).encode()


def _csv(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, list):
        value = _encode(value)
    text = str(value)
    if _QUOTED.search(text):
        text = '"' + text.replace('"', '""') + '"'
    return text.encode()


def _csv_alone(value: Any) -> bytes:
    return _csv(value) or b'""'


def _but(special: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Printable ASCII but for some."""
    return np.array([32 <= octet < 127 and octet not in special for octet in range(256)])


JSON = Notation(_json, b'"', _but(b'"\\'), b"true", b"false")
CSV = Notation(_csv, b"", _but(b',"'), b"True", b"False")
CSV_ALONE = Notation(_csv_alone, b"", np.zeros(256, np.bool_), b"True", b"False")
