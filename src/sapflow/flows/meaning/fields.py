"""Columns of a batch by their element, whatever their name in it, and as what they mean: numbers, addresses, text.

Elements are named as IANA names them and found by their number, so that no exporter's own element can pass for one.
A column whose octets are none that its type can have is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
from attrs import evolve, frozen
from numpy.typing import DTypeLike, NDArray

from sapflow.flows.columns.batches import FlowBatch, joined
from sapflow.flows.columns.ranges import Offsets, ranges
from sapflow.flows.columns.tables import Column
from sapflow.flows.columns.variable import VariableColumn
from sapflow.flows.ipfix.structured import IPV4_MAPPED
from sapflow.flows.registry import InformationElement, built_in, reversed_number

Made = NDArray[Any]
"""A column that a stage makes: masked where a value is not known."""
Which = NDArray[np.bool_]
"""Which records have a value."""
Part: TypeAlias = tuple[int, InformationElement, Column]
"""The place of a batch among all, and an element's column in it."""
Rows: TypeAlias = "slice | Offsets"

_ALL = slice(None)
_MADE = (0, 0)
"""The number of columns that stages made: no element's."""


@frozen(eq=False)
class Found:
    """A column of an element, and which records have it: the others have nothing (0, NaT) in it."""

    values: NDArray[Any]
    told: Which


REVERSE = "reverse:"
"""Before an element's name: the same of a biflow's other direction (RFC 5103)."""


@cache
def number_of(name: str) -> tuple[int, int]:
    """Enterprise number and id of an element of ours. Raises KeyError."""
    element = built_in().by_name(name.removeprefix(REVERSE))
    return reversed_number(element) if name.startswith(REVERSE) else (element.pen, element.id)


