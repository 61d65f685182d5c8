"""The information elements by number and by name, read from the data file beside this one (RFC 7012)."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

from attrs import frozen

REVERSE_PEN = 29305
"""Enterprise number of the reverse elements of biflows (RFC 5103, 6.1)."""


@frozen
class InformationElement:
    """What a field means."""

    pen: int
    id: int
    name: str
    type: str
    semantics: str = ""
    units: str = ""
    status: str = ""


class Registry:
    """Looks elements up; one that is unknown is `e<PEN>id<ID>`, an octetArray."""

    def __init__(self, elements: list[InformationElement]) -> None:
        self._by_number = {(element.pen, element.id): element for element in elements}
        self._by_name = {element.name: element for element in elements}

    def lookup(self, pen: int, number: int) -> InformationElement:
        """The element of an enterprise number (0: IANA) and an id."""
        found = self._by_number.get((pen, number))
        if found is None:
            found = self._unlisted(pen, number)
            if len(self._by_number) < 100_000:
                self._by_number[pen, number] = found
        return found

    def by_name(self, name: str) -> InformationElement:
        """The element of that name. Raises KeyError."""
        return self._by_name[name]

    def _unlisted(self, pen: int, number: int) -> InformationElement:
        forward = self._by_number.get((0, number)) if pen == REVERSE_PEN else None
        if forward is None:
            return InformationElement(pen, number, f"e{pen}id{number}", "octetArray")
        name = f"reverse{forward.name[0].upper()}{forward.name[1:]}"
        return InformationElement(pen, number, name, forward.type, forward.semantics, forward.units, forward.status)


@cache
def registry() -> Registry:
    """The registry, read once."""
    with resources.files("sapflow.flows").joinpath("elements.csv").open(encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)
        return Registry([InformationElement(int(row[0]), int(row[1]), *row[2:7]) for row in rows])
