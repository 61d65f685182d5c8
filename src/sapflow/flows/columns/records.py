"""Records as text-like values: what JSON and CSV have in them.

Addresses as text, integers as numbers, times as RFC 3339 UTC with the element's own precision, MAC addresses with
colons, octets as lower-case hex, strings with invalid UTF-8 replaced, lists as arrays of objects (see `structured`). A
float that is not finite and a time outside years 1 to 9999 are null: JSON has no form for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.tables import Column
from sapflow.flows.columns.variable import VariableColumn
from sapflow.flows.ipfix.structured import ListDecoder, Value, renderer
from sapflow.flows.registry import InformationElement, registry


@frozen
class Context:
    """Where records stand: beside their fields in every output."""

    org: str = ""
    exporter: str = ""
    stream: str = ""
    position: int | None = None


def context_fields(batch: FlowBatch, context: Context) -> dict[str, str | int | None]:
    """What stands beside the fields of each record; see `context_columns` for what may be another for some."""
    return {
        "_org": context.org,
        "_exporter": context.exporter,
        "_stream": context.stream,
        "_domain": batch.domain,
        "_template": batch.template.id,
        "_position": context.position,
    }


def context_columns(batch: FlowBatch) -> dict[str, NDArray[Any]]:
    """Of the context, what records of one batch differ in."""
    if not len(batch.domains) and not len(batch.template_ids):
        return {}
    columns: dict[str, NDArray[Any]] = {"_domain": batch.domains, "_template": batch.template_ids}
    return {name: column for name, column in columns.items() if len(column)}


def values_of(batch: FlowBatch) -> dict[str, list[Any]]:
    """Each column's values, in the batch's order."""
    return {
        name: column_values(batch, name, element) for name, element in zip(batch.columns, batch.elements, strict=True)
    }


def column_values(batch: FlowBatch, name: str, element: InformationElement) -> list[Any]:
    """One column's values."""
    if element.is_list:
        return list(list_values(batch, name, element))
    column = batch.columns[name]
    if isinstance(column, np.ma.MaskedArray):
        known = _values(np.ma.getdata(column), element)
        masks = np.ma.getmaskarray(column).tolist()
        return [None if masked else value for value, masked in zip(known, masks, strict=True)]
    return _values(column, element)


def list_values(batch: FlowBatch, name: str, element: InformationElement) -> Iterator[Value]:
    """A column's lists one at a time: as objects they take a hundred times their octets."""
    decoder = ListDecoder(batch.templates.get, registry())
    return (decoder.render(element.type, value) for value in batch.columns[name].tolist())


def _values(column: Column, element: InformationElement) -> list[Any]:
    if isinstance(column, VariableColumn) or column.dtype.kind in "VO":
        return _rendered(column.tolist(), renderer(element.type))
    if column.dtype.kind == "M":
        return _times(column)
    if column.dtype.kind == "f":
        return [value if math.isfinite(value) else None for value in column.tolist()]
    plain: list[Any] = column.tolist()
    return plain


def _rendered(values: list[Any], render: Callable[[bytes], Value]) -> list[Any]:
    """Each different value is rendered once; what a stage put in as text or number stays."""
    texts = {value: render(value) if isinstance(value, bytes) else value for value in set(values)}
    return [texts[value] for value in values]


def _times(column: NDArray[np.datetime64]) -> list[str | None]:
    text = np.datetime_as_string(column)
    return [f"{value}Z" if len(value.split("-")[0]) == 4 and value[0] != "-" else None for value in text.tolist()]
