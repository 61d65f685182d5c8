"""A collector between a meter and a Phloem node, over memory streams: who may do what, and what is held."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MockClock, memory_stream_pair

from collector.sessions import Collector, CollectorSettings
from sapflow.flows.reference import reference_work
from sapflow.link import (
    Acknowledged,
    Batch,
    BatchReceived,
    Closed,
    Connection,
    CreditGranted,
    CreditWanted,
    Event,
    Opened,
    Rewound,
    Side,
    StreamEnded,
    StreamId,
    Welcomed,
)
from sapflow.link.frames import Close, Hint
from tests.unit.flows.flows_made import messages

STREAM = StreamId(b"0123456789abcdef")
TOKENS = {"a-token": "acme", "g-token": "globex"}


class Peer:
    """One end of a link to the collector, driven by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.connection = Connection(Side.CLIENT)
        self._stream = stream
        self._events: list[Event] = []

    async def say(self, *pieces: bytes) -> None:
        await self._stream.send_all(b"".join(pieces))

    async def hear(self) -> Event:
        while not self._events:
            data = await self._stream.receive_some(1 << 20)
            if not data:
                return Closed(0, "without a word")
            self._events += self.connection.receive(bytes(data))
        return self._events.pop(0)

    async def hello(self, **fields: Any) -> Event:
        await self.say(self.connection.hello(Hint(), **fields))
        return await self.hear()

    async def open(self, org: str = "", stream: StreamId = STREAM) -> int:
        handle, data = self.connection.open(stream, org, "192.0.2.1:9")
        await self.say(data)
        return handle

    async def send(self, handle: int, batch: Batch) -> None:
        await self.say(self.connection.want(handle, batch.size))
        assert isinstance(await self.hear(), CreditGranted)
        await self.say(*self.connection.batch(handle, batch))


def a_collector(**settings: Any) -> Collector:
    return Collector(CollectorSettings("c1", "f-token", budget_bytes=8 << 20, **settings), TOKENS.get)


def a_batch(seq: int = 1, records: int = 2) -> Batch:
    return Batch(seq, 1, records * 24, 0, reference_work(records))


@asynccontextmanager
async def links(collector: Collector, count: int) -> AsyncIterator[list[Peer]]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            peers = []
            for number in range(count):
                ours, theirs = memory_stream_pair()
                nursery.start_soon(collector.serve_link, ours, f"peer-{number}")
                peers.append(Peer(theirs))
            yield peers
            nursery.cancel_scope.cancel()


async def a_subscriber(peer: Peer) -> None:
    assert isinstance(await peer.hello(role="phloem", name="p1", token="f-token"), Welcomed)
    await peer.say(peer.connection.subscribe(orgs=["*"]))


async def deliver(phloem: Peer) -> tuple[int, Batch]:
    """The next batch at the subscriber, which grants what it is asked for."""
    while True:
        match await phloem.hear():
            case CreditWanted(handle, limit):
                await phloem.say(phloem.connection.grant(handle, limit))
            case BatchReceived(handle, batch):
                return handle, batch
            case Opened() | Acknowledged() | StreamEnded():
                continue
            case other:
                raise AssertionError(other)


async def test_an_acknowledgement_comes_from_the_subscriber_and_frees_the_budget(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 2) as (meter, phloem):
        await a_subscriber(phloem)
        assert await meter.hello(role="meter", token="a-token") == Welcomed({"name": "c1", "org": "acme"})
        handle = await meter.open()
        await meter.send(handle, a_batch())
        theirs, batch = await deliver(phloem)
        assert batch == a_batch()
        assert collector.pool.used_bytes == a_batch().size
        await phloem.say(phloem.connection.acknowledge(theirs, 1))
        assert await meter.hear() == Acknowledged(handle, 1)
        assert collector.pool.used_bytes == 0


async def test_what_a_subscriber_did_not_acknowledge_goes_to_the_next_one(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 3) as (meter, first, second):
        await a_subscriber(first)
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        await meter.send(handle, a_batch())
        await deliver(first)
        await first._stream.aclose()
        await a_subscriber(second)
        theirs, batch = await deliver(second)
        assert batch.seq == 1
        await second.say(second.connection.acknowledge(theirs, 1))
        assert await meter.hear() == Acknowledged(handle, 1)


