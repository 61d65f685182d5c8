"""Elements of variable length, many records at once: where they are, and their octets as columns.

Where a record begins is known only when the one before it was walked, but sets are independent of each other: all sets
of a template are walked in lockstep, one lane a set, each step a few numpy operations on all lanes. Sets so long that
few lanes are left are walked one after the other (`variable_places`), which is faster then. Once all records'
beginnings are known, their elements are found for all records at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import overload

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from sapflow.flows.columns.ranges import Offsets
from sapflow.flows.ipfix.templates import Template, variable_places

Octets = NDArray[np.uint8]

MIN_LANES = 48
"""Fewer sets than this are walked one by one: a step in lockstep costs as much as about so many records in Python."""
MAX_WINDOW = 255
MAX_PADDING = 4
"""A column is copied in equal windows as long as none is wider, and all are at most so many times its own octets."""


@frozen(eq=False)
class VariableColumn:
    """A column of values that differ in length. `column[3]` is bytes, `column[2:5]` a column over the same octets."""

    offsets: NDArray[np.int32 | np.int64]
    """Where each value begins in `data` and, at the end, where the last one ends; shape (records + 1,)."""
    data: Octets
    """The octets of all values, one after the other."""

    @classmethod
    def of(cls, values: Iterable[bytes]) -> VariableColumn:
        """A column of these values."""
        values = list(values)
        return cls(_offsets(np.fromiter(map(len, values), np.intp, len(values))), _octets(b"".join(values)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> VariableColumn: ...
    def __getitem__(self, index: int | slice) -> bytes | VariableColumn:
        if isinstance(index, slice):
            first, stop, step = index.indices(len(self))
            if step != 1:
                return VariableColumn.of(self.tolist()[index])
            return self.part(first, max(first, stop))
        place = range(len(self))[index]
        return self.data[self.offsets[place] : self.offsets[place + 1]].tobytes()

    def part(self, first: int, stop: int) -> VariableColumn:
        """Some of the values, over the same octets."""
        return VariableColumn(self.offsets[first : stop + 1], self.data)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.tolist())

    def tolist(self) -> list[bytes]:
        """The values."""
        ends = self.offsets.tolist()
        begin = ends[0]
        octets = self.data[begin : ends[-1]].tobytes()
        return [octets[start - begin : end - begin] for start, end in pairwise(ends)]

    def octets(self) -> Octets:
        """The octets of these values alone: a view of `data`."""
        return self.data[self.offsets[0] : self.offsets[-1]]


def record_starts(data: bytes, bodies: Offsets, stops: Offsets, template: Template) -> Offsets:
    """Where the records of many sets begin, in the order of the data.

    The sets' bodies are `data[bodies[i]:stops[i]]`, in order. Raises MalformedMessage as `variable_places` does, for
    the first record that is.
    """
    octets = _octets(data)
    at, ends = bodies, stops
    found: list[Offsets] = []
    while True:
        live = at + template.min_record_bytes <= ends
        if not live.all():
            at, ends = at[live], ends[live]
        if len(at) < MIN_LANES:
            break
        found.append(at)
        *_, (_, last) = _elements(octets, at, template.shape.gaps)
        at = last + template.shape.gaps[-1]
        if (at > ends).any():
            at, ends, found = bodies, stops, []
            break
    places: list[int] = []
    for start, end in zip(at.tolist(), ends.tolist(), strict=True):
        places += variable_places(data, start, end, template)
    rest = np.fromiter(places, np.intp, len(places)) - template.shape.gaps[0]
    # One by one they were found in order, in lockstep the first record of every set before the second of any.
    return np.sort(np.concatenate([*found, rest])) if found else rest


def fields_of(data: bytes, starts: Offsets, template: Template) -> tuple[list[NDArray[np.void]], list[VariableColumn]]:
    """The fixed runs of bytes and the elements of variable length of records that `record_starts` found.

    A run stands before each element of variable length, and one after the last.
    """
    octets = padded(data)
    begins, found = starts, []
    runs = []
    for gap, (begin, end) in zip(template.shape.gaps, _elements(octets, starts, template.shape.gaps), strict=False):
        runs.append(windows(octets, begins, gap))
        found.append((begin, end))
        begins = end
    runs.append(windows(octets, begins, template.shape.gaps[-1]))
    return runs, [spans(octets, begin, end - begin) for begin, end in found]


def padded(data: bytes) -> Octets:
    """The data's octets and some more: windows at the end of the data may reach past it."""
    return np.concatenate([_octets(data), np.zeros(MAX_WINDOW, np.uint8)])


def _elements(octets: Octets, at: Offsets, gaps: tuple[int, ...]) -> Iterator[tuple[Offsets, Offsets]]:
    """Where each element of variable length begins and ends, element by element (RFC 7011, 7).

    What lies past the end of the data is read as its last octet: whoever asks looks at where the record ends.
    """
    for gap in gaps[:-1]:
        at = at + gap
        length = octets.take(at, mode="clip")
        begin = at + 1
        at = begin + length
        (long,) = (length == 255).nonzero()
        if len(long):
            place = begin[long]
            high, low = octets.take(place, mode="clip"), octets.take(place + 1, mode="clip")
            begin[long] = place + 2
            at[long] = place + 2 + (high.astype(np.intp) << 8 | low)
        yield begin, at


def windows(octets: Octets, begins: Offsets, width: int) -> NDArray[np.void]:
    """As many octets from each beginning: shape (records,), void of that width."""
    if not width or not len(begins):
        return np.zeros(len(begins), f"V{width}")
    return _every(octets, width)[begins]


def _every(octets: Octets, width: int) -> NDArray[np.void]:
    """The windows of that width that begin at each octet, over the same memory."""
    return np.ndarray((len(octets) - width + 1,), np.dtype(f"V{width}"), octets, strides=(1,))


def spans(octets: Octets, begins: Offsets, lengths: Offsets) -> VariableColumn:
    """The octets of spans, one after the other."""
    offsets = _offsets(lengths)
    total, width = int(offsets[-1]), int(lengths.max(initial=0))
    if not total:
        return VariableColumn(offsets, np.zeros(0, np.uint8))
    if width > MAX_WINDOW or width * len(lengths) > MAX_PADDING * total:
        # Lengths differ too much: one index for each octet.
        places = np.arange(total)
        places += np.repeat(begins - offsets[:-1], lengths)
        return VariableColumn(offsets, octets[places])
    # Each value's window overwrites what the one before has too much, and what the last has too much is left out.
    room = np.empty(total + width, np.uint8)
    _every(room, width)[offsets[:-1]] = _every(octets, width)[begins]
    return VariableColumn(offsets, room[:total])


def _offsets(lengths: Offsets) -> NDArray[np.int32 | np.int64]:
    """32 bits as long as they do: that is what Arrow's usual layouts have."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    lengths.cumsum(out=ends[1:])
    return ends.astype(np.int32) if ends[-1] < 1 << 31 else ends


def _octets(data: bytes) -> Octets:
    return np.frombuffer(data, np.uint8)
