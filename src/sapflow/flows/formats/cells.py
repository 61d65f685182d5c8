"""Columns as text, all their records at once: what JSON lines and CSV have between their separators.

Numbers, addresses and times become matrices of characters, a row for each record, by looking groups of digits up in
tables; PAD stands where a row has no character, and is left out when rows are written. PAD and ROW are octets that no
UTF-8 has. What is not known to be plain is rendered value by value (`sapflow.flows.columns.records`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from sapflow.flows.columns.tables import Column
from sapflow.flows.columns.variable import Octets, VariableColumn
from sapflow.flows.ipfix.structured import IPV4_MAPPED

PAD = 0xFF
ROW = b"\xfe"

Characters: TypeAlias = "Octets | VariableColumn | list[bytes]"
_DAY_S = 86_400
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""Years 1 to 9999, whose dates have ten characters."""
_MOST_DATES = 4096
MOST_DISTINCT = 256
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@frozen
class Notation:
    """How a format writes values."""

    encode: Callable[[Any], bytes]
    """A value as `values_of` gives it."""
    quote: bytes
    """What stands around text."""
    plain: NDArray[np.bool_]
    """Which octets stand in text as they are; shape (256,)."""
    true: bytes
    false: bytes


@frozen
class Cells:
    """A column's text: a matrix with a row for each record, a column of octets, or a list; quoted or not."""

    characters: Characters
    quote: bytes = b""

    @property
    def width(self) -> int:
        """Characters of the widest, quotes included."""
        return _width(self.characters) + 2 * len(self.quote)

    def part(self, first: int, stop: int) -> Cells:
        """Those of some records."""
        return Cells(self.characters[first:stop], self.quote)

    def put(self, into: Octets) -> None:
        """Write them into a matrix as wide as they are."""
        quotes = len(self.quote)
        if quotes:
            into[:, 0] = into[:, -1] = self.quote[0]
        inner = into[:, quotes : into.shape[1] - quotes]
        characters = self.characters
        if isinstance(characters, np.ndarray):
            inner[:] = characters
            return
        if isinstance(characters, list):
            characters = VariableColumn.of(characters)
        lengths = np.diff(characters.offsets)
        inner[:] = PAD
        inner[np.arange(inner.shape[1]) < lengths[:, None]] = characters.octets()


def encoded(values: Iterable[Any], notation: Notation) -> Cells:
    """Cells of values of any kind."""
    return Cells([*map(notation.encode, values)])


def cells_of(column: Column, kind: str, notation: Notation) -> Cells | None:
    """The text of a column of elements of an abstract data type; None when values have to be looked at one by one."""
    if isinstance(column, VariableColumn):
        octets = column.octets()
        if kind == "string" and notation.plain[octets].all():
            return Cells(column, notation.quote)
        return None
    if isinstance(column, np.ma.MaskedArray):
        return _nulls(column, kind, notation)
    width = column.dtype.itemsize
    match column.dtype.kind:
        case "b":
            words = _table([notation.false, notation.true])
            return Cells(words[column.view(np.uint8)])
        case "u":
            return Cells(_digits(column))
        case "M":
            times = _times(column)
            return None if times is None else Cells(times, notation.quote)
        case "U" | "f":
            return _repeated(column, notation)
        case "V" if kind == "ipAddress" and width == 16:
            octets = _rows(column)
            mapped = (octets[:, :12] == np.frombuffer(IPV4_MAPPED, np.uint8)).all()
            return Cells(_joined(octets[:, 12:], _decimal_octets()), notation.quote) if mapped else None
        case "V" if kind == "ipv4Address" and width == 4:
            return Cells(_joined(_rows(column), _decimal_octets()), notation.quote)
        case "V" if kind == "macAddress" and width == 6:
            return Cells(_joined(_rows(column), _hex_octets(b":")), notation.quote)
        case "V" if kind == "octetArray" and width:
            return Cells(_hex_octets(b"")[_rows(column)].reshape(len(column), -1), notation.quote)
    return None


def _repeated(column: NDArray[Any], notation: Notation) -> Cells | None:
    """Text and numbers of a few kinds: each is rendered once."""
    distinct, which = np.unique(column, return_inverse=True)
    if len(distinct) > MOST_DISTINCT:
        return None
    finite = [value if isinstance(value, str) or math.isfinite(value) else None for value in distinct.tolist()]
    return Cells(_table([notation.encode(value) for value in finite])[which.reshape(-1)])


