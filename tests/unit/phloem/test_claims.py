"""A node and its orgs, where several share a log: wanted as collectors tell, subscribed as held, let go of in time."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, memory_stream_pair

from collector.sessions import Collector, CollectorSettings
from phloem import connections as phloem_connections
from phloem.claims import YIELD_S, OrgClaims
from phloem.commits import Committer
from phloem.connections import Connections, ConnectionSettings
from phloem.engine.embedded import EmbeddedLog
from sapflow.cluster.view import Member, View
from sapflow.link import Batch, BatchReceived, Opened, StreamId

STREAM = StreamId(b"0123456789abcdef")
GONE_S = 4.0


@pytest.fixture
def soon_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links live in real time."""
    monkeypatch.setattr(phloem_connections, "GONE_S", GONE_S)


@define
class FakeMember:
    """A coordinator's member that is given what it wants when it is told to give."""

    wanted: set[str] = field(factory=set)
    held: Set[str] = frozenset()
    member: Member = Member("p1", "phloem", "g", 1, {})
    view: View = View()
    leaving: bool = False

    def want(self, org: str) -> None:
        self.wanted.add(org)

    def release(self, org: str) -> None:
        self.wanted.discard(org)
        self.held -= {org}

    def leave(self) -> None:
        self.leaving = True

    @property
    def has_left(self) -> bool:
        return self.leaving and not self.held

    def counts(self) -> dict[str, int]:
        return {}

    def gauges(self) -> dict[str, float]:
        return {}

    async def run(self) -> None:
        await trio.sleep_forever()


class FakeLog(EmbeddedLog):
    """A log that may be out of reach, and notes what it is to forget."""

    reached = True
    forgotten: list[str]

    @property
    def is_open(self) -> bool:  # type: ignore[override]
        return self.reached

    def forget(self, org: str) -> None:
        self.forgotten.append(org)


@define
class Node:
    """A Phloem node's links and claims, with collectors in this process."""

    engine: FakeLog
    connections: Connections
    claims: OrgClaims
    member: FakeMember
    collectors: dict[str, Collector]
    nursery: trio.Nursery

    async def dial(self, address: str) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.collectors[address].serve_link, ours, address)
        return theirs

    def give(self, *orgs: str) -> None:
        """What the member holds now."""
        self.member.held = frozenset(orgs)
        self.claims.changed()

    def subscribed(self) -> list[set[str]]:
        """Which orgs each collector sends here."""
        return [{org for org, found in one.endpoints.items() if found.durable} for one in self.collectors.values()]


@pytest.fixture
async def node(tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery) -> Node:
    engine = FakeLog.open(tmp_path)
    assert isinstance(engine, FakeLog)
    engine.forgotten = []
    committer = Committer(engine, channel_bytes=8 << 20, commit_bytes=1 << 20, on_stored=lambda _: None)

    async def dial(address: str) -> trio.abc.Stream:
        return await made.dial(address)

    settings = ConnectionSettings("p1", "f-token", budget_bytes=8 << 20)
    connections = Connections(settings, committer, dial, chooses_orgs=True)
    collectors = {name: Collector(CollectorSettings(name, "f-token"), {}.get) for name in ("c1", "c2")}
    made = Node(engine, connections, OrgClaims(engine, connections), FakeMember(), collectors, nursery)
    connections.collectors({name: name for name in collectors})
    nursery.start_soon(connections.run)
    nursery.start_soon(made.claims.run, made.member)
    await trio.sleep(1)
    return made


async def test_what_any_collector_has_is_wanted_and_what_is_held_is_subscribed_to_everywhere(node: Node) -> None:
    node.collectors["c1"].endpoint("acme")
    node.collectors["c2"].endpoint("globex")
    await trio.sleep(1)
    assert node.member.wanted == {"acme", "globex"}
    assert node.subscribed() == [set(), set()]
    assert not node.connections.is_begun("acme")
    node.give("acme")
    assert node.connections.is_begun("acme")
    await trio.sleep(1)
    assert node.subscribed() == [{"acme"}, {"acme"}]
    node.give("globex")
    await trio.sleep(1)
    assert node.subscribed() == [{"globex"}, {"globex"}]
    assert node.engine.forgotten == ["acme"]


