"""Accounts of exporters that have left, and will have no batch of their own that tells them: values only."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from sapflow.link.account import NOTHING, Account

MAX_DEBTORS = 1000
"""Exporters of which it is kept one by one that they owe an account; further ones are told of together, by org."""


@frozen
class Debt:
    """What one exporter owes."""

    org: str
    exporter: str
    owed: Account


@define
class Debts:
    """What is to be told, by org and exporter."""

    _owed: dict[tuple[str, str], Account] = field(factory=dict)

    def add(self, org: str, exporter: str, owed: Account) -> None:
        """An exporter owes this too; nothing, where the spool has the account."""
        who = (org, exporter)
        if who not in self._owed and len(self._owed) >= MAX_DEBTORS:
            who = (org, "")
        self._owed[who] = self._owed.get(who, NOTHING) + owed

    def take(self, may_tell: Callable[[str], bool]) -> Debt | None:
        """One of an org of which may be told now, and is."""
        full: set[str] = set()
        for (org, exporter), owed in self._owed.items():
            if org in full:
                continue
            if not may_tell(org):
                full.add(org)
            else:
                del self._owed[(org, exporter)]
                return Debt(org, exporter, owed)
        return None
