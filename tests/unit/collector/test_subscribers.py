"""Phloem nodes that choose their orgs: told of each, handed over with overlap, acknowledged by either."""

import pytest
import trio
from trio.testing import MockClock

from collector import presence
from collector.reporting import Reporting
from collector.subscriber import ORGS_TOLD
from sapflow.link import Acknowledged, Noticed, Opened, StreamEnded, Welcomed
from sapflow.monitor.process import ProcessFigures
from tests.unit.collector.test_collector import Peer, a_batch, a_collector, deliver, links


async def a_chooser(peer: Peer, *orgs: str) -> None:
    assert isinstance(await peer.hello(role="phloem", name="p", token="f-token"), Welcomed)
    await peer.say(peer.connection.subscribe(tell=True, orgs=list(orgs)))


async def test_a_node_is_told_of_every_org_now_and_later_and_sent_only_what_it_asked_for(
    autojump_clock: MockClock,
) -> None:
    collector = a_collector()
    async with links(collector, 3) as (meter, other, phloem):
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        await a_chooser(phloem)
        assert await phloem.hear() == Noticed({"kind": "orgs", "orgs": ["acme"]})
        await other.hello(role="meter", token="g-token")
        await other.open()
        assert await phloem.hear() == Noticed({"kind": "orgs", "orgs": ["globex"]})
        await phloem.say(phloem.connection.subscribe(orgs=["acme"]))
        await meter.send(handle, a_batch())
        assert isinstance(opened := await phloem.hear(), Opened)
        assert opened.org == "acme"
        assert (await deliver(phloem))[1] == a_batch()


async def test_many_orgs_are_told_in_several_notices(autojump_clock: MockClock) -> None:
    collector = a_collector()
    names = [f"{'x' * 50}-{number}" for number in range(2 * ORGS_TOLD + 1)]
    for name in names:
        collector.endpoint(name)
    async with links(collector, 1) as (phloem,):
        await a_chooser(phloem)
        told: list[str] = []
        while len(told) < len(names):
            notice = await phloem.hear()
            assert isinstance(notice, Noticed)
            told += notice.fields["orgs"]
        assert told == names


async def test_an_org_is_handed_over_with_overlap_and_acknowledged_by_either(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 3) as (meter, old, new):
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        await a_chooser(old, "acme")
        await meter.send(handle, a_batch(1))
        assert isinstance(await old.hear(), Noticed)
        await deliver(old)
        await a_chooser(new, "acme")
        assert isinstance(await new.hear(), Noticed)
        theirs, batch = await deliver(new)
        assert batch.seq == 1, "the new one begins with the lowest that is not acknowledged"
        await new.say(new.connection.acknowledge(theirs, 1))
        assert await meter.hear() == Acknowledged(handle, 1)
        assert collector.pool.used_bytes == 0
        await old.say(old.connection.subscribe(leave=["acme"]))
        while not isinstance(event := await old.hear(), StreamEnded):
            assert not isinstance(event, Opened)
        await meter.send(handle, a_batch(2))
        assert (await deliver(new))[1].seq == 2
        with trio.move_on_after(5) as silence:
            await old.hear()
        assert silence.cancelled_caught
        assert len(collector.endpoints["acme"].durable) == 1


async def test_an_org_that_a_node_let_go_of_and_takes_again_begins_with_the_lowest(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 2) as (meter, phloem):
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        await a_chooser(phloem, "acme")
        assert isinstance(await phloem.hear(), Noticed)
        await meter.send(handle, a_batch(1))
        first, _ = await deliver(phloem)
        await phloem.say(phloem.connection.subscribe(leave=["acme", "globex"]))
        await phloem.say(phloem.connection.subscribe(orgs=["acme"]))
        second, batch = await deliver(phloem)
        assert (batch.seq, second > first) == (1, True)
        # An acknowledgement on the stream that ended is of the past.
        await phloem.say(phloem.connection.acknowledge(first, 1), phloem.connection.acknowledge(second, 1))
        assert await meter.hear() == Acknowledged(handle, 1)


async def test_a_node_is_told_of_an_org_without_a_stream_that_it_is_gone_and_when_one_comes_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "GONE_S", 10.0)
    collector = a_collector()
    async with links(collector, 4) as (meter, again, phloem, late), trio.open_nursery() as nursery:
        nursery.start_soon(Reporting(collector, ProcessFigures(), 1.0).run)
        await meter.hello(role="meter", token="a-token")
        handle = await meter.open()
        await a_chooser(phloem)
        assert await phloem.hear() == Noticed({"kind": "orgs", "orgs": ["acme"]})
        await again.hello(role="meter", token="a-token")
        await late.hello(role="phloem", name="p", token="f-token")
        await trio.sleep(20)
        await meter.say(meter.connection.end(handle))
        ended = trio.current_time()
        assert await phloem.hear() == Noticed({"kind": "orgs", "gone": ["acme"]})
        assert 10 <= trio.current_time() - ended < 10 + 3 * presence.LOOK_S
        await late.say(late.connection.subscribe(tell=True))
        await again.open()
        for node in (phloem, late):
            assert await node.hear() == Noticed({"kind": "orgs", "orgs": ["acme"]})
        nursery.cancel_scope.cancel()
