"""Exporters' sessions from one balancer's parts to the next's, on real sockets and a real log: one connection, every
record once and in order, whatever of it was not durable."""

import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from attrs import define, evolve, field

from balancer.doors import LinkDoor
from balancer.draining import BalancerDrain
from balancer.inheriting import Inheriting
from balancer.places import Places
from balancer.steering import Steering
from meter.batching import Draft
from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.exporter_tls import ExporterTls
from meter.intake import Intake, IntakeSettings
from meter.keeping_settings import KeepingSettings
from meter.spool import Spool
from meter.spooled import Applied, Changes
from meter.spooling import Spooling
from meter.uplink import Uplink, UplinkSettings
from sapflow.cluster.view import Member, View
from sapflow.flows.reference import reference_work
from sapflow.runtime.dial import dial
from sapflow.runtime.drain import Drain, Successor
from sapflow.runtime.serve import listen, serve
from sapflow.runtime.succession import Succession, succession_sockets
from tests.small_fleet import SmallFleet, small_fleet

RECORDS = 24
ACME = SourceBinding("127.0.0.0/8", "acme")


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.01)


@define(eq=False)
class Balancer:
    """What of a balancer has to do with exporters."""

    intake: Intake
    places: Places
    uplink: Uplink
    inheriting: Inheriting
    ending: BalancerDrain
    spooling: Spooling | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    over: trio.Event = field(factory=trio.Event)

    async def drain(self, successor: Successor = "there", within_s: float = 10.0) -> bool:
        """As its node does; it is gone then."""
        drain = Drain()
        drain.ask(within_s, successor=successor)
        clean = await self.ending.run("b", drain)
        await self.kill()
        return clean

    async def kill(self) -> None:
        self.scope.cancel()
        await self.over.wait()


@define(eq=False)
class Front:
    """A door in front of a small fleet, and one balancer after the other behind it."""

    fleet: SmallFleet
    nursery: trio.Nursery
    listener: trio.SocketListener
    sockets: tuple[socket.socket, socket.socket]
    directory: Path
    tls: ExporterTls | None = None

    async def exporter(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.listener.socket.getsockname()[:2])

    async def balancer(self, *, spool: bool = False, binding: SourceBinding = ACME, reaches: bool = True) -> Balancer:
        places = Places("b")
        told = Member("c1", "collector", "1", 1, {"link": self.fleet.address}) if reaches else None
        places.on_change(View((told,) if told else (), {}))
        uplink = Uplink(
            places,
            lambda target: dial(target.address, timeout_s=5),
            UplinkSettings(hello={"role": "intake", "token": "f-token", "name": "b"}),
        )
        spooling = None
        if spool:
            settings = KeepingSettings(window_bytes=1 << 20, pending_bytes=1 << 20)
            spooling = Spooling(Spool.open(self.directory / "spool", spool_bytes=8 << 20), uplink, settings)
        intake = Intake(spooling.waiting if spooling is not None else uplink, IntakeSettings(flush_interval_s=0.05))
        door = ExporterDoor(intake, SourceBindings([binding]), self.tls)
        links = LinkDoor(place=places.place_link, dial=partial(dial, timeout_s=5), left=places.link_left)
        slots, link_slots = trio.CapacityLimiter(100), trio.CapacityLimiter(100)
        inheriting = Inheriting(Succession(*self.sockets), places, door, slots, links, link_slots)
        steering = Steering("b", "f-token", partial(dial, timeout_s=5), places.on_told)
        ending = BalancerDrain(intake, links, steering, uplink, lambda: False, spooling=spooling, inheriting=inheriting)
        ending.datagrams_ended.set()
        one = Balancer(intake, places, uplink, inheriting, ending, spooling)

        async def run() -> None:
            try:
                with one.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(uplink.run)
                        if spooling is not None:
                            nursery.start_soon(spooling.run)
                        shared = trio.SocketListener(trio.socket.from_stdlib_socket(_again(self.listener)))
                        doors = partial(serve, max_connections=100, what="exporter", until=ending.doors_shut)
                        nursery.start_soon(doors, shared, door.serve)
                        with ending.first:
                            await inheriting.take(nursery)
                        await trio.sleep_forever()
            finally:
                if spooling is not None:
                    spooling.spool.close()
                one.over.set()

        self.nursery.start_soon(run)
        return one

    def streams(self) -> dict[bytes, list[int]]:
        """The numbers that are in the log, by stream."""
        found: dict[bytes, list[int]] = {}
        for entry in self.fleet.stored():
            found.setdefault(bytes(entry.stream), []).append(entry.seq)
        return found

    def records(self) -> int:
        return sum(entry.records for entry in self.fleet.stored())


