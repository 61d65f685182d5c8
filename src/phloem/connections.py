"""Links to collectors: one task for each, with timeouts and jittered back-off, apart from the tasks that carry data.

A node that shares the log with others is told by each collector which orgs there are, and subscribes to those that it
holds; one that has it for itself subscribes to all.

A link's batches go into the committer's channel under credit from this node's budget, so the channel never has to
make a link wait; what the engine said comes back as acknowledgements, one a stream and commit.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Set

import structlog
import trio
from attrs import define, frozen

from phloem.commits import Commit, Committer
from phloem.engine.engine import Outcome
from phloem.rates import OrgRates
from sapflow.entry import LogEntry
from sapflow.errors import SapflowError, Unreachable, first_of
from sapflow.link import (
    BatchReceived,
    Connection,
    CreditPool,
    CreditWanted,
    Event,
    Noticed,
    Opened,
    Side,
    StreamEnded,
    Traffic,
    Welcomed,
)
from sapflow.link.frames import Hint
from sapflow.runtime.each import TaskEach
from sapflow.runtime.session import LinkSession

log = structlog.get_logger()

GONE_S = 60.0
"""An org that no collector tells of for so long is gone."""
ORGS_ASKED = 500
"""In one request: it must fit a control frame."""


@frozen
class ConnectionSettings:
    """How this node presents itself to collectors, and its bounds."""

    name: str
    fleet_token: str
    budget_bytes: int = 256 << 20
    org_share: float = 0.5
    connect_timeout_s: float = 2.0
    idle_timeout_s: float = 30.0
    backoff_first_s: float = 0.05
    backoff_most_s: float = 2.0


@define
class ConnectionCounts:
    """What came over the links; never goes down, but for `links`."""

    links: int = 0
    dialled: int = 0
    failed: int = 0


class Connections:
    """Keeps a link to every collector that is known of."""

    def __init__(
        self,
        settings: ConnectionSettings,
        committer: Committer,
        dial: Callable[[str], Awaitable[trio.abc.Stream]],
        *,
        chooses_orgs: bool = False,
        always: Iterable[str] = (),
    ) -> None:
        """With `chooses_orgs` those are subscribed to that `hold` is called with, else all.

        `always`: orgs that there is work for without a stream of theirs.
        """
        self.settings = settings
        self.committer = committer
        self.counts = ConnectionCounts()
        self.taken = Traffic()
        self.pool = CreditPool(settings.budget_bytes, org_share=settings.org_share)
        self.links: dict[int, _CollectorLink] = {}
        self.dial = dial
        self.always = frozenset(always)
        self.orgs: set[str] = set(self.always)
        """Orgs that are known of: those, told by collectors, or their streams have come here."""
        self.on_org: Callable[[str], None] = lambda _org: None
        """Called with each org that was not known of before."""
        self.held: frozenset[str] | None = frozenset() if chooses_orgs else None
        """Orgs to subscribe to; None: all."""
        self.rates = OrgRates(trio.current_time())
        self._untold: dict[str, float] = {}
        """Known orgs that no collector tells of, and since when."""
        self._tasks = TaskEach(self._keep)
        self._next_number = 1

    def collectors(self, addresses: dict[str, str]) -> None:
        """The collectors that there are now: link addresses by name."""
        self._tasks.of(addresses)

    def hold(self, orgs: Set[str]) -> None:
        """Subscribe to these orgs, and no others, on every link."""
        self.held = frozenset(orgs)
        for link in list(self.links.values()):
            link.subscribe()

    def is_begun(self, org: str) -> bool:
        """Whether every collector that is reached has been asked for an org's streams, and there is one."""
        return bool(self.links) and all(org in link.subscribed for link in self.links.values())

    async def run(self) -> None:
        """Hold a link to each collector until cancelled."""
        await self._tasks.run()

    async def _keep(self, name: str, address: str) -> None:
        failures = 0
        while True:
            link = _CollectorLink(self, name, address, self._next_number)
            self._next_number += 1
            reason = "closed by the collector"
            try:
                self.counts.dialled += 1
                await link.run(await self.dial(address))
            except* (SapflowError, trio.BrokenResourceError) as group:
                error = first_of(group)
                reason = str(error)
                if isinstance(error, Unreachable):
                    self.counts.failed += 1
            failures = 1 if link.welcomed else failures + 1
            delay_s = random.uniform(
                0, min(self.settings.backoff_most_s, self.settings.backoff_first_s * 2 ** min(failures, 16))
            )
            log.info("link to collector lost", collector=name, address=address, reason=reason, retry_s=delay_s)
            await trio.sleep(delay_s)

    def met(self, org: str) -> None:
        """There is this org: `on_org` is told when that is new."""
        if org not in self.orgs:
            self.orgs.add(org)
            self.on_org(org)

    def gone(self, now: float) -> list[str]:
        """Orgs that no collector has told of for long: they are not known of any more, until one does."""
        if not self.links:
            return []  # nobody is there to tell
        told = set().union(*(link.told for link in self.links.values()))
        self._untold = {org: self._untold.get(org, now) for org in self.orgs - told - self.always}
        found = sorted(org for org, since in self._untold.items() if now - since >= GONE_S)
        self.orgs.difference_update(found)
        return found

    def grant(self) -> None:
        """Tell collectors what the budget allows now."""
        for key, limit in self.pool.turn():
            assert isinstance(key, tuple)
            self.links[key[0]].grant(key[1], limit)


