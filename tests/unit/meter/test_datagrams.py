"""UDP exporters into streams: each its own, bounded, flushed in time, its templates remembered."""

import os
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from meter.datagrams import DatagramIntake, DatagramSettings
from meter.templates import TemplateStore
from meter.udp import SLICE_BYTES, UdpDoor, bind_udp, slices
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings, UplinkStream
from sapflow.errors import ConfigurationError
from sapflow.flows.encode import make_set, make_template
from tests.unit.flows.test_datagrams import PORTS, define, ipfix, ports, source_ports
from tests.unit.flows.test_netflow import FLOW, flow, flowset, rows, v5, v5_record, v9
from tests.unit.flows.test_sflow import ethernet, ipv4, part, raw, sample, sflow, tcp

R1, R2 = ("192.0.2.1", 9), ("192.0.2.2", 9)


def an_intake(**settings: object) -> DatagramIntake:
    async def nowhere(_: Target) -> trio.abc.Stream:
        raise AssertionError("nothing is sent here")

    uplink = Uplink(FixedTarget(Target("c", "c:1")), nowhere, UplinkSettings(hello={}))
    bound = {"192.0.2.1": "acme", "192.0.2.2": "globex", "127.0.0.1": "acme"}
    return DatagramIntake(uplink, DatagramSettings(**settings), bound.get)  # type: ignore[arg-type]


def streams(intake: DatagramIntake) -> dict[str, UplinkStream]:
    return {stream.exporter: stream for stream in intake.uplink.streams}


def payload(stream: UplinkStream) -> bytes:
    return b"".join(batch.payload for batch in stream.outbox)


def test_each_source_and_protocol_has_its_stream_in_its_org() -> None:
    intake = an_intake()
    intake.take([(ipfix(define(PORTS), ports(1)), R1), (v5(v5_record()), R2), (v9(flowset(0, FLOW)), R1)], 0, 0)
    intake.flush(10)
    found = [(stream.org, stream.exporter, len(stream.outbox)) for stream in intake.uplink.streams]
    assert sorted(found) == [("acme", "192.0.2.1:9", 1), ("acme", "192.0.2.1:9", 1), ("globex", "192.0.2.2:9", 1)]
    assert intake.counts.exporters == 3
    assert intake.counts.records == 2


def test_sflow_becomes_batches_that_can_be_read_alone() -> None:
    intake = an_intake(batch_bytes=1)
    datagram = sflow(sample(raw(ethernet(ipv4(tcp()), 0x0800))), part(2, bytes(80)))
    for number in (1, 2, 4):
        intake.take([(datagram[:16] + struct.pack("!I", number) + datagram[20:], R1)], float(number), 1_750_000_000.0)
    (stream,) = intake.uplink.streams
    for batch in stream.outbox:
        assert [row["destinationTransportPort"] for row in rows(batch.payload)] == [443]
    assert (len(stream.outbox), intake.counts.records, intake.counts.skipped, intake.lost_units) == (3, 3, 3, 1)


def test_options_from_another_port_of_a_device_are_a_stream_of_their_own() -> None:
    """nfdump #237, #159: its templates are its own too, though the numbers be the same."""
    sampling = make_template(256, [(0, 149, 4), (0, 34, 4)], scopes=1)
    data = make_set(256, struct.pack("!II", 1, 512))
    intake = an_intake()
    other_port = ("192.0.2.1", 10)
    intake.take([(ipfix(make_set(3, sampling.raw), data), other_port), (ipfix(define(PORTS), ports(1)), R1)], 0, 0)
    intake.take([(ipfix(data, number=1), other_port), (ipfix(ports(2), number=1), R1)], 0, 0)
    intake.flush(10)
    found = {name: rows(payload(stream)) for name, stream in streams(intake).items()}
    assert [row["samplingInterval"] for row in found["192.0.2.1:10"]] == [512, 512]
    assert [row["sourceTransportPort"] for row in found["192.0.2.1:9"]] == [1, 2]


def test_sources_that_no_org_is_bound_to_and_unknown_protocols_are_counted() -> None:
    intake = an_intake()
    intake.take([(ipfix(ports(1)), ("198.51.100.1", 9)), (b"hello", R1), (b"", R1)], 0, 0)
    assert (intake.counts.unbound, intake.counts.unknown, intake.counts.exporters) == (1, 2, 0)


def test_a_batch_ends_when_it_is_full_or_has_waited() -> None:
    intake = an_intake(batch_bytes=200, flush_interval_s=1.0)
    intake.take([(ipfix(define(PORTS), ports(1)), R1)], 5.0, 0)
    intake.flush(5.9)
    assert intake.counts.batches == 0
    intake.flush(6.0)
    assert intake.counts.batches == 1
    intake.take([(ipfix(ports(*range(100)), number=1), R1)], 6.5, 0)
    assert intake.counts.batches == 2
    assert source_ports(payload(streams(intake)["192.0.2.1:9"])) == [1, *range(100)]


