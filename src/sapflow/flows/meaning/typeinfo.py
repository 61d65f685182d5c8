"""Elements as exporters describe them in options records (RFC 5610), so that those of an enterprise have names.

`TypeInformation` is fed the batches of one exporter and keeps what they say, up to a limit. It believes an exporter
only about elements that no registry has: elements of IANA (enterprise number 0), and those listed already, keep their
meaning. Names become what every output can hold: letters, digits, underscores. `Dictionaries` gives the registry in
force for each of many exporters: what is decoded within `using` it has the names that its exporter told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import define, field

from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import Context, values_of
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.meaning.told import address_of
from sapflow.flows.registry import DATA_TYPES, NAME, InformationElement, Registry, registry, using

MAX_ELEMENTS = 4096
MAX_SHARED = 32
"""Registries that are kept, each of some thousand elements."""
MAX_DESCRIPTION = 512
"""Characters kept of a description."""

_SCOPE = {(0, 346), (0, 303)}
"""privateEnterpriseNumber and informationElementId."""

_MARKS = tuple(b"\x01\x5a\x00" + bytes([length]) for length in (4, 3, 2, 1))
"""privateEnterpriseNumber in a template: without it in the bytes, nobody describes elements there."""

SEMANTICS = (
    "default",
    "quantity",
    "totalCounter",
    "deltaCounter",
    "identifier",
    "flags",
    "list",
    "snmpCounter",
    "snmpGauge",
)
"""Each at its number (RFC 5610, 3.6; `list` by RFC 6313, the last two by RFC 8038)."""

UNITS = (
    "",
    "bits",
    "octets",
    "packets",
    "flows",
    "seconds",
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "4-octet words",
    "messages",
    "hops",
    "entries",
    "frames",
    "ports",
    "inferred",
)
"""Each at its number (RFC 5610, 3.7; `ports` and `inferred` by IANA since)."""

_Row = dict[str, object]


def describes_elements(template: Template) -> bool:
    """Whether records of the template are type information: an enterprise number and an element id in their scope."""
    return {(spec.pen, spec.id) for spec in template.fields[: template.scope_count]} >= _SCOPE


class TypeInformation:
    """What one exporter says of the elements of enterprises."""

    def __init__(self, known: Registry | None = None, *, limit: int = MAX_ELEMENTS) -> None:
        self.elements: dict[tuple[int, int], InformationElement] = {}
        """By enterprise number and id."""
        self.refused = 0
        """Records not believed: of IANA's or known elements, without a usable name, or over the limit."""
        self._known = known or registry()
        self._limit = limit

    def learn(self, batch: FlowBatch) -> list[InformationElement]:
        """Take in type information: the elements that are new or described otherwise than before.

        A batch of anything else gives none.
        """
        if not describes_elements(batch.template):
            return []
        learned = {}
        for row in _rows(batch):
            element = self._element(row)
            if element is None or not self._admits(element):
                self.refused += 1
            elif self.elements.get((element.pen, element.id)) != element:
                self.elements[element.pen, element.id] = learned[element.pen, element.id] = element
        return list(learned.values())

    def _admits(self, element: InformationElement) -> bool:
        number = (element.pen, element.id)
        if element.pen == 0 or number in self._known:
            return False
        return number in self.elements or len(self.elements) < self._limit

    def _element(self, row: _Row) -> InformationElement | None:
        """RFC 5610, 3.9."""
        pen, number = _integer(row, "privateEnterpriseNumber"), _integer(row, "informationElementId")
        name = _name(row.get("informationElementName"))
        # The id may come with the enterprise bit that it has in a field specifier.
        if pen is None or number is None or number > 0xFFFF or not name:
            return None
        description = row.get("informationElementDescription")
        return InformationElement(
            pen,
            number & 0x7FFF,
            name,
            _entry(DATA_TYPES, _integer(row, "informationElementDataType")) or "octetArray",
            _entry(SEMANTICS, _integer(row, "informationElementSemantics")),
            _entry(UNITS, _integer(row, "informationElementUnits")),
            description=description[:MAX_DESCRIPTION] if isinstance(description, str) else "",
            range=_range(row),
        )


@define
class Dictionaries:
    """The registry for each exporter: the one given, and what the exporter told of elements of its own.

    An exporter is its address: it describes its elements once in a while, on whichever port. Of more exporters than
    `max_exporters` the one that was met longest ago is forgotten; exporters that tell the same share a registry.
    """

    base: Registry = field(factory=registry)
    max_exporters: int = 1024
    _told: dict[tuple[str, str], TypeInformation] = field(factory=dict)
    _shared: dict[frozenset[InformationElement], Registry] = field(factory=dict)

    def registry_for(self, context: Context, data: bytes) -> Registry:
        """The registry that the exporter's messages are to be decoded with, after what they say themselves."""
        key = (context.org, address_of(context.exporter))
        if any(mark in data for mark in _MARKS):
            told = self._told.pop(key, None) or TypeInformation(self.base)
            self._learn(told, data)
            if told.elements:
                self._told[key] = told
            while len(self._told) > self.max_exporters:
                del self._told[next(iter(self._told))]
        known = self._told.get(key)
        return self.base if known is None else self._registry(frozenset(known.elements.values()))

    def _learn(self, told: TypeInformation, data: bytes) -> None:
        with using(self.base):
            for batch in decode(data):
                told.learn(batch)

    def _registry(self, elements: frozenset[InformationElement]) -> Registry:
        found = self._shared.pop(elements, None) or self.base.extended(elements)
        self._shared[elements] = found
        while len(self._shared) > MAX_SHARED:
            del self._shared[next(iter(self._shared))]
        return found


def _rows(batch: FlowBatch) -> Iterator[_Row]:
    values = values_of(batch)
    for row in zip(*values.values(), strict=True):
        yield dict(zip(values, row, strict=True))


def _integer(row: _Row, name: str) -> int | None:
    value = row.get(name)
    return value if isinstance(value, int) else None


def _entry(table: tuple[str, ...], number: int | None) -> str:
    return table[number] if number is not None and number < len(table) else ""


def _range(row: _Row) -> tuple[int, int] | None:
    """RFC 5610, 3.4 and 3.5; 0 to 0 is no range."""
    first, last = _integer(row, "informationElementRangeBegin"), _integer(row, "informationElementRangeEnd")
    return (first, last) if first is not None and last is not None and first < last else None


def _name(value: object) -> str:
    if not isinstance(value, str):
        return ""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", value).strip("_")[:64]
    return name if NAME.fullmatch(name) else ""