class Fields:
    """The columns of some batches, the records of one behind those of another; of an element that is repeated in a
    batch, the first.

    What is done with them is done once for all batches, however few records each has: a call of numpy costs as much as
    some hundred values.
    """

    def __init__(self, batches: Sequence[FlowBatch]) -> None:
        self.batches = batches
        self.counts = np.array([batch.records for batch in batches], np.intp)
        """Records of each batch."""
        self.firsts = np.cumsum(self.counts) - self.counts
        """Where those of each begin."""
        self.records = int(self.counts.sum())
        self._parts: dict[tuple[int, int], list[Part]] = {}
        self._made: dict[str, list[Part]] = {}
        for at, batch in enumerate(batches):
            for element, column in zip(batch.elements, batch.columns.values(), strict=True):
                number = (element.pen, element.id)
                parts = (
                    self._parts.setdefault(number, []) if number != _MADE else self._made.setdefault(element.name, [])
                )
                if not parts or parts[-1][0] != at:
                    parts.append((at, element, column))

    def __contains__(self, name: str) -> bool:
        return number_of(name) in self._parts

    def integers(self, name: str) -> Found | None:
        """A column of integers, as unsigned ones of 64 bits; 0 where records have none."""
        return self._found(name, "ui", np.dtype(np.uint64), 0)

    def floats(self, name: str) -> NDArray[np.float64] | None:
        """A column of numbers of any kind; NaN where records have none."""
        found = self._found(name, "uif", np.dtype(np.float64), np.nan)
        return None if found is None else found.values

    def times(self, name: str) -> Found | None:
        """A column of times, datetime64 of its element's unit; NaT where records have none."""
        return self._found(name, "M", None, np.datetime64("NaT"))

    def octets(self, name: str, length: int) -> Found | None:
        """A column of values that are all of that many octets: shape (records, length)."""
        joined = self._joined(name, "uV", length)
        values = np.zeros((self.records, length), np.uint8)
        told = np.zeros(self.records, np.bool_)
        for rows, column in joined:
            wire = column.astype(column.dtype.newbyteorder(">")) if column.dtype.kind == "u" else column
            values[rows] = np.frombuffer(wire.tobytes(), np.uint8).reshape(-1, length)
            told[rows] = True
        return Found(values, told) if joined else None

    def addresses(self, name: str) -> Found | None:
        """A column of addresses of either version as 16 octets each, IPv4 mapped: shape (records, 16)."""
        six, four = self.octets(name, 16), self.octets(name, 4)
        if four is None:
            return six
        mapped = np.zeros((self.records, 16), np.uint8)
        mapped[:, :12] = np.frombuffer(IPV4_MAPPED, np.uint8)
        mapped[:, 12:] = four.values
        if six is None:
            return Found(mapped, four.told)
        return Found(np.where(six.told[:, None], six.values, mapped), six.told | four.told)

    def texts(self, name: str, most: int = 256) -> tuple[list[str], Which] | None:
        """A column of text, each value cut to `most` characters; empty where records have none."""
        return self._texts(self._parts.get(number_of(name), ()), most)

    def made_texts(self, name: str) -> tuple[list[str], Which] | None:
        """A column of text that a stage made."""
        return self._texts(self._made.get(name, ()), None)

    def made_floats(self, name: str) -> NDArray[np.float64] | None:
        """A column of numbers that a stage made; NaN where it made none."""
        parts = self._made.get(name)
        if not parts:
            return None
        made = np.full(self.records, np.nan)
        made[self._every([at for at, _, _ in parts])] = np.concatenate([column for _, _, column in parts])
        return made

    def parts(self, name: str) -> list[Part]:
        """Each batch's column of an element, as it is there."""
        return self._parts.get(number_of(name), [])

    @cached_property
    def whole(self) -> FlowBatch:
        """All records, without their columns."""
        return joined(self.batches)

    def domains(self) -> NDArray[np.uint32]:
        """The observation domain of each record."""
        return self._each(self.whole.domains, self.whole.domain, np.uint32)

    def template_ids(self) -> NDArray[np.uint16]:
        """The template of each record."""
        return self._each(self.whole.template_ids, self.whole.template.id, np.uint16)

    def export_times(self) -> NDArray[np.int64]:
        """When each record was exported, in seconds since 1970; 0 where that is not known."""
        return self._each(self.whole.export_times, 0, np.int64)

    def _each(self, different: NDArray[Any], same: int, dtype: DTypeLike) -> NDArray[Any]:
        return different if len(different) else np.full(self.records, same, dtype)

    def rows(self, at: int) -> slice:
        """Where the records of a batch stand among all."""
        return slice(int(self.firsts[at]), int(self.firsts[at] + self.counts[at]))

    def slices(self, column: Made) -> Iterator[Made]:
        """A column of all records, batch by batch."""
        for first, count in zip(self.firsts.tolist(), self.counts.tolist(), strict=True):
            yield column[first : first + count]

    def _texts(self, parts: Sequence[Part], most: int | None) -> tuple[list[str], Which] | None:
        if not parts:
            return None
        texts = [""] * self.records
        told = np.zeros(self.records, np.bool_)
        for at, _, column in parts:
            own = self.rows(at)
            texts[own] = ["" if value is None else text_of(value)[:most] for value in column.tolist()]
            told[own] = True
        return texts, told

    def _found(self, name: str, kinds: str, dtype: np.dtype[Any] | None, nothing: Any) -> Found | None:
        """What records have of an element, as a column of all of them."""
        joined = self._joined(name, kinds)
        if not joined:
            return None
        rows, column = joined[0]
        # Of one element all times have one unit.
        dtype = dtype or column.dtype
        if isinstance(rows, slice):
            return Found(column.astype(dtype, copy=False), np.ones(self.records, np.bool_))
        values = np.full(self.records, nothing, dtype)
        told = np.zeros(self.records, np.bool_)
        for rows, column in joined:
            values[rows] = column
            told[rows] = True
        return Found(values, told)

    def _joined(self, name: str, kinds: str, length: int = 0) -> list[tuple[Rows, NDArray[Any]]]:
        """The columns of fixed length whose dtype is of one of these kinds and that long (0: however long): those of
        one kind as one, and which rows it has."""
        groups: dict[str, tuple[list[int], list[NDArray[Any]]]] = {}
        for at, _, column in self._parts.get(number_of(name), ()):
            if isinstance(column, VariableColumn) or column.dtype.kind not in kinds:
                continue
            if not length or column.dtype.itemsize == length:
                ats, columns = groups.setdefault(column.dtype.kind, ([], []))
                ats.append(at)
                columns.append(column)
        return [
            (self._every(ats), columns[0] if len(columns) == 1 else np.concatenate(columns))
            for ats, columns in groups.values()
        ]

    def _every(self, ats: list[int]) -> Rows:
        """The records of some batches."""
        return _ALL if len(ats) == len(self.batches) else ranges(self.firsts[ats], self.counts[ats])


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
