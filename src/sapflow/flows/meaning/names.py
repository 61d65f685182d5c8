"""Options data joined for names: what exporters call their interfaces, VRFs, applications, samplers, users.

Exporters say once in a while that interface 7 is "ge-0/0/7", and then 7 in every record. The stage remembers what they
say, by exporter and observation domain, and puts names beside the numbers; a number that has no name (yet) gets none.
Interfaces and the rest are numbered alike in all domains of most devices, so a name told in another domain of the same
exporter counts where its own told none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import define, field, frozen

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context
from sapflow.flows.meaning.fields import Fields, Made, made_element, with_columns
from sapflow.flows.meaning.told import Told
from sapflow.flows.registry import InformationElement

Key = tuple[str, int, int]
"""What is named, and its number: of applications the classification engine and the selector, else 0 and the number;
an address is the number of its 16 octets."""

MAX_NAME = 128
"""Characters kept of a name."""


@frozen
class Join:
    """How one kind of thing is named: by which elements, and where in records its numbers are."""

    what: str
    keys: tuple[str, ...]
    """The elements that hold its number in options data."""
    names: tuple[str, ...]
    """The elements that hold its name there; the first that is not empty counts."""
    made: tuple[tuple[str, str], ...]
    """(element of a record, column made beside it); of several for one column the first that has a name counts."""


JOINS = (
    Join(
        "interface",
        ("ingressInterface", "egressInterface"),
        ("interfaceName", "interfaceDescription"),
        (("ingressInterface", "ingressInterfaceName"), ("egressInterface", "egressInterfaceName")),
    ),
    Join(
        "vrf",
        ("ingressVRFID", "egressVRFID"),
        ("VRFname",),
        (("ingressVRFID", "ingressVRFName"), ("egressVRFID", "egressVRFName")),
    ),
    Join("application", ("applicationId",), ("applicationName",), (("applicationId", "applicationName"),)),
    Join(
        "sampler",
        ("samplerId", "selectorId"),
        ("samplerName", "selectorName"),
        (("samplerId", "samplerName"), ("selectorId", "selectorName")),
    ),
    Join(
        "user",
        ("sourceIPv4Address", "sourceIPv6Address"),
        ("userName",),
        (
            ("sourceIPv4Address", "userName"),
            ("sourceIPv6Address", "userName"),
            ("destinationIPv4Address", "userName"),
            ("destinationIPv6Address", "userName"),
        ),
    ),
)
ADDRESSES = frozenset(source for source, _ in JOINS[-1].made)


@define
class Names:
    """The stage."""

    told: Told[Key, str] = field(factory=Told)
    _kinds: set[str] = field(factory=set)
    """What anybody has named."""

    def apply(self, batch: FlowBatch, context: Context) -> FlowBatch:
        """Options data are learned from and go on as they are; other batches get the names of what they number."""
        fields = Fields(batch)
        made: dict[str, tuple[InformationElement, Made]] = {}
        for join in JOINS:
            if self._learn(join, fields, batch, context) or batch.template.scope_count:
                continue
            if join.what == "user" and "user" not in self._kinds:
                continue  # few tell of users, and every flow has addresses
            for source, name in join.made:
                numbers = _numbers(fields, source)
                if numbers is not None and name not in _told_in(batch):
                    column = self._named(join.what, numbers, batch.domain, context)
                    if name in made:
                        column = _filled(made[name][1], column)
                    made[name] = (made_element(name, "string"), column)
        return with_columns(batch, made)

    def _learn(self, join: Join, fields: Fields, batch: FlowBatch, context: Context) -> bool:
        """Whether the batch gives names to things of this kind: then it is no batch of flows."""
        given = [texts for name in join.names if (texts := fields.texts(name, MAX_NAME)) is not None]
        key = next((key for key in join.keys if key in fields), None)
        if key is None or not given or not (batch.template.scope_count or _is_table(join, batch)):
            return False
        numbers = _numbers(fields, key)
        for at, number in enumerate(numbers or ()):
            name = next((texts[at] for texts in given if texts[at]), "")
            if name:
                self._kinds.add(join.what)
                for domain in (batch.domain, None):
                    self.told.put(context, domain, (join.what, *number), name)
        return True

    def _named(self, what: str, numbers: Sequence[tuple[int, int]], domain: int, context: Context) -> Made:
        names = {number: self.told.get(context, domain, (what, *number)) for number in set(numbers)}
        found = [names[number] for number in numbers]
        text = np.array([name or "" for name in found], dtype=np.str_)
        return np.ma.array(text, mask=[name is None for name in found])


def _filled(one: Made, other: Made) -> Made:
    """A column, and where it has no value that of another."""
    unknown = np.ma.getmaskarray(one)
    values = np.where(unknown, np.ma.getdata(other), np.ma.getdata(one))
    return np.ma.array(values, mask=unknown & np.ma.getmaskarray(other))


def _told_in(batch: FlowBatch) -> set[str]:
    """Names that records have themselves (applicationName), or that a stage has made already."""
    return {element.name for element in batch.elements if element.pen == 0}


def _is_table(join: Join, batch: FlowBatch) -> bool:
    """Whether a template without a scope (some export their tables so) holds nothing but numbers and their names."""
    held = {element.name for element in batch.elements}
    return held <= {*join.keys, *join.names, "applicationDescription"}


def _numbers(fields: Fields, name: str) -> list[tuple[int, int]] | None:
    if name == "applicationId":
        column = fields.column(name)
        return None if column is None else [application(bytes(value)) for value in column.tolist()]
    if name in ADDRESSES:
        octets = fields.addresses(name)
        return None if octets is None else [(0, int.from_bytes(row.tobytes(), "big")) for row in octets]
    numbers = fields.integers(name)
    return None if numbers is None else [(0, number) for number in numbers.tolist()]


def application(octets: bytes) -> tuple[int, int]:
    """An applicationId as its classification engine and its selector (RFC 6759, 4.1): so ids that some send in more
    octets than others are the same."""
    return (octets[0], int.from_bytes(octets[1:], "big")) if octets else (0, 0)