async def test_what_a_meter_left_behind_is_still_delivered_and_then_forgotten(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 2) as (meter, phloem):
        await meter.hello(role="meter", token="a-token")
        await meter.send(await meter.open(), a_batch())
        await meter._stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await a_subscriber(phloem)
        theirs, _ = await deliver(phloem)
        await phloem.say(phloem.connection.acknowledge(theirs, 1))
        await trio.testing.wait_all_tasks_blocked()
        assert not collector.endpoints["acme"].streams
        assert collector.pool.used_bytes == 0


async def test_a_gap_that_this_collector_cannot_fill_is_passed_upstream(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 2) as (meter, phloem):
        await a_subscriber(phloem)
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        await meter.send(handle, a_batch(5))
        theirs, _ = await deliver(phloem)
        await phloem.say(phloem.connection.rewind(theirs, 2))
        assert await meter.hear() == Rewound(handle, 2)
        assert collector.pool.used_bytes == 0


async def test_a_stream_with_a_gap_whose_meter_has_left_is_forgotten(autojump_clock: MockClock) -> None:
    """Nobody is there who could fill it; its meter sends it again by whichever collector it finds."""
    collector = a_collector()
    async with links(collector, 2) as (meter, phloem):
        await a_subscriber(phloem)
        await meter.hello(role="meter", token="a-token")
        await meter.send(await meter.open(), a_batch(5))
        theirs, _ = await deliver(phloem)
        await meter._stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await phloem.say(phloem.connection.rewind(theirs, 2))
        await trio.testing.wait_all_tasks_blocked()
        assert not collector.endpoints["acme"].streams
        assert collector.pool.used_bytes == 0


async def test_a_batch_that_comes_again_after_it_was_let_go_is_sent_on_and_acknowledged_again(
    autojump_clock: MockClock,
) -> None:
    # Its acknowledgement was lost with the meter's host, whose old link this collector still holds for alive.
    collector = a_collector()
    async with links(collector, 3) as (lost, again, phloem):
        await a_subscriber(phloem)
        await lost.hello(role="meter", token="a-token")
        await lost.send(await lost.open(), a_batch())
        theirs, _ = await deliver(phloem)
        await phloem.say(phloem.connection.acknowledge(theirs, 1))
        await again.hello(role="meter", token="a-token")
        handle = await again.open()
        await again.send(handle, a_batch())
        theirs, batch = await deliver(phloem)
        assert batch.seq == 1
        await phloem.say(phloem.connection.acknowledge(theirs, 1))
        assert await again.hear() == Acknowledged(handle, 1)
        assert collector.pool.used_bytes == 0


async def test_w12_a_conflict_ends_the_meters_link_and_no_other(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 3) as (meter, phloem, other):
        await a_subscriber(phloem)
        await meter.hello(role="meter", token="a-token")
        await other.hello(role="meter", token="g-token")
        await meter.send(await meter.open(), a_batch())
        theirs, _ = await deliver(phloem)
        await phloem.say(phloem.connection.notice(kind="conflict", handle=theirs, mark=1))
        closed = await meter.hear()
        assert isinstance(closed, Closed)
        assert closed.code == Close.CONFLICT
        await other.send(await other.open(stream=StreamId(bytes(16))), a_batch())
        assert (await deliver(phloem))[1] == a_batch()
        assert collector.pool.used_bytes == a_batch().size


async def test_w09_every_wrong_credential_gets_the_same_answer(autojump_clock: MockClock) -> None:
    collector = a_collector()
    hellos = [
        {},
        {"role": "meter", "token": "x"},
        {"role": "phloem", "token": "a-token"},
        {"role": "intake", "token": ""},
    ]
    async with links(collector, len(hellos)) as peers:
        answers = [await peer.hello(**fields) for peer, fields in zip(peers, hellos, strict=True)]
    assert len(set(answers)) == 1
    assert isinstance(answers[0], Closed)
    assert answers[0].code == Close.UNAUTHORIZED
    assert collector.counts.unauthorized == len(hellos)


async def test_a_meter_writes_to_its_own_org_and_no_other(autojump_clock: MockClock) -> None:
    async with links(a_collector(), 1) as (meter,):
        await meter.hello(role="meter", token="a-token")
        await meter.open(org="globex")
        closed = await meter.hear()
        assert isinstance(closed, Closed)
        assert closed.code == Close.FORBIDDEN


async def test_s01_a_meter_cannot_subscribe_to_anything(autojump_clock: MockClock) -> None:
    for orgs in (["*"], ["globex"], ["acme"], ["../globex"], []):
        async with links(a_collector(), 1) as (meter,):
            await meter.hello(role="meter", token="a-token")
            await meter.say(meter.connection.subscribe(orgs=orgs))
            closed = await meter.hear()
            assert isinstance(closed, Closed)
            assert closed.code == Close.FORBIDDEN


