"""A batch that collectors refuse: an empty one with an account goes in its place, and its stream goes on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from collector.sessions import Collector, CollectorSettings
from meter.batching import Draft
from meter.keeping_settings import KeepingSettings
from meter.quarantine import REFUSED_BATCH, emptied
from meter.spool import Spool
from meter.spooling import Spooling
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.flows.reference import reference_work
from sapflow.ledger import StreamLedger
from sapflow.link import (
    Batch,
    BatchReceived,
    Connection,
    CreditWanted,
    HelloReceived,
    Opened,
    Side,
    StreamId,
    Welcomed,
)
from sapflow.link.account import Account, decode_account
from sapflow.link.frames import Hint
from tests.small_fleet import small_fleet

GOOD = reference_work(2)
RECORDS = 48


def good() -> Draft:
    return Draft(2, RECORDS, GOOD)


def bad(records: int = RECORDS) -> Draft:
    """Cut off in its last set."""
    return Draft(2, records, GOOD[:-1])


@define
class Fleet:
    """A real collector, with a log behind it that keeps the four rules."""

    nursery: trio.Nursery
    collector: Collector = field(factory=lambda: Collector(CollectorSettings("c1", "f-token"), {"t": "acme"}.get))
    log: dict[StreamId, list[Batch]] = field(factory=dict)
    acknowledging: bool = True
    links: int = 0

    async def dial(self, _target: Target) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        self.links += 1
        self.nursery.start_soon(self.collector.serve_link, ours, "a meter")
        return theirs

    async def store(self) -> None:
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.collector.serve_link, ours, "phloem")
        connection = Connection(Side.CLIENT)
        streams: dict[int, StreamId] = {}
        await theirs.send_all(connection.hello(Hint(), role="phloem", name="p1", token="f-token"))
        async for data in theirs:
            said: list[bytes] = []
            for event in connection.receive(bytes(data)):
                match event:
                    case Welcomed():
                        said.append(connection.subscribe(orgs=["*"]))
                    case Opened(handle, stream):
                        streams[handle] = stream
                    case CreditWanted(handle, limit):
                        said.append(connection.grant(handle, limit))
                    case BatchReceived(handle, batch):
                        stored = self.log.setdefault(streams[handle], [])
                        assert batch.seq <= len(stored) + 1, "nothing comes before its turn"
                        if batch.seq == len(stored) + 1:
                            stored.append(batch)
                        if self.acknowledging:
                            said.append(connection.acknowledge(handle, len(stored)))
            await theirs.send_all(b"".join(said + connection.take_replies()))

    def ledger(self, stream: StreamId) -> StreamLedger:
        found = StreamLedger()
        for batch in self.log[stream]:
            found.add(StreamLedger(decode_account(batch.account, batch.records), 1, batch.records))
        return found


@asynccontextmanager
async def a_fleet() -> AsyncIterator[tuple[Fleet, Uplink]]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            fleet = Fleet(nursery)
            nursery.start_soon(fleet.store)
            uplink = Uplink(
                FixedTarget(Target("c1", "c1")),
                fleet.dial,
                UplinkSettings(hello={"role": "meter", "token": "t", "name": "m"}, backoff_most_s=0.1),
            )
            await nursery.start(uplink.run)
            yield fleet, uplink
            nursery.cancel_scope.cancel()


async def test_a_stream_goes_on_behind_batches_that_are_refused_and_its_ledger_closes(
    autojump_clock: MockClock,
) -> None:
    async with a_fleet() as (fleet, uplink):
        with structlog.testing.capture_logs() as logs:
            stream, other = uplink.open_stream("acme", "x"), uplink.open_stream("acme", "y")
            for draft in (good(), bad(), good(), Draft(2, 7, GOOD), good(), bad(), bad(), good()):
                await stream.put(draft)
                await other.put(good())
            await stream.drained()
            await other.drained()
        assert [batch.records for batch in fleet.log[stream.id]] == [48, 0, 48, 0, 48, 0, 0, 48]
        assert [batch.records for batch in fleet.log[other.id]] == [48] * 8
        ledger = fleet.ledger(stream.id)
        assert not ledger.differences()
        assert ledger.account.received == 4 * 48 + 3 * 48 + 7
        assert ledger.account.refused == {REFUSED_BATCH + "length": 3 * 48, REFUSED_BATCH + "records": 7}
        assert (uplink.quarantined.batches, uplink.quarantined.records) == (4, 3 * 48 + 7)
        told = [line for line in logs if line["event"] == "batch refused" and "exporter" in line]
        assert [(line["org"], line["stream"], line["number"]) for line in told] == [
            ("acme", stream.id.hex(), number) for number in (2, 4, 6, 7)
        ]
        assert fleet.links == 1, "the link is not closed for it"
        assert fleet.collector.counts.malformed == 4
        assert fleet.collector.pool.used_bytes == uplink.unacknowledged_bytes == uplink.budget.held_bytes == 0


async def test_an_account_that_cannot_be_read_is_refused_with_its_batch(autojump_clock: MockClock) -> None:
    async with a_fleet() as (fleet, uplink):
        stream = uplink.open_stream("acme", "x")
        await stream.put(Draft(2, RECORDS, GOOD, b"\xff\xff\xff"))
        await stream.put(good())
        await stream.drained()
        assert [batch.records for batch in fleet.log[stream.id]] == [0, 48]
        assert fleet.ledger(stream.id).account.refused == {REFUSED_BATCH + "account": 48}
        assert not fleet.ledger(stream.id).differences()


async def test_a_spool_that_dies_before_the_empty_one_is_durable_has_it_refused_again(tmp_path: Path) -> None:
    """What is on disk is the batch as it was; its stream is told of once in the log all the same."""
    async with a_fleet() as (fleet, uplink):
        fleet.acknowledging = False
        spool = Spool.open(tmp_path, spool_bytes=16 << 20)
        spooling = Spooling(spool, uplink, KeepingSettings())
        await fleet.nursery.start(spooling.run)
        stream = spooling.waiting.open_stream("acme", "x")
        for draft in (good(), bad(), good()):
            await stream.put(draft)
        while not fleet.log or len(next(iter(fleet.log.values()))) < 3:
            await trio.sleep(0.01)
        held = sum(batch.size for one in uplink.streams for batch in one.outbox)
        assert spooling.keeping.window.used_bytes == uplink.budget.held_bytes == held
        spool.close()
        fleet.nursery.cancel_scope.cancel()
    stored = dict(fleet.log)
    async with a_fleet() as (fleet, uplink):
        fleet.log = stored
        spool = Spool.open(tmp_path, spool_bytes=16 << 20)
        spooling = Spooling(spool, uplink, KeepingSettings())
        await fleet.nursery.start(spooling.run)
        while spool.totals.held_batches:
            await spooling.changed.park()
        (batches,) = fleet.log.values()
        assert [batch.records for batch in batches] == [48, 0, 48]
        assert (spooling.keeping.window.used_bytes, uplink.budget.held_bytes) == (0, 0)
        spool.close()


async def test_a_collector_that_refuses_the_empty_one_too_loses_the_link_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    """A collector that is at fault itself: the batch waits for one that is not."""
    refusing = True

    async def serve(stream: trio.abc.Stream) -> None:
        connection = Connection(Side.SERVER)
        async for data in stream:
            said = b""
            for event in connection.receive(bytes(data)):
                match event:
                    case HelloReceived(_, fields):
                        assert fields["can"] == ["replace"]
                        said += connection.welcome()
                    case CreditWanted(handle, limit):
                        said += connection.grant(handle, limit)
                    case BatchReceived(handle, batch) if refusing:
                        said += connection.refuse(handle, batch.seq, "whim")
                    case BatchReceived(handle, batch):
                        said += connection.acknowledge(handle, batch.seq)
            try:
                await stream.send_all(said + b"".join(connection.take_replies()))
            except trio.BrokenResourceError:
                return

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def dial(_target: Target) -> trio.abc.Stream:
                ours, theirs = memory_stream_pair()
                nursery.start_soon(serve, ours)
                return theirs

            uplink = Uplink(FixedTarget(Target("c", "c")), dial, UplinkSettings(hello={}))
            await nursery.start(uplink.run)
            stream = uplink.open_stream("acme", "x")
            await stream.put(good())
            while "refused again" not in uplink.last_error:
                await trio.sleep(0.05)
            refusing = False
            await stream.drained()
            assert uplink.quarantined.batches == 1
            nursery.cancel_scope.cancel()


@given(st.integers(0, 1000), st.text(max_size=60), st.sampled_from(["", "set", "template_fields"]))
def test_what_goes_in_the_place_of_a_batch_tells_of_all_its_records(records: int, noise: str, reason: str) -> None:
    account = Account(received=records + 3, exported=records + 5, lost=2, refused={"unreadable": 3}, begins=True)
    batch = Batch(9, 1, records, 77, b"x", account.encode(records))
    empty = emptied(batch, reason or noise)
    assert (empty.seq, empty.records, empty.payload, empty.received_us) == (9, 0, b"", 77)
    told = decode_account(empty.account, 0)
    assert told.begins
    assert told.received == records + 3
    assert sum(told.refused.values()) == records + 3
    assert not StreamLedger(told, 1, 0).differences()


@pytest.mark.parametrize("can", [None, "replace", 7, ["other"]])
async def test_who_cannot_replace_a_batch_has_its_link_closed_as_before(autojump_clock: MockClock, can: object) -> None:
    async with a_fleet() as (fleet, _):
        stream = await fleet.dial(Target("c1", "c1"))
        connection = Connection(Side.CLIENT)
        await stream.send_all(connection.hello(Hint(), role="meter", token="t", name="old", can=can))
        connection.receive(bytes(await stream.receive_some()))
        handle, opening = connection.open(StreamId(bytes(16)), "", "x")
        batch = Batch(1, 2, RECORDS, 0, GOOD[:-1])
        await stream.send_all(opening + connection.want(handle, batch.size))
        connection.receive(bytes(await stream.receive_some()))
        await stream.send_all(b"".join(connection.batch(handle, batch)))
        assert await stream.receive_some() == b""
        assert not fleet.log


async def test_the_log_has_the_place_of_a_refused_batch_and_its_ledger_closes(tmp_path: Path) -> None:
    """Over real sockets, into a real log."""
    async with small_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        uplink = fleet.uplink("link")
        await nursery.start(uplink.run)
        stream = uplink.open_stream("acme", "x")
        for draft in (good(), bad(), good()):
            await stream.put(draft)
        await stream.drained()
        assert [entry.records for entry in fleet.stored()] == [48, 0, 48]
        ledger = fleet.engine.ledger("acme")
        assert ledger is not None
        assert ledger.closes, ledger.differences()
        assert (ledger.total.stored, ledger.total.account.refused) == (96, {REFUSED_BATCH + "length": 48})
        nursery.cancel_scope.cancel()
