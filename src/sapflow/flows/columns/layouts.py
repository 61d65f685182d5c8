"""How the records of a template lie in memory: its names and elements, and the dtypes of their fixed runs of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen

from sapflow.flows.ipfix.shapes import Field, Kept
from sapflow.flows.ipfix.structured import holds_lists
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.registry import InformationElement, Registry, registry
from sapflow.flows.wire import VARIABLE_LENGTH

MAX_FIELDS_KEPT = 1 << 16
"""Of all layouts kept: about 19 MiB. When there are more, all are worked out again."""

UNSIGNED = frozenset({"unsigned8", "unsigned16", "unsigned32", "unsigned64"})
SIGNED = frozenset({"signed8", "signed16", "signed32", "signed64"})


@frozen(eq=False)
class Layout:
    """What templates of the same fields have in common."""

    fields: tuple[Field, ...]
    names: tuple[str, ...]
    """A name that is repeated in the template gets `_2`, `_3`, …"""
    elements: tuple[InformationElement, ...]
    runs: tuple[np.dtype[Any], ...]
    """The fixed fields before each element of variable length, and after the last: `f0`, `f1`, … by their place."""
    places: tuple[int, ...]
    """Of each field: its run, or -1 - n when it is the n-th element of variable length."""
    holds_lists: bool
    """Whether records need other templates of their domain, or may (RFC 6313)."""


def layout_of(template: Template) -> Layout:
    """The layout of a template's records."""
    # A name is one of the registry in force.
    key = (registry(), template.shape.key)
    known = _layouts.get(key)
    if known is None:
        known = _layout(template)
        _layouts.keep(key, known, len(known.fields))
    return known


_layouts: Kept[tuple[Registry, bytes], Layout] = Kept(MAX_FIELDS_KEPT)


def _layout(template: Template) -> Layout:
    fields = template.fields
    elements = tuple(registry().lookup(spec.pen, spec.id) for spec in fields)
    runs: list[list[tuple[str, str]]] = [[]]
    places = []
    for index, (spec, element) in enumerate(zip(fields, elements, strict=True)):
        if spec.length == VARIABLE_LENGTH:
            places.append(-len(runs))
            runs.append([])
        else:
            places.append(len(runs) - 1)
            runs[-1].append((f"f{index}", wire_type(element, spec.length)))
    return Layout(
        fields, distinct_names(elements), elements, tuple(map(np.dtype, runs)), tuple(places), holds_lists(template)
    )


def distinct_names(elements: tuple[InformationElement, ...]) -> tuple[str, ...]:
    """The elements' names; one that is repeated gets `_2`, `_3`, …"""
    seen: dict[str, int] = {}
    names = []
    for element in elements:
        seen[element.name] = times = seen.get(element.name, 0) + 1
        names.append(element.name if times == 1 else f"{element.name}_{times}")
    return tuple(names)


def wire_type(element: InformationElement, length: int) -> str:
    """The dtype of a fixed field as it came."""
    kind = element.type
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
