"""Records as text-like values: what JSON and CSV have in them.

Addresses as text, integers as numbers, times as RFC 3339 UTC with the element's own precision, MAC addresses with
colons, octets as lower-case hex, strings with invalid UTF-8 replaced. A float that is not finite and a time outside
years 1 to 9999 are null: JSON has no form for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import numpy as np
from attrs import frozen

from sapflow.flows.columns import Column, FlowBatch
from sapflow.flows.registry import InformationElement

Value = str | int | float | bool | None


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
        name: _values(column, element)
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
        render = _BYTES.get(element.type, bytes.hex)
        return [render(bytes(value)) for value in column.tolist()]
    plain: list[Any] = column.tolist()
    return plain


def _times(column: Column) -> list[str | None]:
    text = np.datetime_as_string(column)
    return [f"{value}Z" if len(value.split("-")[0]) == 4 and value[0] != "-" else None for value in text.tolist()]


def _integer(value: bytes) -> Value:
    return int.from_bytes(value, "big") if 1 <= len(value) <= 8 else value.hex()


def _signed(value: bytes) -> Value:
    return int.from_bytes(value, "big", signed=True) if 1 <= len(value) <= 8 else value.hex()


def _ipv6(value: bytes) -> Value:
    return str(IPv6Address(value)) if len(value) == 16 else value.hex()


def _ipv4(value: bytes) -> Value:
    return ".".join(map(str, value)) if len(value) == 4 else value.hex()


def _mac(value: bytes) -> Value:
    return value.hex(":") if len(value) == 6 else value.hex()


def _text(value: bytes) -> Value:
    return value.rstrip(b"\0").decode("utf-8", "replace")


_BYTES: dict[str, Callable[[bytes], Value]] = {
    "string": _text,
    "macAddress": _mac,
    "ipv6Address": _ipv6,
    "ipv4Address": _ipv4,
    **dict.fromkeys(("unsigned8", "unsigned16", "unsigned32", "unsigned64"), _integer),
    **dict.fromkeys(("signed8", "signed16", "signed32", "signed64"), _signed),
}
