"""Records as text-like values: what JSON and CSV have in them.

Addresses as text, integers as numbers, times as RFC 3339 UTC with the element's own precision, MAC addresses with
colons, octets as lower-case hex, strings with invalid UTF-8 replaced, lists as arrays of objects (see `structured`). A
float that is not finite and a time outside years 1 to 9999 are null: JSON has no form for them. So is what a stage
masked in its column: a value that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen

from sapflow.flows.columns import Column, FlowBatch
from sapflow.flows.registry import InformationElement, registry
from sapflow.flows.structured import ListDecoder, Value, renderer
from sapflow.flows.templates import Template


@frozen
class Context:
    """Where records stand: beside their fields in every output."""

    org: str = ""
    exporter: str = ""
    stream: str = ""
    position: int | None = None


def values_of(batch: FlowBatch) -> dict[str, list[Any]]:
    """Each column's values, in the batch's order."""
    return {
        name: _lists(column, element.type, batch.templates) if element.is_list else _values(column, element)
        for (name, column), element in zip(batch.columns.items(), batch.elements, strict=True)
    }


def _values(column: Column, element: InformationElement) -> list[Any]:
    if column.dtype.kind == "M":
        return _times(column)
    if column.dtype.kind == "f":
        return [value if math.isfinite(value) else None for value in column.tolist()]
    if element.type == "ipv4Address" and column.dtype.kind == "u":
        return [f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in column.tolist()]
    if column.dtype.kind in "VO":
        render = renderer(element.type)
        return [None if value is None else render(bytes(value)) for value in column.tolist()]
    plain: list[Any] = column.tolist()
    return plain


def _lists(column: Column, kind: str, templates: Mapping[int, Template]) -> list[list[Value]]:
    decoder = ListDecoder(templates.get, registry())
    return [decoder.render(kind, bytes(value)) for value in column.tolist()]


def _times(column: Column) -> list[str | None]:
    text = np.datetime_as_string(column)
    return [f"{value}Z" if len(value.split("-")[0]) == 4 and value[0] != "-" else None for value in text.tolist()]