def _nulls(column: np.ma.MaskedArray[Any, Any], kind: str, notation: Notation) -> Cells | None:
    """Of a column with nulls; they have no quotes, so those of quoted text are looked at one by one."""
    null = notation.encode(None)
    if np.ma.getmaskarray(column).all():
        return Cells(_table([null])[np.zeros(len(column), np.intp)])
    cells = cells_of(column.data, kind, notation)
    if cells is None or cells.quote or not isinstance(cells.characters, np.ndarray):
        return None
    text = np.full((len(column), max(cells.characters.shape[1], len(null))), PAD, np.uint8)
    text[:, : cells.characters.shape[1]] = cells.characters
    text[column.mask] = PAD
    text[column.mask, : len(null)] = np.frombuffer(null, np.uint8)
    return Cells(text)


def _width(characters: Characters) -> int:
    if isinstance(characters, list):
        return max(map(len, characters), default=0)
    if isinstance(characters, VariableColumn):
        return int(np.diff(characters.offsets).max(initial=0))
    return int(characters.shape[1])


def _rows(column: NDArray[Any]) -> Octets:
    """A column of void as octets; shape (records, width)."""
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)


def _joined(octets: Octets, table: Octets) -> Octets:
    """Each octet's text with its separator, the last without."""
    text: Octets = table[octets].reshape(len(octets), -1)
    return text[:, :-1]


def _digits(column: NDArray[Any]) -> Octets:
    """Unsigned integers as decimal digits, four at a time from the right."""
    most = int(column.max(initial=0))
    groups = (len(str(most)) + 3) // 4
    narrow = most < 1 << 32
    rest: NDArray[Any] = column.astype(np.uint32 if narrow else np.uint64)
    base: Any = np.uint32(10_000) if narrow else np.uint64(10_000)
    text = np.empty((len(column), groups), np.uint32)
    for group in reversed(range(groups)):
        higher = rest // base if group else np.zeros_like(rest)
        index = rest - higher * base
        # Zeros lead where nothing is before them; where nothing is at all there is no digit, but one for 0 itself.
        index += base * (higher > 0)
        text[:, group] = _four_digits(last=group == groups - 1)[index]
        rest = higher
    return text.view(np.uint8).reshape(len(column), -1)


def _times(column: NDArray[Any]) -> Octets | None:
    """Times as RFC 3339 in UTC; None when one has no date of ten characters."""
    unit = np.datetime_data(column.dtype)[0]
    if unit not in _UNITS or not len(column):
        return None
    per_second = _UNITS[unit]
    ticks = column.view(np.int64)
    seconds = ticks // per_second
    days = seconds // _DAY_S
    first, last = int(days.min()), int(days.max())
    if not _FIRST_DAY <= first <= last <= _LAST_DAY or last - first >= _MOST_DATES:
        return None
    dates = _texts(np.arange(first, last + 1).astype("datetime64[D]"))[:, :10]
    digits = len(str(per_second)) - 1
    text = np.empty((len(column), 20 + digits + (digits > 0)), np.uint8)
    text[:, :10] = dates[days - first]
    text[:, 10:19] = _times_of_day()[seconds - days * _DAY_S]
    if digits:
        text[:, 19] = ord(".")
        rest = ticks - seconds * per_second
        for at in range(20 + digits - 3, 19, -3):
            higher = rest // 1000
            text[:, at : at + 3] = _three_digits()[rest - higher * 1000]
            rest = higher
    text[:, -1] = ord("Z")
    return text


@cache
def _four_digits(*, last: bool) -> NDArray[np.uint32]:
    """0 to 9999 without leading zeros (the last group has a digit for 0), then 0 to 9999 with them."""
    short = [b"%d" % number if number or last else b"" for number in range(10_000)]
    rows = np.concatenate([_table(short, right=True), _table([b"%04d" % number for number in range(10_000)])])
    return rows.view(np.uint32).reshape(-1)


@cache
def _three_digits() -> Octets:
    return _table([b"%03d" % number for number in range(1000)])


@cache
def _decimal_octets() -> Octets:
    return _table([b"%d." % number for number in range(256)], right=True)


@cache
def _hex_octets(separator: bytes) -> Octets:
    return _table([b"%02x%s" % (number, separator) for number in range(256)])


@cache
def _times_of_day() -> Octets:
    """THH:MM:SS of each second of a day."""
    return _texts(np.arange(_DAY_S).astype("datetime64[s]"))[:, 10:19].copy()


def _texts(times: NDArray[np.datetime64]) -> Octets:
    """Times in ISO 8601 as characters, with what numpy leaves room for behind them."""
    text = np.datetime_as_string(times)
    return text.view(np.uint32).reshape(len(text), -1).astype(np.uint8)


def _table(texts: list[bytes], *, right: bool = False) -> Octets:
    """Texts one below the other, as wide as the widest."""
    width = max(1, *map(len, texts))
    pad = bytes([PAD])
    padded = b"".join(text.rjust(width, pad) if right else text.ljust(width, pad) for text in texts)
    return np.frombuffer(padded, np.uint8).reshape(-1, width)