async def test_a_collector_that_comes_later_is_asked_for_what_is_held(node: Node) -> None:
    node.give("acme")
    node.collectors["c3"] = Collector(CollectorSettings("c3", "f-token"), {}.get)
    node.connections.collectors({name: name for name in node.collectors})
    await trio.sleep(1)
    assert node.subscribed() == [{"acme"}] * 3
    assert node.connections.is_begun("acme")


async def test_many_orgs_are_asked_for_in_several_requests(node: Node) -> None:
    orgs = [f"{'x' * 55}-{number}" for number in range(1200)]
    node.give(*orgs)
    await trio.sleep(1)
    assert node.subscribed() == [set(orgs)] * 2
    node.give()
    await trio.sleep(1)
    assert node.subscribed() == [set(), set()]
    assert node.connections.counts.dialled == 2, "no link was cut for it"


async def test_a_node_without_its_log_lets_go_of_its_orgs_and_wants_them_again_when_it_is_back(node: Node) -> None:
    node.collectors["c1"].endpoint("acme")
    await trio.sleep(1)
    node.engine.reached = False
    await trio.sleep(YIELD_S / 2)
    assert node.member.wanted == {"acme"}, "it may be back soon"
    await trio.sleep(YIELD_S)
    assert node.member.wanted == set()
    node.collectors["c1"].endpoint("globex")
    await trio.sleep(1)
    assert node.member.wanted == set()
    node.engine.reached = True
    await trio.sleep(2)
    assert node.member.wanted == {"acme", "globex"}


async def test_batches_read_before_a_cut_are_not_stored_without_those_that_were_dropped(node: Node) -> None:
    """The log fails with a stream's first batch; its second was read from the link already."""
    node.give("acme")
    await trio.sleep(1)
    (link, *_) = node.connections.links.values()
    link._handle(Opened(1, STREAM, "acme", "x"))
    node.connections.pool.want((link._number, 1), 100)
    node.connections.pool.turn()
    link.failed()
    link._handle(BatchReceived(1, Batch(2, 1, 1, 1, b"second")))
    assert len(node.connections.committer.channel) == 0


async def test_an_org_that_no_collector_has_a_stream_of_is_let_go_of_and_claimed_again_when_one_comes(
    node: Node, soon_gone: None
) -> None:
    one, other = node.collectors.values()
    one.endpoint("acme"), other.endpoint("acme"), other.endpoint("globex")
    await trio.sleep(1)
    node.give("acme", "globex")
    for subscriber in one.told.values():
        subscriber.tell(["acme"], here=False)
    await trio.sleep(GONE_S + 2)
    # The other collector has it still.
    assert node.member.wanted == {"acme", "globex"}
    for subscriber in other.told.values():
        subscriber.tell(["acme"], here=False)
    await trio.sleep(GONE_S - 2)
    assert node.member.wanted == {"acme", "globex"}
    await trio.sleep(4)
    assert node.member.wanted == node.connections.orgs == {"globex"}
    for subscriber in one.told.values():
        subscriber.tell(["acme"])
    await trio.sleep(1)
    assert node.member.wanted == {"acme", "globex"}


async def test_an_org_that_there_is_work_for_is_wanted_without_a_stream_of_it(node: Node, soon_gone: None) -> None:
    """An exit has a backlog to publish, whether its exporters still send or not."""
    node.connections.always = frozenset({"acme"})
    node.connections.met("acme")
    node.collectors["c1"].endpoint("globex")
    await trio.sleep(GONE_S + 4)
    assert node.member.wanted == {"acme", "globex"}


async def test_a_collector_that_is_gone_for_good_tells_of_no_org(node: Node, soon_gone: None) -> None:
    one, other = node.collectors.values()
    one.endpoint("acme"), other.endpoint("globex")
    await trio.sleep(1)
    node.connections.collectors({"c2": "c2"})
    await trio.sleep(GONE_S + 2)
    assert node.member.wanted == {"globex"}
    node.connections.collectors({})
    await trio.sleep(2 * GONE_S)
    # Of whom nobody is left to tell nothing is known, and nothing is let go of.
    assert node.member.wanted == {"globex"}
