"""The placement policy with the fleet's view: what the uplink and the link door ask, and why all is where it is.

What collectors are there comes from the coordinator; their loads come from it too, and over the control links, so that
neither one's end is the end of both. What was decided is kept in a journal, for `sapflow status --why`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import structlog
import trio
from attrs import define, field

from balancer.journal import Journal
from balancer.placement import STALE_S, Decision, Placement, Report
from balancer.rebalancing import Move
from balancer.steering import Told, ToldStream
from meter.uplink import Target, UplinkStream
from sapflow.cluster.view import View
from sapflow.link import StreamId
from sapflow.link.frames import Hint
from sapflow.runtime.seldom import Seldom

log = structlog.get_logger()


@define(eq=False)
class Places:
    """A `Chooser` for the uplink, `place_link` for the link door."""

    name: str
    """This balancer's, in the fleet."""
    policy: Placement = field(factory=Placement)
    journal: Journal = field(factory=Journal)
    addresses: dict[str, str] = field(factory=dict)
    """Of collectors, by name."""
    takers: dict[str, str] = field(factory=dict)
    """Where collectors take over sockets, as they announced it."""
    balancers: list[str] = field(factory=list)
    told: dict[str, Told] = field(factory=dict)
    """What collectors told over control links, …"""
    told_at: dict[str, float] = field(factory=dict)
    """… and when."""
    _waits: Seldom = field(factory=Seldom)
    _wanted: dict[StreamId, str] = field(factory=dict)
    """Where streams are wanted that another process left there, until they are placed."""

    def on_change(self, view: View) -> None:
        """The coordinator told who is there and what they report."""
        now = trio.current_time()
        collectors = view.of_role("collector")
        self.addresses = {member.name: member.addresses["link"] for member in collectors}
        self.takers = {one.name: one.addresses["handoff"] for one in collectors if "handoff" in one.addresses}
        self.balancers = sorted({self.name, *(member.name for member in view.of_role("balancer"))})
        self.policy.members(self.addresses, now)
        self.told = {name: told for name, told in self.told.items() if name in self.addresses}
        for name in self.addresses:
            load = view.loads.get(name)
            if load:
                report = Report(
                    load["bytes_per_s"],
                    load["lag_s"],
                    load["held_bytes"],
                    load["budget_bytes"],
                    load.get("up_s"),
                    bool(load.get("draining")),
                )
                self.policy.report(name, report, now)

    def on_told(self, name: str, told: Told) -> None:
        """A collector told of itself over its control link."""
        if name not in self.addresses:
            return
        self.told[name], self.told_at[name] = told, trio.current_time()
        report = Report(told.bytes_per_s, told.lag_s, told.held_bytes, told.budget_bytes, told.up_s, told.draining)
        self.policy.report(name, report, trio.current_time())

    def tell_orgs(self) -> None:
        """Tell the policy on which collectors each org is, as these told."""
        orgs: defaultdict[str, set[str]] = defaultdict(set)
        for collector, told in self.told.items():
            for org in told.orgs:
                orgs[org].add(collector)
        self.policy.seen(orgs)

    def target(self, collector: str) -> Target:
        """A collector's own address."""
        return Target(collector, self.addresses[collector])

    def choose(self, stream: UplinkStream) -> Target | None:
        """A collector for an exporter's stream."""
        want = self._wanted.get(stream.id, "")
        decision = self.policy.place(stream.id, stream.org, trio.current_time(), want=want)
        if not isinstance(decision, Decision):
            if times := self._waits.again(stream.org):
                who = {"org": stream.org, "exporter": stream.exporter}
                log.warning("stream waits", **who, reason=decision.reason, times=times)
            self._note_stream(stream, f"waits: {decision.reason}")
            return None
        self._waits.over(stream.org)
        self._wanted.pop(stream.id, None)
        log.info(
            "stream placed", stream=stream.id.hex(), org=stream.org, collector=decision.collector, why=decision.reason
        )
        self._note_stream(stream, f"placed on {decision.collector}: {decision.reason}")
        return self.target(decision.collector)

    def expect(self, stream: StreamId, org: str, collector: str, rate: float) -> None:
        """A stream that another process left will be placed: where it was, and what it brought."""
        self._wanted[stream] = collector
        self.policy.rates.note(stream, org, rate)

    def failed(self, target: str) -> None:
        """A link to a collector broke or could not be made."""
        self.policy.failed(target, trio.current_time())

    def leaving(self, target: str, deadline_s: float) -> None:
        """A collector told its link to go away."""
        self.policy.draining(target)

    def released(self, stream: UplinkStream) -> None:
        """A stream is no more."""
        self._wanted.pop(stream.id, None)
        self.policy.released(stream.id)

    def place_link(self, link: object, hint: Hint, tried: set[str]) -> tuple[str, str] | None:
        """A collector for a meter's link; the hint places it and is not trusted."""
        decision = self.policy.place(
            link,
            hint.org,
            trio.current_time(),
            exclude=tried,
            want=hint.want,
            known_as=(hint.org, hint.name) if hint.name else None,
            is_link=True,
        )
        if not isinstance(decision, Decision):
            self._note_link(hint, f"waits: {decision.reason}")
            return None
        self._note_link(hint, f"placed on {decision.collector}: {decision.reason}")
        return decision.collector, self.addresses[decision.collector]

    def link_left(self, link: object) -> None:
        """A link that was placed ended."""
        self.policy.released(link)

    def link_handed_off(self, link: object) -> None:
        """A link that was placed is its collector's: nothing more will be heard of it here."""
        self.policy.handed_off(link)

    def moved(self, move: Move, names: tuple[str, ...]) -> None:
        """A stream goes to another collector."""
        what = f"moved from {move.source} to {move.destination}: {move.reason}"
        self.journal.note(move.stream.hex(), move.org, names, what, time.time())

    def _note_stream(self, stream: UplinkStream, what: str) -> None:
        self.journal.note(stream.id.hex(), stream.org, (stream.exporter,), what, time.time())

    def _note_link(self, hint: Hint, what: str) -> None:
        self.journal.note(f"link {hint.org}/{hint.name}", hint.org, (hint.name,), what, time.time())

    def why(self, wanted: str) -> dict[str, Any]:
        """Why a stream is where it is: by its id or the beginning of it, its exporter's address, its meter's name."""
        now = trio.current_time()
        subjects = {subject.key: subject.as_fields() for subject in self.journal.find(wanted)}
        for collector, stream in self.told_lately(now):
            if not _is_called(stream, wanted):
                continue
            fields = subjects.setdefault(stream.id.hex(), {"key": stream.id.hex(), "org": stream.org, "history": []})
            fields |= {"exporter": stream.exporter, "meter": stream.meter}
            fields |= {"collector": collector, "bytes_per_s": round(stream.rate)}
        unfit = self.policy.unfit(now)
        loads = {
            load.name: {"bytes_per_s": round(load.rate), "unfit": unfit.get(load.name, ""), "ramp": round(load.ramp, 2)}
            for load in self.policy.measured(now)
        }
        return {"found": list(subjects.values()), "collectors": loads}

    def told_lately(self, now: float) -> Iterator[tuple[str, ToldStream]]:
        """Meters' streams with their collectors, as far as these told of them within the last seconds."""
        for collector, told in self.told.items():
            if now - self.told_at[collector] <= STALE_S:
                for stream in told.streams:
                    yield collector, stream


def _is_called(stream: ToldStream, wanted: str) -> bool:
    exporter = stream.exporter
    return wanted in (stream.meter, exporter, exporter.rpartition(":")[0]) or stream.id.hex().startswith(wanted)
