"""What exporters told in options data, kept by exporter and observation domain, within a bound.

An exporter is its address and port: what another session from the same address told counts only where the session
itself told nothing, for routers send options from another port than flows, and after a restart from a new one. A key
of domain None holds for all domains of the exporter. When the bound is reached, what was told longest ago is forgotten.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from attrs import define, field

from sapflow.flows.columns.records import Context

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Place = tuple[str, str, int | None]
"""Org, exporter (or its address alone), observation domain."""

MAX_TOLD = 200_000


def address_of(exporter: str) -> str:
    """An exporter's address without its port; the name of a file stays as it is."""
    host, _, port = exporter.rpartition(":")
    return host if host and port.isdigit() else exporter


def places(context: Context, domain: int) -> Iterator[Place]:
    """Where to look for what holds for records of a domain, the nearest first."""
    address = address_of(context.exporter)
    for of in (domain, None):
        yield context.org, context.exporter, of
        if address != context.exporter:
            yield context.org, address, of


@define
class Told(Generic[K, V]):
    """Values by place and key."""

    limit: int = MAX_TOLD
    forgotten: int = 0
    _values: dict[Place, dict[K, V]] = field(factory=dict)
    _count: int = 0

    def put(self, context: Context, domain: int | None, key: K, value: V) -> None:
        """Remember the latest."""
        for name in {context.exporter, address_of(context.exporter)}:
            place = (context.org, name, domain)
            values = self._values.pop(place, {})
            self._count += key not in values
            values[key] = value
            self._values[place] = values
        while self._count > self.limit:
            self._forget()

    def at(self, place: Place) -> dict[K, V]:
        """All that was told of one place."""
        return self._values.get(place, {})

    def get(self, context: Context, domain: int, key: K) -> V | None:
        """The nearest value for a key."""
        for place in places(context, domain):
            if (value := self._values.get(place, {}).get(key)) is not None:
                return value
        return None

    def _forget(self) -> None:
        """The place that nothing was told of for longest; where there is but one, its oldest key."""
        place = next(iter(self._values))
        if len(self._values) > 1:
            gone = len(self._values.pop(place))
        else:
            values = self._values[place]
            del values[next(iter(values))]
            gone = 1
        self._count -= gone
        self.forgotten += gone
