"""Columns of a batch by their element, whatever their name in it, and as what they mean: numbers, addresses, text.

Elements are named as IANA names them and found by their number, so that no exporter's own element can pass for one.
A column whose octets are none that its type can have is as if it were not there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.tables import Column
from sapflow.flows.ipfix.structured import IPV4_MAPPED
from sapflow.flows.registry import InformationElement, built_in, reversed_number

Made = NDArray[Any]
"""A column that a stage makes: masked where a value is not known."""

REVERSE = "reverse:"
"""Before an element's name: the same of a biflow's other direction (RFC 5103)."""


@cache
def number_of(name: str) -> tuple[int, int]:
    """Enterprise number and id of an element of ours. Raises KeyError."""
    element = built_in().by_name(name.removeprefix(REVERSE))
    return reversed_number(element) if name.startswith(REVERSE) else (element.pen, element.id)


class Fields:
    """The columns of one batch; of an element that is repeated, the first."""

    def __init__(self, batch: FlowBatch) -> None:
        self.records = batch.records
        self._columns: dict[tuple[int, int], Column] = {}
        for element, column in zip(batch.elements, batch.columns.values(), strict=True):
            self._columns.setdefault((element.pen, element.id), column)

    def __contains__(self, name: str) -> bool:
        return number_of(name) in self._columns

    def column(self, name: str) -> Column | None:
        """As it is in the batch."""
        return self._columns.get(number_of(name))

    def integers(self, name: str) -> NDArray[Any] | None:
        """A column of integers, in their own type."""
        return self._numpy(name, "ui")

    def floats(self, name: str) -> NDArray[np.float64] | None:
        """A column of numbers of any kind."""
        column = self._numpy(name, "uif")
        return None if column is None else column.astype(np.float64)

    def times(self, name: str) -> NDArray[Any] | None:
        """A column of times, datetime64 of its own unit."""
        return self._numpy(name, "M")

    def octets(self, name: str, length: int) -> NDArray[np.uint8] | None:
        """A column of values that are all of that many octets: shape (records, length)."""
        column = self._numpy(name, "uV")
        if column is None or column.dtype.itemsize != length:
            return None
        wire = column.astype(column.dtype.newbyteorder(">")) if column.dtype.kind == "u" else column
        return np.frombuffer(wire.tobytes(), np.uint8).reshape(-1, length)

    def addresses(self, name: str) -> NDArray[np.uint8] | None:
        """A column of addresses of either version as 16 octets each, IPv4 mapped: shape (records, 16)."""
        if (six := self.octets(name, 16)) is not None:
            return six
        four = self.octets(name, 4)
        if four is None:
            return None
        mapped = np.empty((len(four), 16), np.uint8)
        mapped[:, :12] = np.frombuffer(IPV4_MAPPED, np.uint8)
        mapped[:, 12:] = four
        return mapped

    def texts(self, name: str, most: int = 256) -> list[str] | None:
        """A column of text, each value cut to `most` characters."""
        column = self.column(name)
        if column is None:
            return None
        return ["" if value is None else text_of(value)[:most] for value in column.tolist()]

    def _numpy(self, name: str, kinds: str) -> NDArray[Any] | None:
        """A column of fixed length whose dtype is of one of these kinds."""
        column = self.column(name)
        return column if isinstance(column, np.ndarray) and column.dtype.kind in kinds else None


def text_of(value: object) -> str:
    """Octets as text; integers (some send an identifier where others send a name) as digits."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).rstrip(b"\0").decode("utf-8", "replace")
    return str(value)


def plain(column: Made) -> Made:
    """A column in which nothing is masked, as an array like any other: outputs are faster with those."""
    return column if np.ma.getmaskarray(column).any() else np.ma.getdata(column)


def with_columns(batch: FlowBatch, made: dict[str, tuple[InformationElement, Made]]) -> FlowBatch:
    """The batch with columns behind its own; one whose name an exporter's element has already gets `_2`."""
    new = {f"{name}_2" if name in batch.columns else name: pair for name, pair in made.items()}
    return evolve(
        batch,
        elements=(*batch.elements, *(element for element, _ in new.values())),
        columns={**batch.columns, **{name: plain(column) for name, (_, column) in new.items()}},
    )


def made_element(name: str, kind: str, semantics: str = "", units: str = "") -> InformationElement:
    """The element of a column that a stage made: no exporter's, so without a number."""
    return InformationElement(0, 0, name, kind, semantics, units)


def made_column(batch: FlowBatch, name: str) -> Made | None:
    """A column that a stage made; one that an exporter called so is none."""
    for (found, column), element in zip(batch.columns.items(), batch.elements, strict=True):
        if element.name == name and (element.pen, element.id) == (0, 0):
            assert isinstance(column, np.ndarray), found
            return column
    return None
