"""Accounts of exporters that have left, and will have no batch of their own that tells them: values only."""

from __future__ import annotations

from attrs import define, field

from sapflow.link.account import NOTHING, Account

MAX_DEBTORS = 1000
"""Exporters of which it is kept one by one that they owe an account; further ones are told of together, by org."""


@define
class Debts:
    """What is to be told, by org and exporter."""

    _owed: dict[tuple[str, str], Account] = field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self._owed)

    def add(self, org: str, exporter: str, owed: Account) -> None:
        """An exporter owes this too; nothing, where the spool has the account."""
        who = (org, exporter)
        if who not in self._owed and len(self._owed) >= MAX_DEBTORS:
            who = (org, "")
        self._owed[who] = self._owed.get(who, NOTHING) + owed

    def take(self) -> tuple[str, str, Account]:
        """One of them, which is told now: org, exporter, and the account."""
        (org, exporter), owed = self._owed.popitem()
        return org, exporter, owed