def _again(listener: trio.SocketListener) -> socket.socket:
    """The same socket, as another process has it."""
    return socket.socket(fileno=os.dup(listener.socket.fileno()))


@asynccontextmanager
async def a_front(directory: Path, tls: ExporterTls | None = None) -> AsyncIterator[Front]:
    into, out_of = succession_sockets()
    with into, out_of:
        async with small_fleet(directory) as fleet, trio.open_nursery() as nursery:
            listener = await listen("127.0.0.1:0", what="exporters")
            yield Front(fleet, nursery, listener, (into, out_of), directory, tls)
            nursery.cancel_scope.cancel()
            await listener.aclose()


@pytest.mark.parametrize("spool", [False, True], ids=["in memory", "in a spool"])
async def test_an_exporter_that_sends_all_the_while_sees_nothing_of_four_restarts(tmp_path: Path, spool: bool) -> None:
    async with a_front(tmp_path) as front:
        exporter = await front.exporter()
        own = exporter.socket.getsockname()
        stop = trio.Event()
        sent = 0

        async def export() -> None:
            nonlocal sent
            work = reference_work(1)
            while True:
                # In pieces, so that sessions are left within a message.
                for at in range(0, len(work), 300):
                    await exporter.send_all(work[at : at + 300])
                    await trio.sleep(0.002)
                sent += RECORDS
                if stop.is_set():
                    return
                work = reference_work(1, define=False, sequence=sent)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(export)
            balancer = await front.balancer(spool=spool)
            for _ in range(4):
                before = sent
                await until(lambda before=before: sent > before + 5 * RECORDS)  # type: ignore[misc]
                if spool:
                    assert await balancer.drain("next")
                    balancer = await front.balancer(spool=True)
                else:
                    after = await front.balancer()
                    assert await balancer.drain("there")
                    balancer = after
                await until(lambda balancer=balancer: balancer.intake.counts.resumed == 1)  # type: ignore[misc]
            stop.set()
        await until(lambda: front.records() == sent)
        ((numbers),) = front.streams().values()
        assert numbers == list(range(1, len(numbers) + 1))
        assert exporter.socket.getsockname() == own
        assert balancer.intake.counts.sessions == 0
        assert not balancer.intake.counts.lost_records
        await exporter.aclose()
        await balancer.drain("none")


async def test_what_was_not_durable_goes_with_the_session_and_is_sent_again_under_its_numbers(tmp_path: Path) -> None:
    """The first reaches no collector at all, so that nothing of what it read is durable."""
    async with a_front(tmp_path) as front:
        exporter = await front.exporter()
        balancer = await front.balancer(reaches=False)
        for number in range(5):
            await exporter.send_all(reference_work(1, define=not number, sequence=number * RECORDS))
            await trio.sleep(0.1)
        await until(lambda: balancer.uplink.unacknowledged_bytes > 0)
        after = await front.balancer()
        assert await balancer.drain("there")
        assert balancer.intake.counts.left == 1
        assert balancer.uplink.unacknowledged_bytes == 0
        await exporter.send_all(reference_work(1, define=False, sequence=5 * RECORDS))
        await until(lambda: front.records() == 6 * RECORDS)
        ((numbers),) = front.streams().values()
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 2
        await until(lambda: after.uplink.unacknowledged_bytes == 0)
        await exporter.aclose()


