"""What an exporter said that it sent, beside what came of it: the accounts that go out with its batches.

Each is asked when a batch ends, with how many records were read since: by whoever walked the messages, which is not who
followed the sequence numbers. So the two can be held against each other wherever the account arrives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from attrs import define, field

from sapflow.flows.datagrams.session import DatagramSession
from sapflow.flows.ipfix.sequences import Numbers
from sapflow.flows.ipfix.session import Session
from sapflow.link.account import UNREADABLE, Account

NO_TEMPLATE = "no_template"
"""Sets whose template never came, or not while they could wait."""


@define
class FaultNews:
    """Counts of faults that never go down, and what of them was told."""

    _told: Counter[str] = field(factory=Counter)

    def news(self, *counts: Mapping[str, int]) -> dict[str, int]:
        """What is more than when this was last asked."""
        if not self._told and not any(any(count.values()) for count in counts):
            return {}
        now: Counter[str] = Counter()
        for count in counts:
            now.update(count)
        news, self._told = now - self._told, now
        return dict(news)


class Accounts(Protocol):
    """Where the account of an exporter's next batch is from."""

    def take(self, received: int) -> Account:
        """What became of its records since this was last asked, `received` of which could be read."""


@define
class SessionAccounts:
    """An exporter's transport session, or a file."""

    session: Session

    def take(self, received: int) -> Account:
        """The session's numbers, which count records."""
        return _of_records(self.session.take_numbers(), received, {})


@define
class DatagramAccounts:
    """An exporter's datagrams of one protocol."""

    session: DatagramSession
    _faults: FaultNews = field(factory=FaultNews)
    _numbered: int = 0

    def take(self, received: int) -> Account:
        """The numbers of its protocol, which count records, or packets."""
        session = self.session
        news = self._faults.news(session.counts.malformed, {NO_TEMPLATE: session.parked[1]})
        numbers = session.take_numbers()
        if session.numbered is None:
            return _of_records(numbers, received, news)
        came, self._numbered = session.numbered - self._numbered, session.numbered
        return Account(
            received=received,
            uncounted=received,
            packets_received=came,
            packets_exported=numbers.exported,
            packets_repeated=numbers.repeated,
            packets_lost=numbers.lost,
            faults=news,
        )


def _of_records(numbers: Numbers, received: int, faults: dict[str, int]) -> Account:
    return Account(
        received=received + numbers.unread,
        exported=numbers.exported,
        repeated=numbers.repeated,
        lost=numbers.lost,
        refused={UNREADABLE: numbers.unread} if numbers.unread else {},
        faults=faults,
    )
