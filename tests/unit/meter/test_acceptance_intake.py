"""Exporters at the door that behave badly, in virtual time: each ends or is limited alone, and others flow on."""

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trustme
from tools.fuzz.seeds import ipfix_streams
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from meter.backoff import Backoff, BackoffSettings
from meter.datagrams import DatagramIntake, DatagramSettings
from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.intake import Intake, IntakeSettings
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.flows.columns.batches import decode
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from sapflow.flows.reference import reference_work
from tests.hostile import worst_cases

BAD = b"\x00\x0a\x00\x00" + bytes(12)
"""F01: a message of length 0."""


async def never(_target: Target) -> trio.abc.Stream:
    await trio.sleep_forever()
    raise AssertionError


def an_intake(**settings: float) -> Intake:
    uplink = Uplink(FixedTarget(Target("c", "c:1")), never, UplinkSettings(hello={}))
    return Intake(uplink, IntakeSettings(**settings))  # type: ignore[arg-type]


def payload_of(intake: Intake, exporter: str) -> bytes:
    return b"".join(
        batch.payload for stream in intake.uplink.streams if stream.exporter == exporter for batch in stream.outbox
    )


def records_of_exporter(intake: Intake, exporter: str) -> int:
    return Session().walk(payload_of(intake, exporter)).records


