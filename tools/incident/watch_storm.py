"""A watch that is set twice for every event: ZooKeeper's traffic doubles with each change, without an end.

Then: a client that re-reads for each watch that fires, twice, as a small model over the real growth alarm. Now: the
real coordinators, on a ZooKeeper in memory that tells each of its watches twice over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from sapflow.cluster.growth import Growth
from sapflow.cluster.zookeeper import ZooKeeperCoordinator
from sapflow.runtime.threads import ThreadKind
from tools.incident.scenario import Options, Plot, Recording, Scenario
from tools.simulate.clock import VirtualClock
from tools.simulate.determinism import determined
from tools.simulate.trace import Trace
from tools.simulate.zookeeper import FakeClient, Server

MEMBERS = 8
CHANGE_EVERY_S = 2.0
"""A member joins or leaves."""
SESSION_S = 6.0
ALARM_S = 11.0
"""The alarm's window of ten seconds, and a reading."""
MOST_OPERATIONS = 1 << 16
"""In a second of the model: by then its ZooKeeper answers nobody any more."""


@define
class _Then:
    """Rule: every watch that fires has its handler read again and set two. One event fires all that there are."""

    recording: Recording = field(factory=lambda: Recording("then, a model"))
    growth: Growth = field(factory=Growth)

    def run(self, seconds: float) -> Recording:
        """One step a second."""
        watches, operations, changes = MEMBERS, 0, 0
        alarm_at = storm_at = None
        for now in range(1, int(seconds) + 1):
            asked = 0
            if now % round(CHANGE_EVERY_S) == 0:
                changes += MEMBERS
                asked = min(MOST_OPERATIONS, 2 * watches)
                watches = asked
            operations += asked
            self.growth.note(operations, changes, float(now))
            if storm_at is None and asked > 3 * MEMBERS:
                storm_at = now
            if alarm_at is None and self.growth.is_alarming:
                alarm_at = now
                self.recording.event(now, "sapflow's growth alarm would have told")
            _sample(self.recording, now, watches, asked, self.growth)
        self.recording.facts = {
            "most watches": f"{watches:,}",
            "most operations in a second": f"{max(self.recording.series['operations']['requests']):,.0f}",
            "growth alarm": f"{alarm_at - storm_at} s after it began" if alarm_at and storm_at else "none",
        }
        told = alarm_at is not None and storm_at is not None and alarm_at - storm_at <= ALARM_S
        self.recording.require(told, f"the growth alarm did not tell of it within {ALARM_S:g} s")
        self.recording.trace = self.recording.checksum()
        return self.recording


class _Twice(FakeClient):
    """Sets each watch twice, as the client of then did: each event is told twice over."""

    def _answer(self, work: Callable[[], Any], path: str = "", watch: Callable[[Any], None] | None = None) -> Any:
        answer = super()._answer(work, path, watch)
        if watch is not None and path in self.watches:
            self.watches[path].append(watch)
        return answer


class _TwiceServer(Server):
    """A server whose clients are such."""

    def connect(self, _hosts: str, _token: str, timeout_s: float) -> FakeClient:
        return _Twice(self, min(timeout_s, self.longest_timeout_s))


class _Inline(ThreadKind):
    """No thread: virtual time would run ahead of it."""

    async def run(self, work: Callable[[], Any], *, abandon: bool = False) -> Any:
        return work()