class _CollectorLink:
    """One link to one collector: a `Source` of commits."""

    def __init__(self, owner: Connections, name: str, address: str, number: int) -> None:
        self.welcomed = False
        self._is_cut = False
        self.told: set[str] = set()
        """Orgs that the collector has streams of, or had a moment ago."""
        self.subscribed: set[str] = set()
        """Orgs that the collector was asked for; of no meaning where all are."""
        self._owner = owner
        self._name = name
        self._address = address
        self._number = number
        self._streams: dict[int, Opened] = {}
        self._session: LinkSession | None = None
        self._outcomes: dict[int, Outcome] = {}

    async def run(self, stream: trio.abc.Stream) -> None:
        owner, settings = self._owner, self._owner.settings
        connection = Connection(Side.CLIENT)
        self._session = session = LinkSession(
            stream,
            connection,
            peer=f"{self._name} ({self._address})",
            idle_timeout_s=settings.idle_timeout_s,
            max_unsent_bytes=16 << 20,
        )
        owner.links[self._number] = self
        owner.committer.sources[self] = None
        owner.counts.links += 1
        try:
            async with session.open():
                session.send(
                    connection.hello(
                        Hint(name=settings.name), role="phloem", name=settings.name, token=settings.fleet_token
                    ),
                )
                async for events in session.events():
                    for event in events:
                        self._handle(event)
                    owner.grant()
        finally:
            owner.counts.links -= 1
            owner.committer.sources.pop(self, None)
            del owner.links[self._number]
            self._session = None
            for handle in self._streams:
                owner.pool.close((self._number, handle))
            owner.grant()

    def subscribe(self) -> None:
        """Ask the collector for what is held, and to keep what is not."""
        session, held = self._session, self._owner.held
        if session is None or held is None or not self.welcomed:
            return
        new, old = sorted(held - self.subscribed), sorted(self.subscribed - held)
        self.subscribed = set(held)
        connection = session.connection
        for at in range(0, len(new), ORGS_ASKED):
            session.send(connection.subscribe(orgs=new[at : at + ORGS_ASKED]))
        for at in range(0, len(old), ORGS_ASKED):
            session.send(connection.subscribe(leave=old[at : at + ORGS_ASKED]))

    def grant(self, handle: int, limit: int) -> None:
        """Let the collector send more of a stream."""
        if self._session is not None:
            self._session.send(self._session.connection.grant(handle, limit))

    def committed(self, commit: Commit, outcome: Outcome) -> None:
        """Give the bytes back to the budget, and remember what to tell the collector."""
        self._owner.pool.release(commit.org, commit.size)
        known = self._outcomes.get(commit.handle)
        if known is None or known.kind in ("stored", "duplicate") or outcome.kind == "conflict":
            self._outcomes[commit.handle] = outcome

    def settle(self) -> None:
        """Tell the collector each stream's mark, once a commit."""
        outcomes, self._outcomes = self._outcomes, {}
        session = self._session
        if session is not None:
            connection = session.connection
            for handle, outcome in outcomes.items():
                if handle not in self._streams:
                    continue
                session.send(connection.acknowledge(handle, outcome.mark))
                if outcome.kind == "refused":
                    session.send(connection.rewind(handle, outcome.mark))
                elif outcome.kind == "conflict":
                    session.send(connection.notice(kind="conflict", handle=handle, mark=outcome.mark))
        self._owner.grant()

    def is_due(self, commit: Commit) -> bool:
        """Not when its stream has ended here: another node has it, or all of it is durable."""
        return self._session is None or commit.handle in self._streams

    def dropped(self, commit: Commit) -> None:
        """Give back the bytes of a batch that is not durable; its collector still has it."""
        self._owner.pool.release(commit.org, commit.size)

    def failed(self) -> None:
        """The engine failed: cut the link, so that the collector sends again from its lowest."""
        self._is_cut = True
        if self._session is not None:
            self._session.cut()

    def _handle(self, event: Event) -> None:
        owner = self._owner
        if self._is_cut:
            # What was read before the cut: the batches before it were dropped, and a new stream may start anywhere.
            return
        match event:
            case BatchReceived(handle, batch):
                opened = self._streams[handle]
                owner.taken.add(batch)
                owner.rates.add(opened.org, batch.size)
                owner.pool.received((self._number, handle), batch.size)
                entry = LogEntry(
                    stream=opened.stream,
                    seq=batch.seq,
                    exporter=opened.exporter,
                    received_us=batch.received_us,
                    messages=batch.messages,
                    records=batch.records,
                    payload=batch.payload,
                    account=batch.account,
                    tells=batch.tells,
                )
                owner.committer.put(Commit(opened.org, entry, self, handle, batch))
            case CreditWanted(handle, limit):
                owner.pool.want((self._number, handle), limit)
            case Opened():
                self._met(event.org)
                owner.pool.open((self._number, event.handle), event.org)
                self._streams[event.handle] = event
            case StreamEnded(handle):
                owner.pool.close((self._number, handle))
                del self._streams[handle]
            case Welcomed():
                self._welcomed()
            case Noticed(fields) if fields.get("kind") == "orgs":
                self.told.difference_update(map(str, fields.get("gone", ())))
                for org in fields.get("orgs", ()):
                    self._met(str(org))
            case _:
                log.debug("event not for phloem", collector=self._name, got=type(event).__name__)

    def _met(self, org: str) -> None:
        self.told.add(org)
        self._owner.met(org)

    def _welcomed(self) -> None:
        self.welcomed = True
        assert self._session is not None
        if self._owner.held is None:
            self._session.send(self._session.connection.subscribe(orgs=["*"]))
        else:
            self._session.send(self._session.connection.subscribe(tell=True))
            self.subscribe()
        log.info("subscribed", collector=self._name, address=self._address)