async def test_a_batch_that_is_not_what_it_says_ends_its_link_and_nothing_of_it_is_taken(
    autojump_clock: MockClock,
) -> None:
    good = a_batch()
    bad = [
        Batch(1, 1, 1, 0, good.payload),
        Batch(1, 1, 48, 0, good.payload[:-1]),
        Batch(1, 1, 48, 0, b"\0\x09" + good.payload[2:]),
    ]
    for batch in bad:
        collector = a_collector()
        async with links(collector, 1) as (meter,):
            await meter.hello(role="meter", token="a-token")
            await meter.send(await meter.open(), batch)
            assert await meter.hear() == Closed(0, "without a word")
            await trio.testing.wait_all_tasks_blocked()
            assert collector.counts.malformed == 1
            assert collector.pool.used_bytes == 0
            assert collector.endpoints["acme"].taken.batches == 0


async def test_w08_a_link_that_says_nothing_is_closed_at_the_deadline(autojump_clock: MockClock) -> None:
    collector = a_collector(hello_timeout_s=5.0)
    async with links(collector, 2) as (silent, slow):
        began = trio.current_time()
        await slow.say(b"SAPL")
        assert await silent.hear() == Closed(0, "without a word")
        assert await slow.hear() == Closed(Close.TIMEOUT, "no hello in time")
        assert trio.current_time() - began <= 6


async def test_a_half_open_peer_is_found_and_its_place_freed(autojump_clock: MockClock) -> None:
    collector = a_collector(idle_timeout_s=30.0)
    async with links(collector, 1) as (meter,):
        await meter.hello(role="meter", token="a-token")
        assert collector.counts.links == 1
        await trio.sleep(45)
        assert collector.counts.links == 0


async def test_an_org_that_nobody_takes_from_is_held_within_its_share(autojump_clock: MockClock) -> None:
    collector = a_collector(org_share=0.5)
    async with links(collector, 2) as (slow, fast):
        await slow.hello(role="meter", token="a-token")
        await fast.hello(role="meter", token="g-token")
        handle = await slow.open()
        batch = a_batch(1, records=400)
        sent = 0
        with trio.move_on_after(5):
            while True:
                await slow.send(handle, Batch(sent + 1, 1, batch.records, 0, batch.payload))
                sent += 1
        assert 1 << 20 < sent * batch.size <= 4 << 20
        await fast.send(await fast.open(stream=StreamId(bytes(16))), a_batch())
        await trio.testing.wait_all_tasks_blocked()
        assert collector.endpoints["globex"].taken.batches == 1


def telling(seq: int, name: str | None, *, lies: bool = False) -> Batch:
    """One that says what interface 7 is called, or nothing of the sort."""
    flow = messages({"ingressInterface": 7, "octetDeltaCount": seq}, template=301)
    told = b"" if name is None else messages({"ingressInterface": 7, "interfaceName": name}, scopes=1)
    return Batch(seq, 2 + 2 * bool(name), 1 + bool(name), 0, told + flow, tells=lies)


async def test_batches_that_tell_what_the_one_before_did_not_are_marked_whatever_their_sender_says(
    autojump_clock: MockClock,
) -> None:
    async with links(a_collector(), 2) as (meter, phloem):
        await a_subscriber(phloem)
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        found = []
        for seq, name in enumerate((None, "eth0", "eth0", None, "eth0", "eth1", "eth0"), 1):
            await meter.send(handle, telling(seq, name, lies=seq % 2 == 1))
            _, batch = await deliver(phloem)
            found.append(batch.tells)
        assert found == [False, True, False, False, False, True, True]


async def test_what_is_told_again_after_batches_went_another_way_is_marked_again(autojump_clock: MockClock) -> None:
    """They may have told something else in between."""
    async with links(a_collector(), 2) as (meter, phloem):
        await a_subscriber(phloem)
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        found = []
        for seq, name in ((1, "eth0"), (2, "eth0"), (5, "eth0"), (6, "eth0"), (9, None), (10, "eth0")):
            await meter.send(handle, telling(seq, name))
            _, batch = await deliver(phloem)
            found.append((batch.seq, batch.tells))
        assert found == [(1, True), (2, False), (5, True), (6, False), (9, False), (10, True)]
