"""How the records of a template lie in memory: its names and elements, and the dtypes of their fixed runs of bytes."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
from attrs import define, frozen

from sapflow.flows.ipfix.shapes import Kept
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.registry import InformationElement, Registry, registry
from sapflow.flows.wire import VARIABLE_LENGTH

MAX_FIELDS_KEPT = 180_000
"""Of all layouts kept: those of 10,000 templates of 14 fields, about 24 MiB. When there are more, all are worked out
again."""
MAX_KINDS_KEPT = 4096
PLACE = 1 << 16
"""More octets than a record has."""

UNSIGNED = frozenset({"unsigned8", "unsigned16", "unsigned32", "unsigned64"})
SIGNED = frozenset({"signed8", "signed16", "signed32", "signed64"})
_USUAL = {**dict.fromkeys(UNSIGNED, "unsigned64"), **dict.fromkeys(SIGNED, "signed64"), "float32": "float64"}
"""The type that stands for all that are converted as it is: by their length."""


@frozen(eq=False)
class Kind:
    """What fixed fields have in common that are converted in the same way. There is one of each."""

    wire: np.dtype[Any]
    """As it came."""
    type: str
    """The element's, or one that is converted alike; where octets stay what they are, octetArray."""
    length: int


@define(eq=False)
class Layout:
    """What templates of the same fields have in common. Nobody changes it."""

    names: tuple[str, ...]
    """A name that is repeated in the template gets `_2`, `_3`, …"""
    elements: tuple[InformationElement, ...]
    kinds: tuple[Kind | None, ...]
    """Of each field; None when its length varies."""
    places: tuple[int, ...]
    """Of each field: its run of fixed fields, times PLACE, and how many octets behind the beginning of that it begins.

    There is run 0, and one more behind each element of variable length, which stands right before its own run.
    """
    holds_lists: bool
    """Whether records need other templates of their domain, or may (RFC 6313)."""

    _runs: tuple[np.dtype[Any], ...] | None = None

    @property
    def runs(self) -> tuple[np.dtype[Any], ...]:
        """The fixed fields before each element of variable length, and after the last: `f0`, `f1`, … by their place."""
        if self._runs is None:
            runs: list[list[tuple[str, np.dtype[Any]]]] = [[]]
            for index, kind in enumerate(self.kinds):
                if kind is None:
                    runs.append([])
                else:
                    runs[-1].append((f"f{index}", kind.wire))
            self._runs = tuple(map(np.dtype, runs))
        return self._runs


def layout_of(template: Template) -> Layout:
    """The layout of a template's records."""
    # A name is one of the registry in force.
    key = (registry(), template.shape.key)
    known = _layouts.get(key)
    if known is None:
        known = _layout(template)
        _layouts.keep(key, known, len(known.names))
    return known


_layouts: Kept[tuple[Registry, bytes], Layout] = Kept(MAX_FIELDS_KEPT)


def _layout(template: Template) -> Layout:
    known = registry()
    lookup = known.lookup
    fields = template.shape.fields
    elements = tuple([lookup(pen, number) for pen, number, _ in fields])
    names = distinct_names(elements)
    kinds: list[Kind | None] = []
    places = []
    place = 0
    for element, (_, _, length) in zip(elements, fields, strict=True):
        if length == VARIABLE_LENGTH:
            kinds.append(None)
            place += PLACE - place % PLACE
            places.append(place)
        else:
            kinds.append(kind_of(element.type, length))
            places.append(place)
            place += length
    lists = not known.list_elements.isdisjoint(template.shape.elements)
    return Layout(names, elements, tuple(kinds), tuple(places), lists)


def distinct_names(elements: tuple[InformationElement, ...]) -> tuple[str, ...]:
    """The elements' names; one that is repeated gets `_2`, `_3`, …"""
    plain = tuple([element.name for element in elements])
    if len(plain) == 1 or len(set(plain)) == len(plain):
        return plain
    times = Counter[str]()
    taken = set(plain)
    names = []
    for name in plain:
        times[name] += 1
        made = name
        while times[name] > 1 and (made := f"{name}_{times[name]}") in taken:
            times[name] += 1
        taken.add(made)
        names.append(made)
    return tuple(names)


@lru_cache(MAX_KINDS_KEPT)
def kind_of(type_name: str, length: int) -> Kind:
    """The kind of a fixed field of a type and length: types that are converted alike have one."""
    wire = np.dtype(_wire_type(type_name, length))
    stays = wire.kind == "V" and not (type_name in UNSIGNED | SIGNED and 1 <= length <= 8)
    usual = "octetArray" if stays else _USUAL.get(type_name, type_name)
    return Kind(wire, type_name, length) if usual == type_name else kind_of(usual, length)


def _wire_type(kind: str, length: int) -> str:
    if length in (1, 2, 4, 8):
        if kind in UNSIGNED or (kind == "boolean" and length == 1):
            return f">u{length}"
        if kind in SIGNED:
            return f">i{length}"
    if kind in ("float32", "float64") and length in (4, 8):
        return f">f{length}"
    if (kind == "dateTimeSeconds" and length == 4) or (kind == "dateTimeMilliseconds" and length == 8):
        return f">u{length}"
    if kind in ("dateTimeMicroseconds", "dateTimeNanoseconds") and length == 8:
        return ">u8"
    return f"V{length}"
