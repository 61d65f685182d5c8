"""Options data joined for names: what exporters call their interfaces, VRFs, applications, samplers, users.

Exporters say once in a while that interface 7 is "ge-0/0/7", and then 7 in every record. The stage remembers what they
say, by exporter and observation domain, and puts names beside the numbers; a number that has no name (yet) gets none.
Interfaces and the rest are numbered alike in all domains of most devices, so a name told in another domain of the same
exporter counts where its own told none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from attrs import define, field, frozen

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context
from sapflow.flows.ipfix.telling import tells
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

    joins: ClassVar[bool] = False

    told: Told[Key, str] = field(factory=Told)
    _kinds: set[str] = field(factory=set)
    """What anybody has named."""

    def apply(self, batches: Sequence[FlowBatch], context: Context) -> list[FlowBatch]:
        """What exporters tell is learned from and goes on as it is; other batches get the names of what they number."""
        made = list(batches)
        flows = []
        for at, batch in enumerate(batches):
            if tells(batch.template):
                self._learn(batch, context)
            else:
                flows.append(at)
        if flows:
            fields = Fields([batches[at] for at in flows])
            for at, columns in zip(flows, self._made(fields, context), strict=True):
                made[at] = with_columns(batches[at], columns)
        return made

    def _learn(self, batch: FlowBatch, context: Context) -> None:
        fields = Fields([batch])
        for join in JOINS:
            given = [found[0] for name in join.names if (found := fields.texts(name, MAX_NAME)) is not None]
            key = next((key for key in join.keys if key in fields), None)
            if key is None or not given or not (batch.template.scope_count or _is_table(join, batch)):
                continue
            for at, number in enumerate(_numbers(fields, key)):
                name = next((texts[at] for texts in given if texts[at]), "")
                if name and number is not None:
                    self._kinds.add(join.what)
                    for domain in (batch.domain, None):
                        self.told.put(context, domain, (join.what, *number), name)

    def _made(self, fields: Fields, context: Context) -> list[dict[str, tuple[InformationElement, Made]]]:
        """Columns for each batch."""
        made: list[dict[str, tuple[InformationElement, Made]]] = [{} for _ in fields.batches]
        own = [_told_in(batch) for batch in fields.batches]
        for join in JOINS:
            if join.what == "user" and "user" not in self._kinds:
                continue  # few tell of users, and every flow has addresses
            for name in dict.fromkeys(name for _, name in join.made):
                sources = [source for source, made_name in join.made if made_name == name and source in fields]
                if not sources:
                    continue
                element, column = made_element(name, "string"), self._named(join.what, sources, fields, context)
                for at in sorted({at for source in sources for at, _, _ in fields.parts(source)}):
                    if name not in own[at]:
                        made[at][name] = (element, column[fields.rows(at)])
        return made

    def _named(self, what: str, sources: Sequence[str], fields: Fields, context: Context) -> Made:
        """The names of what records number: of several sources the first that has a name."""
        domains = fields.domains().tolist()
        found: list[str | None] = [None] * fields.records
        for source in sources:
            keys = list(zip(domains, _numbers(fields, source), strict=True))
            names = {
                (domain, number): None if number is None else self.told.get(context, domain, (what, *number))
                for domain, number in set(keys)
            }
            found = [name or names[key] for name, key in zip(found, keys, strict=True)]
        text = np.array([name or "" for name in found], dtype=np.str_)
        return np.ma.array(text, mask=[name is None for name in found])


def _told_in(batch: FlowBatch) -> set[str]:
    """Names that records have themselves (applicationName), or that a stage has made already."""
    return {element.name for element in batch.elements if element.pen == 0}


def _is_table(join: Join, batch: FlowBatch) -> bool:
    """Whether a template without a scope (some export their tables so) holds nothing but numbers and their names."""
    held = {element.name for element in batch.elements}
    return held <= {*join.keys, *join.names, "applicationDescription"}


def _numbers(fields: Fields, name: str) -> list[tuple[int, int] | None]:
    """What each record numbers by an element; None where it does not."""
    if name == "applicationId":
        applications: list[tuple[int, int] | None] = [None] * fields.records
        for at, _, column in fields.parts(name):
            applications[fields.rows(at)] = [application(bytes(value)) for value in column.tolist()]
        return applications
    found = fields.addresses(name) if name in ADDRESSES else fields.integers(name)
    if found is None:
        return [None] * fields.records
    if name in ADDRESSES:
        numbers = [int.from_bytes(row.tobytes(), "big") for row in found.values]
    else:
        numbers = found.values.tolist()
    return [(0, number) if told else None for number, told in zip(numbers, found.told.tolist(), strict=True)]


def application(octets: bytes) -> tuple[int, int]:
    """An applicationId as its classification engine and its selector (RFC 6759, 4.1): so ids that some send in more
    octets than others are the same."""
    return (octets[0], int.from_bytes(octets[1:], "big")) if octets else (0, 0)