# F04
async def test_f04_65_535_bytes_at_one_a_second_end_at_the_deadline_with_no_more_than_64_kib_held(
    autojump_clock: MockClock,
) -> None:
    intake = an_intake(message_timeout_s=30.0)
    theirs, ours = memory_stream_pair()
    message = make_message(make_set(999, bytes(65_515)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        began = trio.current_time()
        for sent in range(len(message)):
            if intake.counts.timed_out:
                break
            await theirs.send_all(message[sent : sent + 1])
            await trio.sleep(1)
        assert 29 <= trio.current_time() - began <= 32
        assert intake.counts.bytes <= 32
        assert intake.counts.exporters == 0


# F04
async def test_f04_a_message_that_comes_slowly_but_in_time_is_taken(autojump_clock: MockClock) -> None:
    intake = an_intake(message_timeout_s=30.0)
    theirs, ours = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        work = reference_work(1)
        for at in range(0, len(work), 100):
            await theirs.send_all(work[at : at + 100])
            await trio.sleep(1.5)
        await theirs.aclose()
        await wait_all_tasks_blocked()
        assert records_of_exporter(intake, "192.0.2.1:9") == 24
        nursery.cancel_scope.cancel()


# F14
@pytest.mark.parametrize("case", ["one-byte records", "empty values", "all withdrawn again and again", "empty sets"])
async def test_f14_no_message_keeps_another_task_waiting(case: str) -> None:
    """The CPU time of the longest step of any task, with a margin of ten."""
    steps: list[float] = []

    class Steps(trio.abc.Instrument):
        began = 0.0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.began = time.thread_time()

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if self.began:  # it was set in the midst of a step
                steps.append(time.thread_time() - self.began)

    messages = worst_cases()[case]
    intake = an_intake()
    theirs, ours = memory_stream_pair()
    instrument = Steps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        trio.lowlevel.add_instrument(instrument)
        for message in messages:
            await theirs.send_all(message)
            await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(instrument)
        await theirs.aclose()
        nursery.cancel_scope.cancel()
    assert max(steps) < 0.5


# F30
async def test_f30_too_many_templates_end_their_own_session_and_no_other(autojump_clock: MockClock) -> None:
    intake = an_intake()
    hostile, ours = memory_stream_pair()
    good, its = memory_stream_pair()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
            nursery.start_soon(intake.session, its, "192.0.2.2:9", "globex")
            await good.send_all(reference_work(2))
            raws = [make_template(256 + n, [(0, 4, 1), (0, 5, 1)]).raw for n in range(65_280)]
            sets = [make_set(2, b"".join(raws[at : at + 5000])) for at in range(0, len(raws), 5000)]
            for domain in range(3):
                for piece in sets:
                    if intake.counts.malformed:
                        break
                    await hostile.send_all(make_message(piece, domain=domain))
                    await wait_all_tasks_blocked()
            assert (intake.counts.malformed, intake.counts.exporters) == (1, 1)
            assert intake.faults.by_reason == {"templates": 1}
            await good.send_all(reference_work(2, define=False, sequence=48))
            await good.aclose()
            await wait_all_tasks_blocked()
            assert records_of_exporter(intake, "192.0.2.2:9") == 96
            nursery.cancel_scope.cancel()


# F31
async def test_f31_the_same_template_id_in_two_connections_and_orgs_is_never_mixed(autojump_clock: MockClock) -> None:
    intake = an_intake()
    wide, narrow = make_template(256, [(0, 1, 8)]), make_template(256, [(0, 4, 1)])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            ends = []
            for peer, org, template in (("192.0.2.1:9", "acme", wide), ("192.0.2.1:10", "globex", narrow)):
                theirs, ours = memory_stream_pair()
                nursery.start_soon(intake.session, ours, peer, org)
                await theirs.send_all(Encoder().templates([template], export_time=1))
                ends.append(theirs)
            await wait_all_tasks_blocked()
            for theirs in ends:
                await theirs.send_all(make_message(make_set(256, bytes(8))))
                await theirs.aclose()
            await wait_all_tasks_blocked()
            assert records_of_exporter(intake, "192.0.2.1:9") == 1
            assert records_of_exporter(intake, "192.0.2.1:10") == 8
            orgs = {stream.exporter: stream.org for stream in intake.uplink.streams}
            assert orgs == {"192.0.2.1:9": "acme", "192.0.2.1:10": "globex"}
            nursery.cancel_scope.cancel()


# F32
async def test_f32_data_before_its_template_is_counted_and_no_template_of_another_domain_decodes_it(
    autojump_clock: MockClock,
) -> None:
    intake = an_intake()
    template = make_template(256, [(0, 4, 1)])
    theirs, ours = memory_stream_pair()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
            await theirs.send_all(make_message(make_set(256, b"\x06\x11"), domain=1))
            await theirs.send_all(Encoder(domain=2).templates([template], export_time=1))
            await theirs.send_all(make_message(make_set(256, b"\x06\x11"), domain=1, sequence=2))
            await theirs.send_all(Encoder(domain=1, sequence=4).templates([template], export_time=1))
            await theirs.send_all(make_message(make_set(256, b"\x06\x11\x01"), domain=1, sequence=4))
            await theirs.aclose()
            await wait_all_tasks_blocked()
            assert intake.counts.undecodable_sets == 2
            assert intake.counts.lost_records == 0
            (batch,) = decode(payload_of(intake, "192.0.2.1:9"))
            assert (batch.domain, batch.records) == (1, 3)
            nursery.cancel_scope.cancel()


def a_door(intake: Intake, **settings: float) -> ExporterDoor:
    bindings = SourceBindings([SourceBinding("192.0.2.0/24", "acme")])
    return ExporterDoor(intake, bindings, backoff=Backoff(BackoffSettings(**settings), lambda: 1.0))  # type: ignore[arg-type]


async def visit(door: ExporterDoor, peer: str, data: bytes) -> None:
    """One connection, as its exporter sees it: closed by us within a second, or by it."""
    theirs, ours = memory_stream_pair()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await door.serve(ours, peer)  # type: ignore[arg-type]
                await trio.aclose_forcefully(ours)

            nursery.start_soon(serve)
            try:
                await theirs.send_all(data)
                await theirs.send_eof()
            except trio.BrokenResourceError:
                return


# F34
async def test_f34_an_exporter_that_is_malformed_again_and_again_is_turned_away_for_a_while(
    autojump_clock: MockClock,
) -> None:
    intake = an_intake()
    door = a_door(intake, after=3, first_s=8.0, most_s=20.0)
    for port in range(3):
        await visit(door, f"192.0.2.1:{port}", BAD)
    assert intake.counts.malformed == 3
    for port in range(100):
        await visit(door, f"192.0.2.1:{port}", BAD)
    assert (intake.counts.malformed, door.backoff.turned_away, door.backoff.shut) == (3, 100, 1)
    await visit(door, "192.0.2.2:1", reference_work(1))
    assert intake.counts.sessions == 4
    await trio.sleep(8.1)
    await visit(door, "192.0.2.1:1", BAD)
    assert intake.counts.malformed == 4
    await trio.sleep(8.1)
    await visit(door, "192.0.2.1:1", reference_work(1))
    assert door.backoff.turned_away == 101
    await trio.sleep(8.1)
    await visit(door, "192.0.2.1:1", reference_work(1))
    await visit(door, "192.0.2.1:1", BAD)
    await visit(door, "192.0.2.1:1", reference_work(1))
    assert door.backoff.turned_away == 101


# F34
async def test_f34_sets_that_cannot_be_read_are_counted_by_reason_and_exporter_and_three_bad_messages_end_it(
    autojump_clock: MockClock,
) -> None:
    intake = an_intake()
    loose = make_template(256, [(0, 82, 65_535)])
    bad = make_message(make_set(256, b"\x09"))
    good = make_message(make_set(256, b"\x01a") + make_set(256, b"\x09") + make_set(256, b"\x01b"))
    start = Encoder().templates([loose], export_time=1)
    await visit(a_door(intake), "192.0.2.1:1", start + good + bad + bad + good)
    assert (intake.counts.malformed, intake.counts.refused_sets, intake.counts.records) == (0, 4, 4)
    await visit(a_door(intake), "192.0.2.1:2", start + good + bad + bad + bad + good)
    assert (intake.counts.malformed, intake.counts.refused_sets, intake.counts.records) == (1, 7, 6)
    assert intake.faults.by_reason == {"record": 8}
    assert dict(intake.faults.by_exporter) == {"192.0.2.1": {"record": 8}}


def recorded_streams() -> dict[str, bytes]:
    """What exporters send, of every kind that the builders know."""
    loose = make_template(256, [(0, 82, 65_535)])
    refused = make_message(make_set(256, b"\x01a") + make_set(256, b"\x09"))
    streams = {f"seed {number}": data for number, data in enumerate(ipfix_streams())}
    return {**streams, "with sets left out": Encoder().templates([loose], export_time=1) + refused * 3}


STREAMS = recorded_streams()


# F33
@pytest.mark.parametrize("name", STREAMS)
async def test_f33_a_stream_cut_at_each_byte_comes_out_as_in_one_piece(name: str, autojump_clock: MockClock) -> None:
    stream = STREAMS[name]
    expected = await taken([stream])
    assert expected
    random = Random(1)
    places = range(1, len(stream)) if len(stream) < 1500 else random.sample(range(1, len(stream)), 400)
    for place in places:
        assert await taken([stream[:place], stream[place:]]) == expected
    for size in (1, 3, 17, 1400):
        assert await taken([stream[at : at + size] for at in range(0, len(stream), size)]) == expected


async def taken(pieces: list[bytes]) -> bytes:
    """What an intake makes of a stream that comes in these pieces, each read alone."""
    intake = an_intake(flush_interval_s=1e9, idle_timeout_s=1e9, message_timeout_s=1e9)
    theirs, ours = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        for piece in pieces:
            await theirs.send_all(piece)
        await theirs.aclose()
    return payload_of(intake, "192.0.2.1:9")


@asynccontextmanager
async def tls_pair() -> AsyncIterator[tuple[trio.SSLStream[trio.abc.Stream], trio.SSLStream[trio.abc.Stream]]]:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("exporters.example").configure_cert(server)
    authority.configure_trust(client)
    theirs, ours = memory_stream_pair()
    yield (
        trio.SSLStream(theirs, client, server_hostname="exporters.example", https_compatible=True),
        trio.SSLStream(ours, server, server_side=True, https_compatible=True),
    )


# F33
async def test_f33_tls_records_of_one_byte_come_out_as_in_one_piece(autojump_clock: MockClock) -> None:
    stream = STREAMS["seed 1"][:1200]
    intake = an_intake()
    async with tls_pair() as (theirs, ours), trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        for byte in stream:
            await theirs.send_all(bytes([byte]))
        await theirs.aclose()
    assert payload_of(intake, "192.0.2.1:9") == await taken([stream])


async def test_faults_of_datagrams_are_counted_with_those_of_sessions() -> None:
    intake = an_intake()
    datagrams = DatagramIntake(intake.uplink, DatagramSettings(), lambda _: "acme", faults=intake.faults)
    cut = (b"\x00\x0a\x00\xff", ("192.0.2.7", 9))
    for _ in range(3):
        datagrams.take([cut, cut], 0.0, 1_750_000_000.0)
    assert datagrams.counts.malformed == 6
    assert dict(intake.faults.by_exporter) == {"192.0.2.7": {"truncated": 6}}


async def test_faulty_exporters_are_remembered_within_a_bound_and_the_totals_forget_nothing() -> None:
    intake = an_intake()
    for number in range(1000):
        intake.faults.count(f"192.0.2.{number}", {"record": 2})
    assert len(intake.faults.by_exporter) == intake.faults.max_exporters
    assert "192.0.2.999" in intake.faults.by_exporter
    assert intake.faults.by_reason == {"record": 2000}


def test_the_limit_of_malformed_messages_in_a_row_is_that_of_an_intake_and_not_of_a_file() -> None:
    assert IntakeSettings().limits.max_malformed_in_a_row == 3
    assert FlowLimits().max_malformed_in_a_row == 0
