"""What must hold of the data files: each reads, is in order, has its source named, and no name is two elements'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sapflow.errors import ConfigurationError
from sapflow.flows.meaning.typeinfo import SEMANTICS, UNITS
from sapflow.flows.registry import InformationElement, load_elements


def faults(folder: Path) -> list[str]:
    """Each fault in words."""
    found: list[str] = []
    sources = (folder / "README.md").read_text(encoding="utf-8")
    owners: dict[str, InformationElement] = {}
    for path in sorted(folder.glob("*.csv")):
        try:
            elements = load_elements(path)
        except ConfigurationError as fault:
            found.append(str(fault))
            continue
        if f"`{path.name}`" not in sources:
            found.append(f"{path.name}: README.md names no source of it")
        found += (f"{path.name}: {fault}" for fault in _faults(elements, owners))
    return found


def _faults(elements: list[InformationElement], owners: dict[str, InformationElement]) -> Iterator[str]:
    numbers = [(element.pen, element.id) for element in elements]
    if numbers != sorted(numbers):
        yield "its elements are not in the order of their numbers"
    for element in elements:
        if element.semantics not in ("", *SEMANTICS):
            yield f"{element.name}: no semantics {element.semantics!r}"
        if element.units not in UNITS:
            yield f"{element.name}: no units {element.units!r}"
        owner = owners.setdefault(element.name, element)
        if owner is not element and (owner.pen == 0 or owner.pen == element.pen):
            yield f"element {element.id} has the name of element {owner.id} of enterprise {owner.pen}, {element.name}"
