"""Who should do an org's work; pure.

A claim says who *should*, so that work is done once. It is not what makes it safe: (stream, number) makes every append
idempotent whoever does it. A claim ends with its owner's lease.
"""

from __future__ import annotations

from collections.abc import Iterable


class Claims:
    """Owners by org. An owner is a member's (name, generation), so a process that came back holds nothing of before."""

    def __init__(self, max_orgs: int = 200_000) -> None:
        self._owners: dict[str, tuple[str, str]] = {}
        self._max_orgs = max_orgs

    def __len__(self) -> int:
        return len(self._owners)

    def claim(self, orgs: Iterable[str], name: str, generation: str) -> tuple[list[str], dict[str, str]]:
        """Claim what is free: what this owner now holds of `orgs`, and who holds the rest ("" where the table is full).

        The same claim again changes nothing.
        """
        held: list[str] = []
        others: dict[str, str] = {}
        for org in orgs:
            owner = self._owners.get(org)
            if owner is None and len(self._owners) < self._max_orgs:
                owner = self._owners[org] = (name, generation)
            if owner == (name, generation):
                held.append(org)
            else:
                others[org] = owner[0] if owner else ""
        return held, others

    def release(self, orgs: Iterable[str], name: str, generation: str) -> list[str]:
        """Let go of what this owner holds of `orgs`: what is free by it."""
        freed = [org for org in orgs if self._owners.get(org) == (name, generation)]
        for org in freed:
            del self._owners[org]
        return freed

    def left(self, name: str, generation: str) -> list[str]:
        """A lease ended: the orgs that are free by it."""
        return self.release(list(self._owners), name, generation)

    def by_owner(self) -> dict[str, int]:
        """How many orgs each holds."""
        counts: dict[str, int] = {}
        for name, _ in self._owners.values():
            counts[name] = counts.get(name, 0) + 1
        return counts