async def test_what_was_left_and_is_spooled_unacknowledged_is_sent_by_the_next_one(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        exporter = await front.exporter()
        balancer = await front.balancer(spool=True, reaches=False)
        for number in range(5):
            await exporter.send_all(reference_work(1, define=not number, sequence=number * RECORDS))
            await trio.sleep(0.1)
        assert await balancer.drain("next")
        after = await front.balancer(spool=True)
        await until(lambda: after.intake.counts.resumed == 1)
        await exporter.send_all(reference_work(1, define=False, sequence=5 * RECORDS))
        await until(lambda: front.records() == 6 * RECORDS)
        ((numbers),) = front.streams().values()
        assert numbers == list(range(1, len(numbers) + 1))
        await exporter.aclose()
        await after.drain("none")


async def test_it_is_drained_when_its_spool_is_written_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the UDP door hands on at its end is put without waiting; here the disk takes its time for it."""
    write = Spool.write

    def slowly(spool: Spool, changes: Changes) -> Applied:
        time.sleep(0.5)
        return write(spool, changes)

    async with a_front(tmp_path) as front:
        balancer = await front.balancer(spool=True)
        assert balancer.spooling is not None
        monkeypatch.setattr(Spool, "write", slowly)
        stream = balancer.spooling.dropping.open_stream("acme", "192.0.2.1:9")
        stream.put_now(Draft(1, RECORDS, reference_work(1)))
        assert await balancer.drain("next")
        assert balancer.spooling.spool.totals.taken_records == RECORDS


async def test_one_that_dies_before_it_took_up_anything_costs_no_exporter_its_session(tmp_path: Path) -> None:
    """What was left waits in the queue for the one after it."""
    async with a_front(tmp_path) as front:
        exporter = await front.exporter()
        balancer = await front.balancer()
        await exporter.send_all(reference_work(1))
        await until(lambda: front.records() == RECORDS)
        assert await balancer.drain("next")
        await exporter.send_all(reference_work(1, define=False, sequence=RECORDS))
        await trio.sleep(0.1)
        after = await front.balancer()
        await until(lambda: front.records() == 2 * RECORDS)
        assert after.intake.counts.lost_records == 0
        await exporter.aclose()


async def test_a_session_is_not_taken_up_for_an_org_that_its_source_is_not_of_any_more(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        exporter = await front.exporter()
        balancer = await front.balancer()
        await exporter.send_all(reference_work(1))
        await until(lambda: front.records() == RECORDS)
        assert await balancer.drain("next")
        after = await front.balancer(binding=evolve(ACME, org="globex"))
        with trio.fail_after(10):
            assert await exporter.receive_some(1) == b""
        assert after.inheriting.door.counts.refused == 1
        assert after.intake.counts.resumed == 0


async def test_without_a_successor_sessions_end_when_what_they_sent_is_read(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        exporter = await front.exporter()
        balancer = await front.balancer()
        await exporter.send_all(reference_work(1))
        await until(lambda: balancer.intake.counts.exporters == 1)
        assert await balancer.drain("none")
        assert (front.records(), balancer.intake.counts.left) == (RECORDS, 0)
        with trio.fail_after(10):
            assert await exporter.receive_some(1) == b""


async def test_a_session_in_tls_is_read_until_it_is_quiet_and_ended_with_a_word(tmp_path: Path) -> None:
    """Its secrets are OpenSSL's, and stay where they are."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with a_front(tmp_path, ExporterTls(server)) as front:
        balancer = await front.balancer()
        exporter = trio.SSLStream(await front.exporter(), client, server_hostname="127.0.0.1")
        await exporter.send_all(reference_work(1))
        await until(lambda: balancer.intake.counts.exporters == 1)
        assert await balancer.drain("next")
        assert (front.records(), balancer.intake.counts.left) == (RECORDS, 0)
        with trio.fail_after(10):
            # Without close_notify this would be a BrokenResourceError.
            assert await exporter.receive_some(1) == b""
        await exporter.aclose()


async def test_forty_sessions_left_and_taken_up_leave_no_descriptor_and_no_slot(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        exporters = [await front.exporter() for _ in range(40)]
        balancer = await front.balancer()
        for exporter in exporters:
            await exporter.send_all(reference_work(1))
        await until(lambda: front.records() == 40 * RECORDS)
        counts = []
        for turn in range(1, 4):
            after = await front.balancer()
            assert await balancer.drain("there")
            balancer = after
            await until(lambda balancer=balancer: balancer.intake.counts.exporters == 40)  # type: ignore[misc]
            for exporter in exporters:
                await exporter.send_all(reference_work(1, define=False, sequence=turn * RECORDS))
            expected = 40 * RECORDS * (turn + 1)
            await until(lambda expected=expected: front.records() == expected)  # type: ignore[misc]
            counts.append(len(os.listdir("/proc/self/fd")))
        assert max(counts) <= min(counts) + 1
        for exporter in exporters:
            await exporter.aclose()
        await until(lambda: balancer.inheriting.slots.borrowed_tokens == 0)
        assert len(front.streams()) == 40
