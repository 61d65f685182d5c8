"""Elements as exporters describe them in options records (RFC 5610), so that those of an enterprise have names.

`TypeInformation` is fed the batches of one exporter and keeps what they say, up to a limit. It believes an exporter
only about elements that no registry has: elements of IANA (enterprise number 0), and those listed already, keep their
meaning. Names become what every output can hold: letters, digits, underscores. Apply what was learned by
`Registry.extended`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sapflow.flows.columns import FlowBatch
from sapflow.flows.records import values_of
from sapflow.flows.registry import DATA_TYPES, NAME, InformationElement, Registry, registry
from sapflow.flows.templates import Template

MAX_ELEMENTS = 4096
MAX_DESCRIPTION = 512
"""Characters kept of a description."""

_SCOPE = {(0, 346), (0, 303)}
"""privateEnterpriseNumber and informationElementId."""

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