@define
class _Now:
    """The real coordinators of a fleet, of which one comes and goes."""

    options: Options
    recording: Recording = field(factory=lambda: Recording("sapflow"))
    server: Server = field(factory=_TwiceServer)
    members: list[ZooKeeperCoordinator] = field(factory=list)
    alarms: int = 0
    gone: int = 0
    """Operations of members that left."""

    async def run(self) -> None:
        """Until its time is over."""
        async with trio.open_nursery() as nursery:
            for number in range(MEMBERS):
                nursery.start_soon(self._member(f"collector-{number}").run)
            nursery.start_soon(self._come_and_go)
            before = 0
            while trio.current_time() < self.options.seconds:
                await trio.sleep(1.0)
                total = self.gone + sum(one.operations for one in self.members)
                self._look(total - before)
                before = total
            nursery.cancel_scope.cancel()

    def _look(self, asked: int) -> None:
        self.alarms += sum(bool(one.gauges()["coordinator_alarm"]) for one in self.members)
        worst = max((one._growth for one in self.members), key=lambda growth: growth.per_change)
        watches = sum(len(found) for client in self.server.clients for found in client.watches.values())
        _sample(self.recording, trio.current_time(), watches, asked, worst)
        self.options.progress(self.recording.name, trio.current_time(), self.options.seconds)

    async def _come_and_go(self) -> None:
        number = MEMBERS
        while True:
            one = self._member(f"collector-{number}")
            with trio.move_on_after(CHANGE_EVERY_S):
                await one.run()
            self.members.remove(one)
            self.gone += one.operations
            await trio.sleep(CHANGE_EVERY_S)
            number += 1

    def _member(self, name: str) -> ZooKeeperCoordinator:
        member = ZooKeeperCoordinator(
            name=name,
            role="collector",
            addresses={"link": f"{name}:1"},
            fleet="incident",
            fleet_token="",
            hosts="nowhere",
            session_timeout_s=SESSION_S,
            report_interval_s=1.0,
            load=lambda: {"bytes_per_s": 7},
            on_change=lambda _view: None,
            connect=self.server.connect,
            threads=_Inline("kazoo", 1),
        )
        self.members.append(member)
        return member

    def check(self) -> None:
        """No storm, and no false alarm."""
        recording = self.recording
        watches, asked = recording.series["watches"]["watches"], recording.series["operations"]["requests"]
        half = len(asked) // 2
        recording.facts = {
            "most watches": f"{max(watches):,.0f}",
            "most operations in a second": f"{max(asked):,.0f}",
            "growth alarm": "none" if not self.alarms else f"{self.alarms} times",
        }
        recording.require(not self.alarms, "the growth alarm told of a storm that is none")
        recording.require(
            sum(asked[half:]) <= 1.5 * sum(asked[:half]) + MEMBERS, "requests grow: more in the second half than before"
        )
        recording.require(sum(asked) > 0, "nothing was asked")


def _sample(recording: Recording, now: float, watches: int, asked: int, growth: Growth) -> None:
    recording.sample(
        now,
        {
            "watches": {"watches": watches},
            "operations": {"requests": asked},
            "per_change": {"requests for each change": growth.per_change},
            "alarm": {"alarm": int(growth.is_alarming)},
        },
    )


def _play(options: Options) -> list[Recording]:
    then = _Then().run(options.seconds)
    clock, trace = VirtualClock(), Trace()
    began = time.process_time()
    with determined(options.seed, clock, trace):
        now = _Now(options)
        trio.run(now.run, clock=clock)

    now.check()
    now.recording.trace, now.recording.cpu_s = now.recording.checksum(), time.process_time() - began
    return [then, now.recording]


SCENARIO = Scenario(
    "watch-storm",
    "A watch that is set twice for every event",
    (
        "A client set its watch anew in the handler of the event, and once more where it re-read the node. Each event "
        "was told twice as often as the one before, and ZooKeeper was busy with nothing else.",
        "sapflow's coordinators mark what changed, and one task reads it again: a watch that fires twice marks the "
        "same path twice. Here ZooKeeper, in memory, holds every watch of theirs twice. What is asked for each change "
        "is counted; more than three for ten seconds is an alarm.",
    ),
    (
        Plot("operations", "requests to ZooKeeper", "in a second"),
        Plot("watches", "watches that ZooKeeper holds", "watches"),
        Plot("per_change", "requests for each change", "requests", 3.0, "alarm, when for ten seconds"),
        Plot("alarm", "the growth alarm", "0 or 1"),
    ),
    _play,
    minutes=2.0,
)
