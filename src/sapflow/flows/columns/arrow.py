"""Records for Arrow: a FlowBatch's columns as arrays of pyarrow, over the same memory where Arrow's layout is ours.

Types go by the element, whatever its size in a template, so that batches of several templates fit one schema:

| element | Arrow |
| --- | --- |
| unsigned8 … unsigned64, signed8 … signed64 | uint8 … uint64, int8 … int64 |
| float32, float64, boolean | float, double, bool |
| dateTimeSeconds, -Milliseconds, -Microseconds, -Nanoseconds | timestamp of that unit, UTC |
| ipv4Address, ipv6Address, macAddress | fixed-size binary of 4, 16, 6 |
| ipAddress (what a view makes of either version) | fixed-size binary of 16, IPv4 mapped |
| string | utf8, invalid parts replaced, without the NULs at its end |
| octetArray and what no registry has | binary |
| lists (RFC 6313) | utf8: what JSON lines have |

A value that its type has no form for (an address of 5 octets, a number wider than its element, a time outside years 1
to 9999) is null. Memory is shared for numbers of their element's own size, times, addresses, octets, and strings that
are valid as they are. pyarrow is imported with this module, and this module only where Arrow is asked for.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context, column_values, context_columns, context_fields, list_values
from sapflow.flows.columns.tables import Column
from sapflow.flows.columns.variable import VariableColumn
from sapflow.flows.registry import InformationElement

_TYPES: dict[str, Any] = {
    **{f"unsigned{bits}": getattr(pa, f"uint{bits}")() for bits in (8, 16, 32, 64)},
    **{f"signed{bits}": getattr(pa, f"int{bits}")() for bits in (8, 16, 32, 64)},
    "float32": pa.float32(),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
    "dateTimeSeconds": pa.timestamp("s", "UTC"),
    "dateTimeMilliseconds": pa.timestamp("ms", "UTC"),
    "dateTimeMicroseconds": pa.timestamp("us", "UTC"),
    "dateTimeNanoseconds": pa.timestamp("ns", "UTC"),
    "ipv4Address": pa.binary(4),
    "ipv6Address": pa.binary(16),
    "ipAddress": pa.binary(16),
    "macAddress": pa.binary(6),
    "string": pa.string(),
    **dict.fromkeys(("basicList", "subTemplateList", "subTemplateMultiList"), pa.string()),
}
CONTEXT_TYPES: dict[str, Any] = {
    "_org": pa.string(),
    "_exporter": pa.string(),
    "_stream": pa.string(),
    "_domain": pa.uint32(),
    "_template": pa.uint16(),
    "_position": pa.int64(),
}
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
_YEARS = {
    **{unit: (_FIRST_S * ticks, (_LAST_S + 1) * ticks - 1) for unit, ticks in (("s", 1), ("ms", 1000), ("us", 10**6))},
    "ns": (-(1 << 63) + 1, (1 << 63) - 1),
}
"""The ticks of years 1 to 9999, by unit; NaT is none of them."""


def arrow_type(element: InformationElement) -> Any:
    """The Arrow type of an element's columns."""
    return _TYPES.get(element.type, pa.binary())


def record_batch(batch: FlowBatch, context: Context | None = None) -> Any:
    """A pyarrow RecordBatch of the batch's columns; with a context, its fields stand before them."""
    arrays: dict[str, Any] = {} if context is None else context_arrays(batch, context)
    for name, element in zip(batch.columns, batch.elements, strict=True):
        arrays[name] = column_array(batch, name, element)
    return pa.record_batch(list(arrays.values()), list(arrays))


def context_arrays(batch: FlowBatch, context: Context) -> dict[str, Any]:
    """The context's fields."""
    arrays = {
        name: pa.repeat(pa.scalar(value, CONTEXT_TYPES[name]), batch.records)
        for name, value in context_fields(batch, context).items()
    }
    arrays |= {name: _shared(column, CONTEXT_TYPES[name]) for name, column in context_columns(batch).items()}
    return arrays


def column_array(batch: FlowBatch, name: str, element: InformationElement) -> Any:
    """One column as an array of its element's type."""
    column, kind = batch.columns[name], arrow_type(element)
    unknown = None
    if isinstance(column, np.ma.MaskedArray):
        column, unknown = np.ma.getdata(column), np.ma.getmaskarray(column)
    found = None if element.is_list else _array(column, kind)
    if found is None:
        return _from_values(batch, name, element, kind)
    return found if unknown is None else _without(found, unknown)


