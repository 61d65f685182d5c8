"""The exporter door's spool, of several orgs, in virtual time over a memory link: who is stuck holds up no other, and
the next process of the same name goes on with the same streams."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from balancer.door_spool import DoorSpool, door_spool, spool_directory
from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.config import BalancerConfig, Config
from sapflow.errors import ConfigurationError
from sapflow.runtime.threads import instead
from tests.unit.meter.test_uplink import FarEnd

WRITE_S = 0.01
SIZE = 50_000


async def _inline(kind: str, work: Callable[[], Any], *, abandon: bool) -> Any:
    await trio.sleep(WRITE_S)
    return work()


@pytest.fixture(autouse=True)
def no_threads() -> Iterator[None]:
    token = instead.set(_inline)
    yield
    instead.reset(token)


def a_config(directory: Path, **settings: Any) -> Config:
    settings = {"spool": True, "spool_bytes": 8 << 20, "budget_bytes": 8 << 20, **settings}
    return Config(data=str(directory), balancer=attrs.evolve(BalancerConfig(), **settings))


@asynccontextmanager
async def a_balancer(config: Config, far: FarEnd, name: str = "b1") -> AsyncIterator[DoorSpool]:
    """Its uplink and spool, running."""
    instead.set(_inline)
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            far.nursery = nursery
            settings = UplinkSettings(hello={"role": "intake"}, backoff_most_s=0.1)
            uplink = Uplink(FixedTarget(Target("c", "c:1")), far.dial, settings)
            async with door_spool(config, name, uplink) as spool:
                assert spool is not None
                await nursery.start(uplink.run)
                await nursery.start(spool.spooling.run)
                yield spool
                nursery.cancel_scope.cancel()


def a_draft(number: int) -> Draft:
    return Draft(1, 1, number.to_bytes(4, "big") + bytes(SIZE))


def numbers(log: dict[bytes, list[bytes]], stream: bytes) -> list[int]:
    return [int.from_bytes(payload[:4], "big") for payload in log.get(stream, [])]


async def fill(spool: DoorSpool, org: str, *, udp: bool) -> int:
    """An exporter that sends until nothing moves: how many batches it has sent."""
    door = spool.spooling.dropping if udp else spool.spooling.waiting
    stream = door.open_stream(org, f"{org}-exporter")
    for number in range(300):
        if udp:
            stream.put_now(a_draft(number))
            await trio.sleep(2 * WRITE_S)
            continue
        with trio.move_on_after(5) as stuck:
            await stream.put(a_draft(number))
        if stuck.cancelled_caught:
            return number
    return 300


@pytest.mark.parametrize("udp", [False, True])
async def test_orgs_that_nobody_takes_from_fill_no_more_than_their_share_and_hold_up_no_other(
    autojump_clock: MockClock, tmp_path: Path, udp: bool
) -> None:
    far = FarEnd()
    far.deaf = {"dead", "gone"}
    async with a_balancer(a_config(tmp_path), far) as spool:
        limit = spool.spooling.spool.limit_bytes
        await fill(spool, "dead", udp=udp)
        assert limit // 3 < spool.spooling.spool.held_by["dead"] <= limit // 2
        await fill(spool, "gone", udp=udp)
        held = dict(spool.spooling.spool.held_by)
        assert held["gone"] > limit // 8
        assert sum(held.values()) < limit
        # Of a third org far more than the whole spool comes through, and no batch of it waits for the others.
        stream = spool.spooling.waiting.open_stream("acme", "x")
        began = trio.current_time()
        for number in range(300):
            await stream.put(a_draft(number))
        while spool.spooling.spool.held_by["acme"] or spool.spooling.keeping.pending.bytes_of("acme"):
            await spool.spooling.changed.park()
        assert trio.current_time() - began < 300 * 3 * WRITE_S
        ids = [stream_id for stream_id, payloads in far.log.items() if payloads]
        assert [numbers(far.log, stream_id) for stream_id in ids] == [list(range(300))]
        counts = spool.counts()
        assert counts["taken_batches"] >= 300
        assert bool(counts["dropped_batches"]) == udp
        assert not counts["refused_batches"]
        assert set(spool.state()["held_by_org"]) == {"dead", "gone"}
    # Their consumers are back after a restart: all that was kept comes, in order and once.
    far.deaf = set()
    async with a_balancer(a_config(tmp_path), far) as spool:
        while spool.spooling.spool.totals.held_batches:
            await spool.spooling.changed.park()
        counts = spool.counts()
        assert counts["taken_batches"] == counts["acknowledged_batches"] + counts["dropped_batches"]
    stored = [numbers(far.log, stream_id) for stream_id in far.log]
    assert sum(map(len, stored)) == counts["acknowledged_batches"]
    for found in stored:
        assert found == list(range(found[0], found[0] + len(found)))


async def test_the_next_process_goes_on_with_the_same_streams_of_the_same_orgs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    far = FarEnd()
    far.deaf = {"acme", "globex"}
    async with a_balancer(a_config(tmp_path), far) as spool:
        for org in ("acme", "globex"):
            stream = spool.spooling.waiting.open_stream(org, f"{org}-exporter")
            for number in range(5):
                await stream.put(a_draft(number))
            await stream.durable()
        before = {(one.id, one.org, one.exporter) for one in spool.spooling.uplink.streams}
        assert len(before) == 2
    async with a_balancer(a_config(tmp_path), far) as spool:
        while len(spool.spooling.uplink.streams) < 2:
            await spool.spooling.changed.park()
        assert {(one.id, one.org, one.exporter) for one in spool.spooling.uplink.streams} == before
        far.deaf = set()
        far.kill()
        while spool.spooling.spool.totals.held_batches:
            await spool.spooling.changed.park()
    assert {stream_id: numbers(far.log, stream_id) for stream_id, _, _ in before} == {
        stream_id: [0, 1, 2, 3, 4] for stream_id, _, _ in before
    }


async def test_each_balancer_has_a_spool_of_its_own_and_a_second_of_the_same_name_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    config = a_config(tmp_path)
    async with a_balancer(config, FarEnd(), "b1"), a_balancer(config, FarEnd(), "b2") as second:
        assert second.state()["path"] == str(spool_directory(config, "b2"))
        uplink = Uplink(FixedTarget(Target("c", "c")), FarEnd().dial, UplinkSettings(hello={}))
        with pytest.raises(ConfigurationError, match=r"another balancer \(pid \d+\) has the spool .*--name"):
            async with door_spool(config, "b1", uplink):
                pass


async def test_a_spool_that_is_not_used_any_more_is_told_of(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with a_balancer(a_config(tmp_path), FarEnd()):
        pass
    uplink = Uplink(FixedTarget(Target("c", "c")), FarEnd().dial, UplinkSettings(hello={}))
    with structlog.testing.capture_logs() as logs:
        async with door_spool(a_config(tmp_path, spool=False), "b1", uplink) as spool:
            assert spool is None
        async with door_spool(a_config(tmp_path, spool=False), "b9", uplink):
            pass
    assert [line["event"] for line in logs] == ["spool not used"]
