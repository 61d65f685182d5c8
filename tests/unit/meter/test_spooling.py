"""The spool between intakes and links: durable before offered, whatever the disk or the process does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from meter.batching import Draft
from meter.datagrams import DatagramIntake, DatagramSettings
from meter.drop import DropDirectory
from meter.keeping_settings import KeepingSettings
from meter.spool import Spool, SpoolFull
from meter.spooled import Applied, Changes
from meter.spooling import Spooling
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.errors import StorageError
from sapflow.flows.ipfix.session import Session
from sapflow.flows.reference import reference_work
from tests.unit.flows.test_datagrams import PORTS, define, ipfix, ports
from tests.unit.flows.test_netflow import FLOW, flow, flowset, v9
from tests.unit.meter.test_uplink import FarEnd, a_draft


@asynccontextmanager
async def a_meter(
    path: Path, far: FarEnd, *, size: int = 16 << 20, settings: KeepingSettings | None = None
) -> AsyncIterator[Spooling]:
    """A spool and its uplink, running; leaving is a kill: nothing is written at the end."""
    spool = Spool.open(path, spool_bytes=size)
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                far.nursery = nursery
                uplink = Uplink(FixedTarget(Target("c", "c:1")), far.dial, UplinkSettings(hello={}, backoff_most_s=0.1))
                spooling = Spooling(spool, uplink, settings or KeepingSettings())
                await nursery.start(uplink.run)
                await nursery.start(spooling.run)
                yield spooling
                nursery.cancel_scope.cancel()
    finally:
        spool.close()


async def until_empty(spooling: Spooling) -> None:
    while spooling.spool.totals.held_batches or spooling.keeping.pending.used_bytes:
        await spooling.changed.park()


async def test_what_was_durable_when_the_meter_was_killed_is_sent_by_the_next_with_the_same_numbers(
    tmp_path: Path,
) -> None:
    far = FarEnd()
    far.acknowledging = False
    async with a_meter(tmp_path, far) as spooling:
        stream = spooling.waiting.open_stream("acme", "x")
        for number in range(5):
            await stream.put(a_draft(number))
        await stream.durable()
        while not far.log or len(next(iter(far.log.values()))) < 5:
            await trio.sleep(0.01)
        far.reachable = False
        far.kill()
        for number in range(5, 9):
            await stream.put(a_draft(number))
        await stream.durable()
    far.reachable = far.acknowledging = True
    async with a_meter(tmp_path, far) as spooling:
        await until_empty(spooling)
        assert list(far.log.values()) == [[bytes([number]) * 100 for number in range(9)]]
        assert spooling.spool.totals.acknowledged_batches == 9


async def test_nothing_is_offered_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = FarEnd()
    write = Spool.write
    in_the_file: set[int] = set()

    def watched(spool: Spool, changes: Changes) -> Applied:
        applied = write(spool, changes)
        in_the_file.update(put.batch.seq for put in changes.put)
        return applied

    monkeypatch.setattr(Spool, "write", watched)
    async with a_meter(tmp_path, far) as spooling:
        offered: list[int] = []
        stream = spooling.waiting.open_stream("acme", "x")
        for number in range(50):
            await stream.put(a_draft(number))
            offered += [batch.seq for kept in spooling.uplink.streams for batch in kept.outbox]
            assert in_the_file.issuperset(offered)
            await trio.sleep(0.001)
        await until_empty(spooling)


@pytest.mark.parametrize("landed", [False, True])
async def test_a_disk_that_fails_once_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    """Whether what failed is in the file or not."""
    far = FarEnd()
    write = Spool.write
    failures = iter([True, False, True, True, False])

    def failing(spool: Spool, changes: Changes) -> Applied:
        if changes.put and next(failures, False):
            if landed:
                write(spool, changes)
            raise StorageError("the disk is on fire")
        return write(spool, changes)

    monkeypatch.setattr(Spool, "write", failing)
    async with a_meter(tmp_path, far) as spooling:
        stream = spooling.waiting.open_stream("acme", "x")
        for number in range(30):
            await stream.put(a_draft(number))
            await trio.sleep(0.002)
        await stream.durable()
        await until_empty(spooling)
        assert list(far.log.values()) == [[bytes([number]) * 100 for number in range(30)]]
        assert spooling.spool.totals.taken_batches == spooling.spool.totals.acknowledged_batches == 30
        assert next(failures, None) is None
        assert spooling.last_error == ""


async def test_c07_while_the_disk_is_full_acknowledgements_still_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = FarEnd()
    write = Spool.write
    full = False

    def cramped(spool: Spool, changes: Changes) -> Applied:
        if full and changes.put and spool.held_bytes:
            raise SpoolFull("no space left")
        return write(spool, changes)

    monkeypatch.setattr(Spool, "write", cramped)
    far.acknowledging = False
    async with a_meter(tmp_path, far) as spooling:
        stream = spooling.waiting.open_stream("acme", "x")
        for number in range(5):
            await stream.put(a_draft(number))
        await stream.durable()
        full = True
        for number in range(5, 10):
            await stream.put(a_draft(number))
        while not spooling.last_error:
            await trio.sleep(0.01)
        far.acknowledging = True
        far.kill()
        await until_empty(spooling)
        assert list(far.log.values()) == [[bytes([number]) * 100 for number in range(10)]]


async def test_what_was_put_when_a_meter_is_stopped_is_in_its_spool(tmp_path: Path) -> None:
    far = FarEnd()
    far.reachable = False
    spool = Spool.open(tmp_path, spool_bytes=16 << 20)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            uplink = Uplink(FixedTarget(Target("c", "c:1")), far.dial, UplinkSettings(hello={}))
            spooling = Spooling(spool, uplink)
            await nursery.start(uplink.run)
            await nursery.start(spooling.run)
            stream = spooling.waiting.open_stream("acme", "x")
            for number in range(20):
                stream.put_now(a_draft(number))
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await spooling.flush()
    assert spool.totals.taken_batches == 20
    spool.close()


async def test_exporters_that_can_wait_do_while_the_spool_is_full_and_those_that_cannot_are_dropped_from(
    tmp_path: Path,
) -> None:
    far = FarEnd()
    far.reachable = False
    settings = KeepingSettings(window_bytes=1 << 20, segment_bytes=1 << 18)
    async with a_meter(tmp_path, far, size=12 << 20, settings=settings) as spooling:
        waiting = spooling.waiting.open_stream("acme", "tcp")
        with trio.move_on_after(1.0) as stuck:
            while True:
                await waiting.put(Draft(1, 1, bytes(100_000)))
        assert stuck.cancelled_caught
        dropping = spooling.dropping.open_stream("acme", "udp")
        for _ in range(100):
            dropping.put_now(Draft(1, 1, bytes(100_000)))
            await trio.sleep(0.001)
        while spooling.keeping.pending.used_bytes:
            await spooling.changed.park()
        totals = spooling.spool.totals
        assert spooling.spool.held_bytes <= spooling.spool.limit_bytes
        assert totals.dropped_batches + spooling.keeping.refused_batches > 50
        taken_and_refused = totals.taken_batches + spooling.keeping.refused_batches
        assert taken_and_refused == totals.held_batches + totals.dropped_batches + spooling.keeping.refused_batches
        far.reachable = True
        await until_empty(spooling)
        assert sum(map(len, far.log.values())) == totals.taken_batches - spooling.spool.totals.dropped_batches


async def test_datagrams_of_an_exporter_go_through_the_spool_in_order_over_many_streams(tmp_path: Path) -> None:
    far = FarEnd()
    far.reachable = False
    settings = KeepingSettings(window_bytes=2000, stream_window_bytes=1000, segment_bytes=3000, read_bytes=1000)
    async with a_meter(tmp_path, far, settings=settings) as spooling:
        bounds = DatagramSettings(batch_bytes=200, max_unacknowledged_bytes=1000)
        intake = DatagramIntake(spooling.dropping, bounds, lambda _: "acme")
        for number in range(100):
            intake.take([(ipfix(define(PORTS), ports(number), number=number), ("192.0.2.1", 9))], 0, 0)
            await trio.sleep(0.002)
        intake.close()
        assert intake.counts.dropped_full == 0
        far.reachable = True
        await until_empty(spooling)
        records = sum(Session().walk(payload).records for log in far.log.values() for payload in log)
        assert records == intake.counts.records == 100
        assert len(far.log) > 2
        assert not spooling.spool.records


async def test_one_exporter_that_speaks_two_protocols_goes_on_with_one_when_the_other_falls_silent(
    tmp_path: Path,
) -> None:
    far = FarEnd()
    async with a_meter(tmp_path, far) as spooling:
        intake = DatagramIntake(spooling.dropping, DatagramSettings(idle_timeout_s=10), lambda _: "acme")
        source = ("192.0.2.1", 9)
        intake.take([(v9(flowset(0, FLOW), flowset(300, flow())), source)], 0, 0)
        intake.take([(ipfix(define(PORTS), ports(1)), source)], 5, 0)
        assert [exporter.key[2] for exporter in intake.expire(11)] == ["netflow9"]
        intake.take([(ipfix(ports(2), number=1), source)], 12, 0)
        intake.close()
        assert intake.counts.records == 3
        await until_empty(spooling)
        assert spooling.spool.totals.acknowledged_records == 3


async def until_moved(drop: DropDirectory, files: int) -> None:
    while drop.counts.files < files:
        await trio.sleep(0.01)


def a_drop(path: Path, spooling: Spooling) -> DropDirectory:
    drop = DropDirectory(path / "drop", spooling, "acme", settle_s=0.0, batch_bytes=2000)
    drop.prepare()
    return drop


async def test_a_file_half_read_when_the_meter_was_killed_is_read_on_without_a_double(tmp_path: Path) -> None:
    far = FarEnd()
    work = reference_work(400)
    async with a_meter(tmp_path, far, settings=KeepingSettings(pending_bytes=4000)) as spooling:
        drop = a_drop(tmp_path, spooling)
        file = tmp_path / "drop" / "flows.ipfix"
        file.write_bytes(work)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop.run)
            while spooling.spool.totals.taken_batches < 5:
                await spooling.changed.park()
            nursery.cancel_scope.cancel()
        assert file.exists()
    async with a_meter(tmp_path, far) as spooling:
        drop = a_drop(tmp_path, spooling)
        (file.parent / ".hidden").write_bytes(b"x")
        (file.parent / "later.part").write_bytes(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop.run)
            await until_moved(drop, 1)
            nursery.cancel_scope.cancel()
        assert drop.counts.records < 400 * 24
        await until_empty(spooling)
    (log,) = far.log.values()
    walks = [Session().walk(payload) for payload in log]
    assert sum(walk.records for walk in walks) == 400 * 24
    assert all((walk.fault, walk.undecodable_sets) == (None, 0) for walk in walks)
    assert (tmp_path / "drop" / "done" / "flows.ipfix").read_bytes() == work
    assert sorted(path.name for path in (tmp_path / "drop").iterdir()) == [".hidden", "done", "failed", "later.part"]


async def test_a_file_that_was_moved_when_the_meter_was_killed_is_not_read_again(tmp_path: Path) -> None:
    far = FarEnd()
    async with a_meter(tmp_path, far) as spooling:
        drop = a_drop(tmp_path, spooling)
        file = tmp_path / "drop" / "flows.ipfix"
        file.write_bytes(reference_work(10))
        (found,) = drop.look(0.0)
        stream = spooling.file("acme", "file:flows.ipfix", found.source)
        with found.path.open("rb") as opened:
            await drop._read(opened, stream)
        await stream.durable()
        drop._move(found.path, "done")
    async with a_meter(tmp_path, far) as spooling:
        drop = a_drop(tmp_path, spooling)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop.run)
            while spooling.keeping.streams:
                await spooling.changed.park()
            nursery.cancel_scope.cancel()
        await until_empty(spooling)
        assert not spooling.keeping.sources()
    assert sum(map(len, far.log.values())) == spooling.spool.totals.taken_batches > 0


@pytest.mark.parametrize(
    ("tail", "why"), [(b"GET / HTTP/1.1", "version"), (reference_work(1)[:40], "inside a message")]
)
async def test_a_file_that_is_not_whole_fails_and_what_came_before_is_kept(
    tmp_path: Path, tail: bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    far = FarEnd()
    async with a_meter(tmp_path, far) as spooling:
        drop = a_drop(tmp_path, spooling)
        (tmp_path / "drop" / "bad").write_bytes(reference_work(3) + tail)
        (tmp_path / "drop" / "failed" / "bad").write_bytes(b"an older one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop.run)
            await until_moved(drop, 1)
            nursery.cancel_scope.cancel()
        await until_empty(spooling)
    assert drop.counts.failed == 1
    assert spooling.spool.totals.acknowledged_records == 72
    assert (tmp_path / "drop" / "failed" / "bad.1").exists()
    assert why in capsys.readouterr().out
