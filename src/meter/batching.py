"""One exporter's transport session into batches; pure, the clock stays outside.

Bytes come in as they were read; whole messages are walked once (every length checked, records counted, templates
learned) and go out unchanged, behind a prelude of the templates that they need; but sets that cannot be read are left
out of theirs and counted by reason, so that what goes out reads whole. Batches end at `batch_bytes`, or when
the owner of the clock says `flush`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from attrs import define, evolve, field, frozen

from meter.accounts import NO_TEMPLATE, Accounts, FaultNews, SessionAccounts
from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.framing import MessageFramer, in_parts
from sapflow.flows.ipfix.mending import mended
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.session_state import SessionState
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import MAX_MESSAGE_BYTES
from sapflow.link import LinkLimits
from sapflow.link.account import MAX_ACCOUNT_BYTES, NOTHING, Account, decode_account, together
from sapflow.link.events import size_of

FEED_BYTES = 256 << 10
"""So much is read of an exporter at a time, or taken of its datagrams together."""
MAX_PRELUDE_BYTES = (512 << 10) + (48 << 10)
"""All templates that a session may hold (`FlowLimits.max_template_bytes`), with the headers of their messages."""
MAX_BATCH_BYTES = LinkLimits().max_batch_bytes
MOST_BATCH_BYTES = MAX_BATCH_BYTES - MAX_PRELUDE_BYTES - FEED_BYTES - MAX_MESSAGE_BYTES - MAX_ACCOUNT_BYTES
"""The most that `batch_bytes` may be: a batch ends only after what was read has been added, and must fit a link."""


@frozen(slots=True)
class Draft:
    """A batch that has no number yet."""

    messages: int
    records: int
    payload: bytes
    account: bytes = b""
    """What became of the exporter's records since the last one, as `link.account` writes it."""

    @property
    def size(self) -> int:
        """Bytes that it takes of budgets, as a batch does."""
        return size_of(self.payload, self.account)

    def owing(self, owed: Account) -> Draft:
        """As it is, and its account tells of this too."""
        if not owed:
            return self
        account = decode_account(self.account, self.records) + owed
        return evolve(self, account=account.encode(self.records))

    def given_up(self, reason: str) -> Account:
        """Its account when it is not passed on."""
        return decode_account(self.account, self.records).refusing(reason, self.records)


def telling(account: Account) -> Draft:
    """A batch that holds nothing but an account."""
    return Draft(0, 0, b"", account.encode(0))


@define
class ExporterCounts:
    """What an exporter's session has brought, for the ledger."""

    bytes: int = 0
    messages: int = 0
    records: int = 0
    lost_records: int = 0
    undecodable_sets: int = 0
    ignored_sets: int = 0
    redefined_templates: int = 0
    stray_withdrawals: int = 0
    refused_sets: Counter[str] = field(factory=Counter)
    """Sets that could not be read and were left out, by reason."""


@frozen
class BatcherState:
    """A batcher between two batches, of which all has been told: what another needs to go on as if it were this one."""

    tail: bytes
    """Of a message that has not come whole."""
    offset: int
    """Where in the exporter's stream that begins."""
    walked: int
    session: SessionState


class Batcher:
    """Bytes in, drafts out; after a malformed message nothing more is taken and `fault` says why."""

    def __init__(self, limits: FlowLimits, *, batch_bytes: int, accounts: Accounts | None = None) -> None:
        self.counts = ExporterCounts()
        self.fault: MalformedMessage | None = None
        self._batch_bytes = batch_bytes
        self._framer = MessageFramer()
        self._session = Session(limits, mends=True)
        self._open = _Open()
        self._walked = 0
        self._told_records = 0
        self._faults = FaultNews()
        self.accounts = accounts or SessionAccounts(self._session)
        """Whose numbers say what was exported: by default those of the messages."""

    @classmethod
    def resumed(cls, state: BatcherState, limits: FlowLimits, *, batch_bytes: int) -> Batcher:
        """One that goes on where another was; what it counts begins at nothing."""
        batcher = cls(limits, batch_bytes=batch_bytes)
        batcher._framer = MessageFramer(state.tail, state.offset)
        batcher._session = Session.resumed(state.session, limits, mends=True)
        batcher._walked = state.walked
        batcher.accounts = SessionAccounts(batcher._session)
        return batcher

    def state(self) -> BatcherState:
        """What another needs to go on, right after `last`."""
        assert self.fault is None
        assert not self._open.size
        return BatcherState(self._framer.tail, self._framer.offset, self._walked, self._session.state())

    @property
    def waiting_bytes(self) -> int:
        """Bytes of whole messages that are in no draft yet."""
        return self._open.size

    @property
    def partial_bytes(self) -> int:
        """Bytes of a message that has not come whole."""
        return self._framer.pending_bytes

    def feed(self, data: bytes) -> Draft | None:
        """Take bytes as they were read: the batch that is full by them, if one is."""
        assert self.fault is None
        whole = self._framer.feed(data)
        self.counts.bytes += len(data)
        if whole:
            self._take(whole)
        if self.fault is None:
            self.fault = self._framer.fault
        return self.flush() if self._open.size >= self._batch_bytes else None

    def feed_all(self, messages: bytes) -> Iterator[Draft]:
        """As `feed`, for whole messages however many: the batches that are full by them."""
        for part in in_parts(messages, FEED_BYTES):
            if self.fault is not None:
                return
            draft = self.feed(part)
            if draft is not None:
                yield draft

    def flush(self) -> Draft | None:
        """What has come since the last batch, as one."""
        if not self._open.size:
            return None
        done, self._open = self._open, _Open()
        account = self._account().encode(done.records)
        return Draft(done.messages, done.records, b"".join((self._session.cut(), *done.pieces)), account)

    def last(self) -> Draft | None:
        """As `flush`; and when nothing waits, but something is to be told, a batch that tells it."""
        draft = self.flush()
        if draft is None and (account := self._account()) != NOTHING:
            draft = telling(account)
        return draft

    def _account(self) -> Account:
        received = self.counts.records - self._told_records
        self._told_records = self.counts.records
        account = self.accounts.take(received)
        ended = {self.fault.reason: 1} if self.fault is not None else {}
        news = self._faults.news(self.counts.refused_sets, {NO_TEMPLATE: self.counts.undecodable_sets}, ended)
        return evolve(account, faults=together(account.faults, news)) if news else account

    def _take(self, whole: bytes) -> None:
        walk = self._session.walk(whole)
        counts = self.counts
        counts.messages += walk.messages
        counts.records += walk.records
        counts.lost_records += walk.lost_records
        counts.undecodable_sets += walk.undecodable_sets
        counts.ignored_sets += walk.ignored_sets
        counts.redefined_templates += walk.redefined
        counts.stray_withdrawals += walk.stray_withdrawals
        if walk.taken:
            taken = whole if walk.taken == len(whole) else whole[: walk.taken]
            if walk.cuts:
                taken = mended(taken, walk.cuts)
                counts.refused_sets.update(cut.reason for cut in walk.cuts)
            self._open.add(taken, walk.messages, walk.records)
        if walk.fault is not None:
            fault = walk.fault
            self.fault = MalformedMessage(fault.what, offset=self._walked + fault.offset, reason=fault.reason)
        self._walked += walk.taken


@define
class _Open:
    pieces: list[bytes] = field(factory=list)
    size: int = 0
    messages: int = 0
    records: int = 0

    def add(self, data: bytes, messages: int, records: int) -> None:
        self.pieces.append(data)
        self.size += len(data)
        self.messages += messages
        self.records += records
