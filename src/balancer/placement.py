"""Which collector takes a stream or a link: by what collectors reported, plus what was promised to them since.

Pure: state in, decision with its reason out; clock and dice are the caller's.

Rule 1: load = reported bytes/s, or what this balancer itself sends there when that is more, + reservations. Each
        placement reserves a predicted rate, never 0, that fades over 30 s as the measured one takes its place. So a
        thousand placements between two reports do not all go to one.
Rule 2: a collector without a report counts as average, never as empty.
Rule 3: one whose report is old, whose loop is late, whose budget is nearly full, or which gives no sign of work is not
        eligible; when none is, the placement is refused, and the caller waits. When all reports are old it is the
        reports that have stopped: all then count as average.
Rule 4: an org has a width of two collectors at least, and its own share on one counts twice, so none holds all of it.
        It is on no more of them than `SPREAD` times its part of all that was placed, as long as one of those has no
        more than the mean and what is placed: so what ails one org does not reach all of them; but balance comes first.
Rule 5: one that failed is left out for a moment: empty because it just died is not idle. One that is new, or was away,
        ramps up: it takes a part that grows to the whole over `ramp_s`.
Rule 6: links are admitted to a collector at a rate that it can bear; what is over waits.
Rule 7: up to `few` collectors are all compared; of more, two at random.
Rule 8: one that is being drained takes nothing, and is not among those whose mean is compared with: what it has still
        is on its way to others.
Rule 9: a wanted collector is taken when it is eligible and not past WANTED_MOST times the mean of those that were not
        left lately: neither a meter nor a collector that lies gains by it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Iterable, Mapping, Set

from attrs import define, evolve, field, frozen

from balancer.rebalancing import CollectorLoad
from balancer.remembered import RememberedRates
from balancer.reservations import Reservations

STALE_S = 5.0
MAX_LAG_S = 2.0
MAX_FILL = 0.9
FAILED_PAUSE_S = 1.0
DRAINED = "it is being drained"
LEAST_RAMP = 0.1
LEAST_WIDTH = 2
SPREAD = 2.0
DISTRUSTED_S = 60.0
"""So long after it may be tried again, one that gave no sign of work is not believed."""
WANTED_MOST = 1.25
"""Times the mean: a wanted collector that has more is not taken."""


@frozen
class PlacementSettings:
    """What may be chosen; the rest are named constants of this module."""

    ramp_s: float = 10.0
    links_per_s: float = 1000.0
    """Links admitted to one collector."""
    few: int = 8


@frozen
class Report:
    """What a collector says of itself once a second. `up_s`: for how long it has been there, when that is known."""

    bytes_per_s: float
    lag_s: float
    held_bytes: int
    budget_bytes: int
    up_s: float | None = None
    draining: bool = False
    """It is about to end, and hands on what it has."""


@frozen
class Decision:
    """Where, and why."""

    collector: str
    reason: str


@frozen
class Refusal:
    """Nowhere now, and why."""

    reason: str


@define
class _Collector:
    since: float
    report: Report | None = None
    reported_at: float = 0.0
    failed_until: float = 0.0
    idle_until: float = float("-inf")
    """Until then it is left out, since it gave no sign of work."""
    why_idle: str = ""
    sent: float = 0.0
    tokens: float = 0.0
    tokens_at: float = float("-inf")


@define
class Placement:
    """The state of one balancer's placements; all of it comes back within one report interval of a restart."""

    settings: PlacementSettings = PlacementSettings()
    rates: RememberedRates = field(factory=RememberedRates)
    dice: random.Random = field(factory=lambda: random.Random())  # looked up when it is made: a simulation seeds it
    reserved: Reservations = field(factory=Reservations)
    _collectors: dict[str, _Collector] = field(factory=dict)
    _seen: Mapping[str, Set[str]] = field(factory=dict)

    def members(self, names: Iterable[str], now: float) -> None:
        """The collectors that there are."""
        wanted = set(names)
        for name in sorted(wanted - self._collectors.keys()):
            self._collectors[name] = _Collector(since=now)
        for name in list(self._collectors.keys() - wanted):
            del self._collectors[name]

    def report(self, name: str, report: Report, now: float) -> None:
        """A collector reported."""
        if name in self._collectors:
            collector = self._collectors[name]
            if collector.report is None and report.up_s is not None:
                # A balancer that was just started takes nobody for new who is not.
                collector.since = min(collector.since, now - report.up_s)
            # What is no number of bytes is as good as none: what is sent there counts.
            rate = report.bytes_per_s if math.isfinite(report.bytes_per_s) else 0.0
            collector.report, collector.reported_at = evolve(report, bytes_per_s=max(rate, 0.0)), now

    def sent(self, name: str, rate: float) -> None:
        """What this balancer itself sends to a collector, in bytes/s: less than that it cannot have."""
        if name in self._collectors:
            self._collectors[name].sent = rate

    def seen(self, orgs: Mapping[str, Set[str]]) -> None:
        """On which collectors an org has streams, as far as collectors say."""
        self._seen = orgs

    def failed(self, name: str, now: float) -> None:
        """A collector could not be reached, or its link broke."""
        if name in self._collectors:
            collector = self._collectors[name]
            collector.failed_until = collector.since = now + FAILED_PAUSE_S

    def idle(self, name: str, until: float, why: str) -> None:
        """A collector gives no sign of work: left out until then, and then taken for new."""
        if name in self._collectors:
            collector = self._collectors[name]
            collector.idle_until = collector.since = until
            collector.why_idle = why

    def reserve(self, key: Hashable, org: str, collector: str, now: float) -> None:
        """What was placed under `key` goes elsewhere."""
        self.reserved.add(key, collector, org, self.rates.predict(key, org), now)

    def is_left(self, name: str, now: float) -> bool:
        """Whether a collector is left out since it gave no sign of work."""
        known = self._collectors.get(name)
        return known is not None and now < known.idle_until

    def draining(self, name: str) -> None:
        """A collector told its links to go away; its reports say so too, perhaps a moment later."""
        known = self._collectors.get(name)
        if known is not None and known.report is not None:
            known.report = evolve(known.report, draining=True)

    def released(self, key: Hashable) -> None:
        """What was placed under `key` is no more."""
        self.reserved.remove(key)

    def handed_off(self, key: Hashable) -> None:
        """What was placed under `key` is its collector's alone; by the time its promise has faded, reports show it."""
        self.reserved.let_fade(key)

    def place(
        self,
        key: Hashable,
        org: str,
        now: float,
        *,
        exclude: Iterable[str] = (),
        want: str = "",
        known_as: Hashable = None,
        is_link: bool = False,
    ) -> Decision | Refusal:
        """Choose a collector for `key`, and reserve a rate for it there: what was measured of `known_as` before."""
        self.reserved.remove(key)
        eligible, reasons = self._eligible(set(exclude), now, is_link)
        if not eligible:
            return Refusal("; ".join(f"{name}: {why}" for name, why in sorted(reasons.items())) or "no collectors")
        loads = self.loads(now)
        rate = self.rates.predict(key if known_as is None else known_as, org)
        if want in eligible and loads[want] <= WANTED_MOST * self._trusted_mean(loads, now):
            decision = Decision(want, "wanted after a move")
        else:
            decision = self._least(eligible, org, rate, loads, now)
        self.reserved.add(key, decision.collector, org, rate, now)
        if is_link:
            self._collectors[decision.collector].tokens -= 1.0
        return decision

    def _trusted_mean(self, loads: dict[str, float], now: float) -> float:
        """Without those that were left lately: by what such a one says of itself nobody is kept on it who is to go."""
        trusted = [loads[name] for name, its in self._collectors.items() if now >= its.idle_until + DISTRUSTED_S]
        trusted = trusted or list(loads.values())
        return sum(trusted) / len(trusted)

    def loads(self, now: float) -> dict[str, float]:
        """bytes/s of each collector: reported, or average when unknown, plus what is reserved."""
        known = [c.report.bytes_per_s for c in self._collectors.values() if c.report and self._is_fresh(c, now)]
        average = sum(known) / len(known) if known else 0.0
        left = self.reserved.left
        return {name: self._measured(c, average, now) + left(name, now) for name, c in self._collectors.items()}

    def measured(self, now: float) -> list[CollectorLoad]:
        """Those that report and stay: what they really have, why nothing may go there, and how far they ramped up."""
        return [
            CollectorLoad(name, self._measured(c, 0.0, now), self._unfit(c, now), self._ramp(c, now))
            for name, c in self._collectors.items()
            if c.report is not None and self._is_fresh(c, now) and not c.report.draining
        ]

    def unfit(self, now: float) -> dict[str, str]:
        """Why a collector takes nothing now, for those that do not."""
        reasons = {name: self._unfit(c, now) for name, c in self._collectors.items()}
        return {name: why for name, why in reasons.items() if why}

    def _eligible(self, left_out: set[str], now: float, is_link: bool) -> tuple[list[str], dict[str, str]]:
        eligible: list[str] = []
        reasons: dict[str, str] = {}
        reports_stopped = not any(c.report is None or self._is_fresh(c, now) for c in self._collectors.values())
        for name, collector in self._collectors.items():
            reason = "tried already" if name in left_out else self._unfit(collector, now, reports_stopped)
            if not reason and is_link and not self._admits(collector, now):
                reason = f"it takes {self.settings.links_per_s:g} links/s"
            if reason:
                reasons[name] = reason
            else:
                eligible.append(name)
        return eligible, reasons

    def _least(self, eligible: list[str], org: str, rate: float, loads: dict[str, float], now: float) -> Decision:
        shares = self.reserved.of_org(org)
        most = rate + sum(loads.values()) / len(loads)
        candidates, narrowed = self._with_width(eligible, org, shares, {n for n in eligible if loads[n] <= most})
        if len(candidates) > self.settings.few:
            candidates = self.dice.sample(candidates, 2)
            narrowed = f"{narrowed}, two of them compared"

        def score(name: str) -> tuple[float, str]:
            ramp = self._ramp(self._collectors[name], now)
            return (loads[name] + shares.get(name, 0.0) + (rate if ramp < 1.0 else 0.0)) / ramp, name

        best = min(candidates, key=score)
        return Decision(best, f"least load: {loads[best]:,.0f} B/s of {len(eligible)} eligible{narrowed}")

    def _with_width(
        self, eligible: list[str], org: str, shares: dict[str, float], light: set[str]
    ) -> tuple[list[str], str]:
        """An org that is on one collector alone goes to another next; one that is on enough stays on those."""
        on = shares.keys() | self._seen.get(org, frozenset())
        others = [name for name in eligible if name not in on]
        if len(on) == 1 and others and len(others) < len(eligible):
            return others, f" but {next(iter(on))}, where all of {org} is"
        mine = [name for name in eligible if name in on]
        kept = [name for name in mine if name in light]
        if kept and len(mine) >= self._width(org, len(eligible)):
            return kept, f", of the {len(mine)} where {org} is"
        return eligible, ""

    def _width(self, org: str, collectors: int) -> int:
        """On how many collectors an org may be that is no larger than its part of all that was placed."""
        return max(LEAST_WIDTH, math.ceil(collectors * SPREAD * self.reserved.part_of(org)))

    def _measured(self, collector: _Collector, average: float, now: float) -> float:
        report = collector.report
        known = report is not None and self._is_fresh(collector, now)
        return max(report.bytes_per_s if known and report is not None else average, collector.sent)

    def _is_fresh(self, collector: _Collector, now: float) -> bool:
        return now - collector.reported_at <= STALE_S

    def _ramp(self, collector: _Collector, now: float) -> float:
        return min(1.0, max(LEAST_RAMP, (now - collector.since) / self.settings.ramp_s))

    def _admits(self, collector: _Collector, now: float) -> bool:
        """Whether one more link may go there now: a bucket that holds what is admitted in half a second."""
        per_s = self.settings.links_per_s
        most = max(1.0, per_s / 2)
        collector.tokens = min(most, collector.tokens + max(0.0, now - collector.tokens_at) * per_s)
        collector.tokens_at = now
        return collector.tokens >= 1.0

    def _unfit(self, collector: _Collector, now: float, reports_stopped: bool = False) -> str:
        if now < collector.idle_until:
            return collector.why_idle
        if now < collector.failed_until:
            return "failed just now"
        report = collector.report
        if report is not None and report.draining:
            return DRAINED
        if report is None or reports_stopped:
            return ""
        if not self._is_fresh(collector, now):
            return f"no report for {now - collector.reported_at:.0f} s"
        if report.lag_s > MAX_LAG_S:
            return f"its loop is {report.lag_s:.1f} s late"
        if report.held_bytes > MAX_FILL * report.budget_bytes:
            return "its budget is nearly full"
        return ""