def _without(array: Any, unknown: NDArray[np.bool_]) -> Any:
    """The array with nulls where a stage masked its column."""
    known = ~unknown & array.is_valid().to_numpy(zero_copy_only=False)
    bitmap = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(array.type, len(array), [bitmap, *array.buffers()[1:]])


def _array(column: Column, kind: Any) -> Any:
    """The column in Arrow's layout; None when its values have to be looked at one by one."""
    if isinstance(column, VariableColumn):
        return _binary(column, kind) if kind == pa.binary() or (kind == pa.string() and _is_text(column)) else None
    match column.dtype.kind:
        case "M" if pa.types.is_timestamp(kind) and np.datetime_data(column.dtype)[0] == kind.unit:
            return _times(column, kind)
        case "b" if kind == pa.bool_():
            return pa.array(column)
        case "u" | "i" if pa.types.is_integer(kind):
            return _shared(column, kind) if column.dtype == kind.to_pandas_dtype() else _fitting(column, kind)
        case "f" if pa.types.is_floating(kind):
            return _shared(column.astype(kind.to_pandas_dtype(), copy=False), kind)
        case "V" if kind == pa.binary():
            width = column.dtype.itemsize
            offsets = np.arange(len(column) + 1, dtype=np.int32) * np.int32(width)
            return _binary(VariableColumn(offsets, _octets(column)), kind)
        case "V" if pa.types.is_fixed_size_binary(kind):
            same = column.dtype.itemsize == kind.byte_width
            return _shared(column, kind) if same else pa.nulls(len(column), kind)
    return None


def _shared(column: NDArray[Any], kind: Any) -> Any:
    """An array over the column's own memory."""
    return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(_octets(column))])


def _octets(column: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(column).view(np.uint8).reshape(-1) if column.dtype.itemsize else np.zeros(0, np.uint8)


def _fitting(column: NDArray[Any], kind: Any) -> Any:
    """Integers of another width than their element's; those that it cannot hold are null."""
    bounds = np.iinfo(kind.to_pandas_dtype())
    beyond = (column < bounds.min) | (column > bounds.max)
    mask = beyond if beyond.any() else None
    return pa.array(column.astype(bounds.dtype), kind, mask=mask)


def _times(column: NDArray[Any], kind: Any) -> Any:
    ticks = column.view(np.int64)
    first, last = _YEARS[kind.unit]
    beyond = (ticks < first) | (ticks > last)
    if beyond.any():
        return pa.array(ticks, mask=beyond).view(kind)
    return _shared(column, kind)


def _binary(column: VariableColumn, kind: Any) -> Any:
    buffers = [None, pa.py_buffer(column.offsets), pa.py_buffer(column.data)]
    if column.offsets.dtype != np.int32:
        large = pa.large_string() if kind == pa.string() else pa.large_binary()
        return pa.Array.from_buffers(large, len(column), buffers).cast(kind)
    return pa.Array.from_buffers(kind, len(column), buffers)


def _is_text(column: VariableColumn) -> bool:
    """Whether all values are valid UTF-8 without NUL as they are."""
    octets = column.octets()
    if not octets.all():
        return False
    if not (octets & 0x80).any():
        return True
    inner = column.offsets[:-1][np.diff(column.offsets) > 0] - column.offsets[0]
    if ((octets[inner] & 0xC0) == 0x80).any():
        # A character would be shared by two values.
        return False
    try:
        octets.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _from_values(batch: FlowBatch, name: str, element: InformationElement, kind: Any) -> Any:
    """An array of values looked at one by one; those that its type cannot hold are null."""
    if pa.types.is_fixed_size_binary(kind):
        octets = batch.columns[name].tolist()
        return pa.array([value if _fills(value, kind.byte_width) else None for value in octets], kind)
    if element.is_list:
        return pa.array([_json(value) for value in list_values(batch, name, element)], kind)
    values = column_values(batch, name, element)
    return pa.array(values if kind == pa.string() else [_own(value, kind) for value in values], kind)


_json = json.JSONEncoder(separators=(",", ":")).encode


def _fills(value: Any, width: int) -> bool:
    return isinstance(value, bytes) and len(value) == width


def _own(value: Any, kind: Any) -> Any:
    """A value if its type can hold it."""
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    return value