def test_a_full_stream_drops_and_counts_and_no_other_does() -> None:
    intake = an_intake(batch_bytes=100, max_unacknowledged_bytes=1000)
    for number in range(40):
        intake.take([(ipfix(define(PORTS), ports(*range(50)), number=number * 50), R1)], 0, 0)
    assert intake.counts.dropped_full > 20
    assert streams(intake)["192.0.2.1:9"].outbox.held_bytes < 1400
    intake.take([(ipfix(define(PORTS), ports(*range(50))), R2)], 0, 0)
    assert len(streams(intake)["192.0.2.2:9"].outbox) == 1


def test_exporters_are_bounded_and_the_one_silent_longest_goes_first() -> None:
    intake = an_intake(max_exporters=2)
    for at, port in enumerate((1, 2, 1, 3)):
        intake.take([(ipfix(define(PORTS), ports(port)), ("192.0.2.1", port))], float(at), 0)
    assert [key[1] for key in intake.exporters] == [1, 3]
    assert intake.counts.evicted == 1
    assert source_ports(payload(streams(intake)["192.0.2.1:2"])) == [2], "what it brought is delivered"


def test_a_silent_exporter_is_let_go_with_its_loss_kept() -> None:
    intake = an_intake(idle_timeout_s=100.0)
    intake.take([(ipfix(define(PORTS), ports(1)), R1), (ipfix(ports(1), number=5), R1)], 0, 0)
    assert intake.expire(99) == []
    assert len(intake.expire(101)) == 1
    assert (intake.lost_units, intake.counts.exporters) == (4, 0)


async def test_templates_are_kept_in_files_and_known_after_a_restart(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    intake = an_intake()
    intake.take([(ipfix(define(PORTS)), R1), (v9(flowset(0, FLOW)), R2)], 0, 0)
    await store.save(intake.exporters.values())
    again = an_intake()
    again.remembered = TemplateStore(tmp_path).load()
    again.take([(ipfix(ports(53)), R1), (v9(flowset(300, flow(80)), number=1), R2)], 0, 0)
    again.flush(10)
    assert again.counts.records == 2
    assert source_ports(payload(streams(again)["192.0.2.1:9"])) == [53]


def test_a_damaged_or_old_file_of_templates_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "ipfix_9_192.0.2.1.templates").write_bytes(b"\0\0\1\0short")
    (tmp_path / "other_9_192.0.2.1.templates").write_bytes(b"")
    assert TemplateStore(tmp_path).load() == {}
    (tmp_path / "ipfix_9_192.0.2.1.templates").write_bytes(b"")
    assert TemplateStore(tmp_path, lifetime_s=-1).load() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_defines_no_templates_costs_nothing_but_itself(tmp_path: Path) -> None:
    intake = an_intake()
    intake.remembered = {(*R1, "ipfix"): [ipfix(define(PORTS)), b"no message"], (*R2, "netflow9"): [b"short"]}
    intake.take([(ipfix(ports(1)), R1), (ipfix(define(PORTS), ports(2)), R1), (v9(flowset(0, FLOW)), R2)], 0, 0)
    intake.flush(10)
    assert source_ports(payload(streams(intake)["192.0.2.1:9"])) == [2, 1]
    assert intake.counts.malformed == 0


async def test_a_file_is_as_old_as_its_exporters_last_templates(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path, lifetime_s=1000.0)
    intake = an_intake()
    intake.take([(ipfix(define(PORTS)), R1)], 0, 5000.0)
    await store.save(intake.exporters.values())
    path = store._path((*R1, "ipfix"))
    long_ago = path.stat().st_mtime - 900
    os.utime(path, (long_ago, long_ago))
    intake.take([(ipfix(ports(1)), R1)], 0, 6000.0)
    await store.save(intake.exporters.values())
    assert path.stat().st_mtime == pytest.approx(long_ago), "data say nothing of templates"
    intake.take([(ipfix(define(PORTS), number=1), R1)], 0, 6000.0)
    await store.save(intake.exporters.values())
    assert path.stat().st_mtime > long_ago + 800
    again = an_intake()
    again.remembered = store.load()
    again.take([(ipfix(ports(1)), R1)], 0, 7000.0)
    os.utime(path, (long_ago, long_ago))
    await store.save(again.exporters.values())
    assert path.stat().st_mtime == pytest.approx(long_ago), "nor does what was known before a restart"


async def test_processes_that_share_a_port_share_what_they_know_of_templates(tmp_path: Path) -> None:
    here, there = an_intake(), an_intake()
    ours, theirs = TemplateStore(tmp_path), TemplateStore(tmp_path)
    ours.load()
    there.take([(ipfix(define(PORTS)), R1)], 0, 0)
    await theirs.save(there.exporters.values())
    here.remember(await ours.news(here.exporters.keys()))
    here.take([(ipfix(ports(53)), R1)], 0, 0)
    assert here.counts.records == 1
    here.remember(await ours.news(here.exporters.keys()))
    assert here.remembered == {}


