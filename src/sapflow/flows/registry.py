"""The information elements by number and by name, read from the data files in `elements/` (RFC 7012).

A registry may be extended by elements of an enterprise: from a file of the same form as ours (`load_elements`), or as
an exporter described them (`sapflow.flows.meaning.typeinfo`). What IANA assigned keeps its meaning whatever they say.
Whoever decodes asks `registry()`: our own, unless the caller put an extended one in its place (`using`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TextIO

from attrs import field, frozen

from sapflow.errors import ConfigurationError

REVERSE_PEN = 29305
"""Enterprise number of the reverse elements of biflows (RFC 5103, 6.1)."""

CERT_PEN, CERT_REVERSE = 6871, 0x4000
"""CERT marks reverse elements of its own by a bit of their number (YAF, "Information elements")."""

DATA_TYPES = (
    "octetArray",
    "unsigned8",
    "unsigned16",
    "unsigned32",
    "unsigned64",
    "signed8",
    "signed16",
    "signed32",
    "signed64",
    "float32",
    "float64",
    "boolean",
    "macAddress",
    "string",
    "dateTimeSeconds",
    "dateTimeMilliseconds",
    "dateTimeMicroseconds",
    "dateTimeNanoseconds",
    "ipv4Address",
    "ipv6Address",
    "basicList",
    "subTemplateList",
    "subTemplateMultiList",
)
"""Abstract data types; each stands at its number in IANA's table (RFC 5610, 3.1)."""
LIST_TYPES = frozenset(DATA_TYPES[20:])
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}")
"""A name of any other form could pass for a context field of the outputs, which begin with `_`."""

COLUMNS = ["pen", "id", "name", "type", "semantics", "units", "status"]
"""Of every file of elements."""


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
    description: str = field(default="", kw_only=True)
    range: tuple[int, int] | None = field(default=None, kw_only=True)
    """The least and the greatest value, where they are known."""

    @property
    def is_list(self) -> bool:
        """Whether values are lists (RFC 6313)."""
        return self.type in LIST_TYPES


class Registry:
    """Looks elements up; one that is unknown is `e<PEN>id<ID>`, an octetArray."""

    def __init__(self, elements: Iterable[InformationElement]) -> None:
        self._listed = {(element.pen, element.id): element for element in elements}
        self._by_number = dict(self._listed)
        # Of two elements with one name the first has it.
        self._by_name = {element.name: element for element in reversed(self._listed.values())}
        lists = {number for number, element in self._listed.items() if element.is_list}
        self.list_elements = frozenset(lists | {(REVERSE_PEN, number) for pen, number in lists if pen == 0})
        """Enterprise number and id of the elements that are lists."""

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

    def __contains__(self, number: tuple[int, int]) -> bool:
        """Whether the registry has the element of that enterprise number and id itself."""
        return number in self._listed

    def extended(self, elements: Iterable[InformationElement]) -> Registry:
        """A registry that has these elements as well; this one stays as it is.

        Of two descriptions of an element the later counts, but those of IANA are never replaced, and a name that
        an element here has stays with it.
        """
        merged = dict(self._listed)
        for element in elements:
            if element.pen != 0 or (0, element.id) not in merged:
                merged[element.pen, element.id] = element
        return Registry(merged.values())

    def _unlisted(self, pen: int, number: int) -> InformationElement:
        forward = self._forward(pen, number)
        if forward is None:
            return InformationElement(pen, number, f"e{pen}id{number}", "octetArray")
        name = f"reverse{forward.name[0].upper()}{forward.name[1:]}"
        return InformationElement(pen, number, name, forward.type, forward.semantics, forward.units, forward.status)

    def _forward(self, pen: int, number: int) -> InformationElement | None:
        if pen == REVERSE_PEN:
            return self._listed.get((0, number))
        if pen == CERT_PEN and number & CERT_REVERSE:
            return self._listed.get((CERT_PEN, number & ~CERT_REVERSE))
        return None


def reversed_number(element: InformationElement) -> tuple[int, int]:
    """Enterprise number and id of an element's reverse (RFC 5103, 6; CERT's own as CERT has them)."""
    return (CERT_PEN, element.id | CERT_REVERSE) if element.pen == CERT_PEN else (REVERSE_PEN, element.id)


@cache
def built_in() -> Registry:
    """Our own registry, read once."""
    folder = resources.files("sapflow.flows").joinpath("elements")
    # Where IANA and an enterprise have one name, it is IANA's.
    files = sorted((file.name for file in folder.iterdir() if file.name.endswith(".csv")), key=_iana_first)
    elements: list[InformationElement] = []
    for name in files:
        with folder.joinpath(name).open(encoding="utf-8") as file:
            rows = csv.reader(file)
            next(rows)
            elements += [InformationElement(int(row[0]), int(row[1]), *row[2:7]) for row in rows]
    return Registry(elements)


def _iana_first(name: str) -> tuple[bool, str]:
    return name != "iana.csv", name


_in_force: ContextVar[Registry | None] = ContextVar("registry", default=None)


def registry() -> Registry:
    """The registry in force here: what elements are called and what types they have."""
    return _in_force.get() or built_in()


@contextmanager
def using(elements: Registry) -> Iterator[None]:
    """Within, this registry is in force: in this task or thread, and in those that it starts."""
    before = _in_force.set(elements)
    try:
        yield
    finally:
        _in_force.reset(before)


def load_elements(source: Path | TextIO) -> list[InformationElement]:
    """The elements of a CSV file with the columns pen, id, name, type, semantics, units, status.

    Raises ConfigurationError, which names file, line and fault; nothing of such a file is used.
    """
    if not isinstance(source, Path):
        return _load(source, str(getattr(source, "name", "elements")))
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            return _load(file, str(source))
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror or error}; no elements are read from it") from error


def _load(file: TextIO, name: str) -> list[InformationElement]:
    found: dict[tuple[int, int], InformationElement] = {}
    rows = csv.reader(file)
    try:
        for element in _rows(rows):
            if (element.pen, element.id) in found:
                raise ValueError(f"element {element.id} of enterprise {element.pen} for the second time")
            found[element.pen, element.id] = element
    except (ValueError, csv.Error) as error:
        raise ConfigurationError(f"{name}, line {max(rows.line_num, 1):,}: {error}") from error
    return list(found.values())


def _rows(rows: Iterator[list[str]]) -> Iterator[InformationElement]:
    """Raises ValueError for a row that describes no element."""
    if next(rows, None) != COLUMNS:
        raise ValueError(f"the first line is not {','.join(COLUMNS)}")
    for row in rows:
        if row:
            yield _element(row)


def _element(row: list[str]) -> InformationElement:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} columns, not {len(COLUMNS)}")
    pen = _number(row[0], "enterprise number", 0xFFFFFFFF)
    element = InformationElement(pen, _number(row[1], "element id", 0x7FFF), *row[2:])
    if not NAME.fullmatch(element.name):
        raise ValueError(f"the name {element.name!r} is not 1 to 64 letters, digits and underscores")
    if element.type not in DATA_TYPES:
        raise ValueError(f"no data type {element.type!r}; there are {', '.join(DATA_TYPES)}")
    if pen == 0 and (0, element.id) in built_in():
        known = built_in().lookup(0, element.id)
        if (known.name, known.type) != (element.name, element.type):
            raise ValueError(f"element {element.id} is {known.name} of IANA, {known.type}, and cannot be another")
    return element


def _number(text: str, what: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise ValueError(f"{what} {text!r} is not a number from 0 to {most:,}")
    return int(text)
