"""Exporters' sessions in virtual time: flush, deadline, fault, backpressure."""

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, memory_stream_pair

from meter.batching import Draft
from meter.intake import Intake, IntakeSettings
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.flows.ipfix.session import Session
from sapflow.flows.reference import reference_work


async def never(_target: Target) -> trio.abc.Stream:
    await trio.sleep_forever()
    raise AssertionError


def an_intake(**settings: float) -> Intake:
    uplink = Uplink(FixedTarget(Target("c", "c:1")), never, UplinkSettings(hello={}, max_unacknowledged_bytes=200_000))
    return Intake(uplink, IntakeSettings(**settings))  # type: ignore[arg-type]


def held(intake: Intake) -> tuple[int, int]:
    """Batches and records in all outboxes; each batch must read alone."""
    batches = [batch for stream in intake.uplink.streams for batch in stream.outbox]
    for batch in batches:
        walk = Session().walk(batch.payload)
        assert (walk.fault, walk.undecodable_sets, walk.records) == (None, 0, batch.records)
    return len(batches), sum(batch.records for batch in batches)


async def test_a_little_is_flushed_after_the_interval(autojump_clock: MockClock) -> None:
    intake = an_intake()
    theirs, ours = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        await theirs.send_all(reference_work(2))
        await trio.sleep(0.9)
        assert held(intake) == (0, 0)
        await trio.sleep(0.2)
        assert held(intake) == (1, 48)
        await theirs.send_all(reference_work(3, define=False, sequence=48))
        await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert held(intake) == (2, 120)
        nursery.cancel_scope.cancel()


async def test_f04_a_message_that_never_comes_whole_ends_its_session_at_the_deadline(
    autojump_clock: MockClock,
) -> None:
    intake = an_intake(message_timeout_s=30.0)
    theirs, ours = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        await theirs.send_all(b"\x00\x0a\xff\xff")
        began = trio.current_time()
        while not intake.counts.timed_out:
            assert trio.current_time() - began < 200
            await trio.sleep(1)
            await theirs.send_all(b"\0")
        assert 29 <= trio.current_time() - began <= 32
        assert intake.counts.timed_out == 1
        nursery.cancel_scope.cancel()


async def test_what_came_whole_before_a_malformed_message_is_kept(autojump_clock: MockClock) -> None:
    intake = an_intake()
    theirs, ours = memory_stream_pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
            await theirs.send_all(reference_work(4) + b"\x00\x0a\x00\x00")
            await trio.testing.wait_all_tasks_blocked()
            assert intake.counts.malformed == 1
            assert held(intake) == (1, 96)
            nursery.cancel_scope.cancel()


async def test_an_exporter_is_not_read_while_too_much_is_unacknowledged(autojump_clock: MockClock) -> None:
    intake = an_intake()
    theirs, ours = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        work = reference_work(2000)
        sent = 0
        with trio.move_on_after(60):
            for at in range(0, len(work), 50_000):
                await theirs.send_all(work[at : at + 50_000])
                sent += 50_000
        assert sent < 600_000
        nursery.cancel_scope.cancel()


async def test_an_exporter_that_says_nothing_for_long_is_let_go_and_is_not_called_faulty(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    intake = an_intake(idle_timeout_s=600.0)
    theirs, ours = memory_stream_pair()
    with trio.fail_after(700):
        await theirs.send_all(reference_work(1))
        assert await intake.session(ours, "192.0.2.1:9", "acme") is None
    assert intake.counts.timed_out == 0
    assert "it said nothing for 600 s" in capsys.readouterr().out


async def test_an_exporter_that_was_not_read_from_has_its_time_for_the_rest_of_its_message(
    autojump_clock: MockClock,
) -> None:
    intake = an_intake(message_timeout_s=30.0)
    theirs, ours = memory_stream_pair()
    work = reference_work(400)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        await theirs.send_all(work[:-10])
        await trio.sleep(100)  # its stream is full all the while
        (stream,) = intake.uplink.streams
        assert len(stream.outbox)
        stream.acknowledged(stream.outbox.last)
        await trio.sleep(20)
        stream.acknowledged(stream.outbox.last)
        await theirs.send_all(work[-10:])
        await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked()
        stream.acknowledged(stream.outbox.last)
        assert intake.counts.timed_out == 0
        assert intake.counts.records == 400 * 24
        nursery.cancel_scope.cancel()


@define
class FullStream:
    """A spool that has room for what is read, and then for no more until the process ends."""

    put_at_the_end: list[Draft] = field(factory=list)

    def open_stream(self, org: str, exporter: str) -> "FullStream":
        return self

    def is_full(self, most_bytes: int) -> bool:
        return False

    async def room(self) -> None:
        pass

    async def put(self, draft: Draft) -> None:
        await trio.sleep_forever()

    def put_now(self, draft: Draft) -> None:
        self.put_at_the_end.append(draft)

    def end(self) -> None:
        pass


async def test_what_was_read_and_waits_for_room_is_put_when_the_process_is_stopped(autojump_clock: MockClock) -> None:
    full = FullStream()
    intake = Intake(full, IntakeSettings(batch_bytes=1000))
    async with trio.open_nursery() as nursery:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        await theirs.send_all(reference_work(20))
        await trio.sleep(5)
        assert not full.put_at_the_end
        nursery.cancel_scope.cancel()
    assert [draft.records for draft in full.put_at_the_end] == [20 * 24]


@pytest.mark.parametrize("pause_s", [0.0, 0.05, 10.0])
async def test_a_session_that_is_to_end_has_all_that_its_exporter_had_sent(
    pause_s: float, autojump_clock: MockClock
) -> None:
    """One that is silent ends at once, one that goes on is read to where it is; an exporter that looks is told."""
    intake = an_intake()
    theirs, ours = memory_stream_pair()
    sent = 0

    async def export() -> None:
        nonlocal sent
        for number in range(10):
            await theirs.send_all(reference_work(1, define=number == 0, sequence=24 * number))
            sent += 24
            await trio.sleep(pause_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.session, ours, "192.0.2.1:9", "acme")
        nursery.start_soon(export)
        await trio.sleep(0.12)
        began = trio.current_time()
        await intake.stop()
        assert held(intake)[1] == sent
        assert trio.current_time() - began <= 1.3
        assert await theirs.receive_some(1) == b""
        assert intake.counts.exporters == 0
        nursery.cancel_scope.cancel()


async def test_a_session_that_begins_while_all_are_to_end_ends_too(autojump_clock: MockClock) -> None:
    intake = an_intake()
    await intake.stop()
    theirs, ours = memory_stream_pair()
    await theirs.send_all(reference_work(1))
    with trio.fail_after(2):
        await intake.session(ours, "192.0.2.1:9", "acme")
    assert held(intake)[1] == 24
