"""Data sets that came before their template: kept within bounds, given back when it comes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")
Key = tuple[int, int]
"""Observation domain, template id: a late template of another domain never decodes them."""


@define
class Allowance:
    """Bytes that all who share it may hold together."""

    max_bytes: int = 64 << 20
    held_bytes: int = 0


@define
class Parking(Generic[T]):
    """Bodies of sets with what is known of their message; the oldest are dropped, and counted, when it is full."""

    allowance: Allowance = field(factory=Allowance)
    max_bytes: int = 1 << 20
    max_sets: int = 1024
    parked: int = 0
    replayed: int = 0
    dropped: int = 0
    """Those that found no room, and those that their template did not fit when it came."""
    held_bytes: int = 0
    _waiting: OrderedDict[Key, list[tuple[bytes, T]]] = field(factory=OrderedDict)
    _sets: int = 0

    def park(self, key: Key, body: bytes, head: T) -> None:
        """Keep a set until `take` of its key."""
        self.parked += 1
        self._waiting.setdefault(key, []).append((body, head))
        self._hold(len(body))
        self._sets += 1
        while self._waiting and (self._is_full() or self._sets > self.max_sets):
            self._drop_one()

    def waiting(self, domain: int) -> list[int]:
        """The ids of templates that sets of a domain wait for."""
        return [number for its_domain, number in self._waiting if its_domain == domain]

    def take(self, key: Key) -> list[tuple[bytes, T]]:
        """What waited for this template, oldest first."""
        found = self._waiting.pop(key, [])
        self._hold(-sum(len(body) for body, _ in found))
        self._sets -= len(found)
        self.replayed += len(found)
        return found

    def misfit(self) -> None:
        """A set that was taken is not of its template after all."""
        self.replayed -= 1
        self.dropped += 1

    def clear(self) -> None:
        """Nothing is waited for any more."""
        while self._waiting:
            self._drop_one()

    def _hold(self, size: int) -> None:
        self.held_bytes += size
        self.allowance.held_bytes += size

    def _is_full(self) -> bool:
        return self.held_bytes > self.max_bytes or self.allowance.held_bytes > self.allowance.max_bytes

    def _drop_one(self) -> None:
        key, waiting = next(iter(self._waiting.items()))
        body, _ = waiting.pop(0)
        if not waiting:
            del self._waiting[key]
        self._hold(-len(body))
        self._sets -= 1
        self.dropped += 1
