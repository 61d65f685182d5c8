"""Which of an exporter's templates are from before it began anew, and so may mean something else by now.

A device that reboots may give a template's number to another layout. Numbers that turn back are known for a new
beginning only after some datagrams (see `sequences`); templates defined since the first of those are new ones. Domains
are told apart: that one of them began anew says nothing of the others.
"""

from __future__ import annotations

from attrs import define, field

from sapflow.flows.datagrams.parking import Key
from sapflow.flows.ipfix.sequences import SequenceCounter


@define
class Reboots:
    """Fed in the order of the datagrams; those that just follow on may be left out."""

    _now: int = 0
    _defined: dict[Key, int] = field(factory=dict)
    """When each template was last defined."""
    _turned: dict[int, int] = field(factory=dict)
    """When each domain's numbers turned back."""
    _known: dict[int, int] = field(factory=dict)
    """Restarts of each domain that were dealt with."""

    def defined(self, key: Key) -> None:
        """A template was defined, or defined again, by this datagram."""
        self._defined[key] = self._now

    def forgotten(self, key: Key) -> None:
        """A template is no more."""
        self._defined.pop(key, None)

    def stale(self, domain: int, counter: SequenceCounter) -> list[Key]:
        """After a datagram's number was followed: the templates that are no more; mostly none."""
        now, self._now = self._now, self._now + 1
        if counter.behind:
            self._turned.setdefault(domain, now)
            return []
        since = self._turned.pop(domain, now)
        if counter.restarts == self._known.get(domain, 0):
            return []
        self._known[domain] = counter.restarts
        found = [key for key, when in self._defined.items() if key[0] == domain and when < since]
        for key in found:
            del self._defined[key]
        return found