def test_templates_that_outlive_their_time_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "ipfix_9_192.0.2.1.templates"
    path.write_bytes(b"")
    os.utime(path, (time.time() - 500, time.time() - 500))
    store = TemplateStore(tmp_path, lifetime_s=1000.0)
    assert store.load().keys() == {(*R1, "ipfix")}
    assert store.outlived() == []
    store.lifetime_s = 400.0
    assert (store.outlived(), store.outlived()) == ([(*R1, "ipfix")], [])


def test_files_of_templates_are_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    now = time.time()
    for age in range(5):
        path = tmp_path / f"ipfix_{age}_192.0.2.1.templates"
        path.write_bytes(b"")
        os.utime(path, (now - age, now - age))
    assert sorted(port for _, port, _ in TemplateStore(tmp_path, max_files=3).load()) == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_waits_for_templates_is_bounded_over_all_exporters_and_let_go_with_them() -> None:
    intake = an_intake(max_parked_bytes=1000, max_exporters=5)
    for port in range(20):
        intake.take([(ipfix(ports(*range(100)), number=port), ("192.0.2.1", port))], float(port), 0)
        assert intake.parked.held_bytes <= 1000
    assert intake.parked.held_bytes > 500
    intake.close()
    assert intake.parked.held_bytes == 0


def test_an_exporter_whose_messages_cannot_be_batched_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    intake = an_intake()
    intake.take([(ipfix(define(PORTS), ports(1)), R1), (ipfix(define(PORTS), ports(2)), R2)], 0, 0)
    monkeypatch.setattr(intake.exporters[*R1, "ipfix"].session, "take", lambda *_: b"\0\x0a\0\3")
    intake.take([(ipfix(ports(3), number=1), R1), (ipfix(ports(4), number=1), R2)], 0, 0)
    intake.take([(ipfix(define(PORTS), ports(5)), R1)], 0, 0)
    intake.flush(10)
    assert source_ports(b"".join(payload(stream) for stream in intake.uplink.streams if stream.org == "globex")) == [
        2,
        4,
    ]
    assert (intake.counts.malformed, intake.counts.exporters) == (1, 2)


async def test_doors_that_share_a_port_take_each_exporter_whole(autojump_clock: MockClock) -> None:
    first = UdpDoor(an_intake(), None, bind_udp("127.0.0.1:0"))
    second = UdpDoor(an_intake(), None, bind_udp(first.address))
    host, port = first.address.split(":")
    with ExitStack() as stack:
        exporters = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(40)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            nursery.start_soon(second.run)
            for number in range(3):
                for exporter in exporters:
                    exporter.sendto(ipfix(define(PORTS), ports(1), number=number), (host, int(port)))
            with trio.fail_after(5):
                while first.intake.counts.datagrams + second.intake.counts.datagrams < 120:
                    await trio.sleep(0.1)
            found = [list(door.intake.exporters) for door in (first, second)]
            nursery.cancel_scope.cancel()
    assert min(map(len, found)) > 0
    assert sum(map(len, found)) == 40
    assert (first.intake.counts.records + second.intake.counts.records, first.intake.lost_units) == (120, 0)


@given(st.lists(st.sampled_from([0, 100, 1400, 40_000, 65_507]), max_size=40))
def test_other_tasks_get_their_turn_after_so_many_bytes(sizes: list[int]) -> None:
    datagrams = [(bytes(size), R1) for size in sizes]
    parts = list(slices(datagrams))
    assert [datagram for part in parts for datagram in part] == datagrams
    assert all(sum(len(data) for data, _ in part) <= SLICE_BYTES for part in parts)
    assert all(parts)


async def test_the_door_reads_a_socket_and_knows_its_buffer_and_drops(autojump_clock: MockClock) -> None:
    intake = an_intake(flush_interval_s=0.5)
    door = UdpDoor(intake, None, bind_udp("127.0.0.1:0"))
    host, port = door.address.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        exporter.connect((host, int(port)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.run)
            exporter.send(ipfix(define(PORTS), ports(1, 2)))
            exporter.send(b"nonsense")
            with trio.fail_after(5):
                while intake.counts.batches == 0:
                    await trio.sleep(0.1)
            assert (intake.counts.records, intake.counts.unknown) == (2, 1)
            assert door.buffer_bytes >= 100_000
            assert door.kernel_drops() == 0
            nursery.cancel_scope.cancel()


async def test_what_was_read_is_taken_though_the_door_is_stopped_meanwhile() -> None:
    intake = an_intake()
    door = UdpDoor(intake, None, bind_udp("127.0.0.1:0"))
    host, port = door.address.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        for number in range(5):
            exporter.sendto(ipfix(define(PORTS), ports(*range(20_000)), number=20_000 * number), (host, int(port)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run)
        with trio.fail_after(5):
            while not intake.counts.datagrams:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert intake.counts.records == 100_000


def test_two_processes_may_share_the_port_and_a_bad_address_is_said_clearly() -> None:
    first = bind_udp("127.0.0.1:0")
    with first, bind_udp(f"127.0.0.1:{first.getsockname()[1]}") as second:
        assert first.getsockname() == second.getsockname()
    with pytest.raises(ConfigurationError, match="choose another address"):
        bind_udp("192.0.2.99:4739")
