"""Exporters' connections that a balancer does not read: a collector of its host does, or where none can it does."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio
from attrs import define

from balancer.exporter_carry import ExporterCarry
from balancer.places import Places
from collector.draining import drain_collector
from collector.exporters import Exporters
from collector.reporting import Reporting
from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.exporter_tls import ExporterTls
from meter.intake import Intake
from sapflow.config import BalancerConfig, Config, IntakeConfig, SourceConfig
from sapflow.flows.reference import reference_work
from sapflow.monitor.process import ProcessFigures
from sapflow.runtime.drain import Drain
from sapflow.runtime.giving import Giving
from sapflow.runtime.handoff import announced
from sapflow.runtime.serve import address_of, listen, serve
from sapflow.runtime.taking import Taking, listen_handoff
from tests.small_fleet import SmallFleet, small_fleet
from tests.unit.meter.test_exporter_door import a_certificate
from tests.unit.meter.test_intake import an_intake, held


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.01)


@define
class Front:
    """A small fleet behind exporter doors that do not read."""

    fleet: SmallFleet
    exporters: Exporters
    taking: Taking
    plain: ExporterCarry
    tls: ExporterCarry
    addresses: dict[str, str]
    client_tls: ssl.SSLContext
    itself: Intake
    """The balancer's own."""

    def stored(self) -> int:
        return sum(entry.records for entry in self.fleet.stored())


@asynccontextmanager
async def a_front(directory: Path, *, slots: int = 10, prefix: str = "127.0.0.0/8") -> AsyncIterator[Front]:
    client_tls = ssl.create_default_context()
    certificate = a_certificate(directory, client_tls)
    config = Config(
        intake=IntakeConfig(flush_interval_s=0.05),
        balancer=BalancerConfig(
            exporters="carry",
            ipfix_tls="127.0.0.1:0",
            tls_certificate=certificate,
            sources=(SourceConfig(prefix, "acme"),),
        ),
    )
    async with small_fleet(directory) as fleet, trio.open_nursery() as nursery:
        exporters = Exporters(config, fleet.collector, "c1", "f-token")
        taking = Taking(dict(exporters.handlers), trio.CapacityLimiter(slots))
        listener, path = listen_handoff(directory / "handoff", "c1")
        places, giving, itself = Places("b1"), Giving(1.0), an_intake()
        places.policy.members(["c1"], now=trio.current_time())
        places.addresses = {"c1": fleet.address}
        giving.takers({"c1": announced(path)})
        nursery.start_soon(exporters.run)
        nursery.start_soon(taking.run, listener, path)
        nursery.start_soon(giving.run)
        await until(lambda: taking.counts.givers == 1)
        bindings = SourceBindings([SourceBinding("127.0.0.0/8", "acme")])
        carry = partial(
            ExporterCarry,
            place=places.place_link,
            beyond=lambda: {one for one in places.addresses if not giving.reaches(one)},
            give=giving.give,
            handed_off=places.link_handed_off,
            left=places.link_left,
            name="b1",
        )
        plain = carry("exporter", ExporterDoor(itself, bindings))
        tls = carry("exporter-tls", ExporterDoor(itself, bindings, ExporterTls.load(certificate, "", 5.0)))
        addresses = {}
        for kind, door in (("plain", plain), ("tls", tls)):
            at = await listen("127.0.0.1:0", what="exporters")
            addresses[kind] = address_of(at)
            nursery.start_soon(partial(serve, max_connections=10, what="exporter"), at, door.serve)
        yield Front(fleet, exporters, taking, plain, tls, addresses, client_tls, itself)
        nursery.cancel_scope.cancel()


async def connect(front: Front, kind: str) -> trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream]:
    host, port = front.addresses[kind].split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    if kind == "plain":
        return stream
    return trio.SSLStream(stream, front.client_tls, server_hostname="127.0.0.1", https_compatible=True)


async def test_a_collector_reads_what_its_balancer_gave_it_unread_and_it_is_durable(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        for kind, records in (("plain", 240), ("tls", 480)):
            exporter = await connect(front, kind)
            await exporter.send_all(reference_work(10))
            await until(lambda records=records: front.stored() >= records)
            await exporter.aclose()
        assert front.stored() == 480
        assert front.exporters.intake.counts.records == 480
        assert front.exporters.flow()["exporters_tcp"]["in"]["messages"] == 22  # with templates
        assert (front.plain.handed, front.tls.handed) == (1, 1)
        assert held(front.itself) == (0, 0)
        await until(lambda: front.taking.slots.borrowed_tokens == 0)


async def test_a_collector_that_drains_reads_what_carried_exporters_sent_and_ends_their_sessions(
    tmp_path: Path,
) -> None:
    async with a_front(tmp_path) as front:
        exporter = await connect(front, "plain")
        await exporter.send_all(reference_work(10))
        await until(lambda: front.exporters.intake.counts.exporters == 1)
        drain = Drain()
        drain.ask(10.0)
        collector = front.fleet.collector
        with trio.fail_after(8):
            assert await drain_collector(collector, Reporting(collector, ProcessFigures(), 1.0), drain, front.exporters)
            assert await exporter.receive_some(1) == b"", "its session has ended"
        assert front.stored() == 240
        assert front.exporters.uplink.links, "nobody sent the collector's own link away"


async def test_what_no_collector_takes_the_balancer_reads_itself(tmp_path: Path) -> None:
    async with a_front(tmp_path, slots=1) as front:
        front.taking.slots.acquire_on_behalf_of_nowait("somebody")
        exporter = await connect(front, "plain")
        await exporter.send_all(reference_work(4))
        await exporter.aclose()
        await until(lambda: held(front.itself) == (1, 96))
        assert front.plain.handed == 0


async def test_the_collector_decides_whose_an_exporter_is_and_lets_in_nobody_else(tmp_path: Path) -> None:
    async with a_front(tmp_path, prefix="192.0.2.0/24") as front:
        exporter = await connect(front, "plain")
        with trio.fail_after(5):
            with suppress(trio.BrokenResourceError):
                assert await exporter.receive_some(1) == b""
        assert front.plain.handed == 1
        assert front.exporters.counts()["exporter_door"]["refused"] == 1
        await exporter.aclose()


async def test_a_malformed_session_ends_and_the_collector_goes_on(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        bad = await connect(front, "plain")
        await bad.send_all(reference_work(2) + b"\xff" * 40)
        with trio.fail_after(5):
            with suppress(trio.BrokenResourceError):
                assert await bad.receive_some(1) == b""
        await bad.aclose()
        good = await connect(front, "plain")
        await good.send_all(reference_work(2))
        await until(lambda: front.stored() == 96)
        assert front.exporters.intake.counts.malformed == 1
        await good.aclose()
