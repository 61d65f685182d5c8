"""Which collector takes a stream or a link: by what collectors reported, plus what was promised to them since.

Pure: state in, decision with its reason out; the clock is the caller's.

Rule 1: load = reported bytes/s + reservations. Each placement reserves a predicted rate, never 0, that fades over 30 s
        as the measured one takes its place. So a thousand placements between two reports do not all go to one.
Rule 2: a collector without a report counts as average, never as empty.
Rule 3: one whose report is old, whose loop is late or whose budget is nearly full is not eligible; when none is, the
        placement is refused, and the caller waits.
Rule 4: an org's own share on a collector counts twice, so that no collector holds all of an org.
Rule 5: one that failed is left out for a moment: empty because it just died is not idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

from attrs import define, field, frozen

FADE_S = 30.0
STALE_S = 5.0
MAX_LAG_S = 2.0
MAX_FILL = 0.9
FAILED_PAUSE_S = 1.0
DEFAULT_RATE = 10_000.0
"""bytes/s reserved for a stream that nothing is known of."""


@frozen
class Report:
    """What a collector says of itself once a second."""

    bytes_per_s: float
    lag_s: float
    held_bytes: int
    budget_bytes: int


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
class _Promise:
    collector: str
    org: str
    rate: float
    at: float


@define
class _Collector:
    since: float
    report: Report | None = None
    reported_at: float = 0.0
    failed_until: float = 0.0


@define
class Placement:
    """The state of one balancer's placements; all of it comes back within one report interval of a restart."""

    _collectors: dict[str, _Collector] = field(factory=dict)
    _promises: dict[Hashable, _Promise] = field(factory=dict)

    def members(self, names: Iterable[str], now: float) -> None:
        """The collectors that there are."""
        wanted = set(names)
        for name in wanted - self._collectors.keys():
            self._collectors[name] = _Collector(since=now)
        for name in self._collectors.keys() - wanted:
            del self._collectors[name]

    def report(self, name: str, report: Report, now: float) -> None:
        """A collector reported."""
        if name in self._collectors:
            collector = self._collectors[name]
            collector.report, collector.reported_at = report, now

    def failed(self, name: str, now: float) -> None:
        """A collector could not be reached, or its link broke."""
        if name in self._collectors:
            self._collectors[name].failed_until = now + FAILED_PAUSE_S

    def released(self, key: Hashable) -> None:
        """What was placed under `key` is no more."""
        self._promises.pop(key, None)

    def place(
        self, key: Hashable, org: str, now: float, *, exclude: Iterable[str] = (), want: str = ""
    ) -> Decision | Refusal:
        """Choose a collector for `key`, and reserve a rate for it there."""
        self._promises.pop(key, None)
        left_out = set(exclude)
        eligible: list[str] = []
        reasons: dict[str, str] = {}
        for name, collector in self._collectors.items():
            reason = "tried already" if name in left_out else self._unfit(collector, now)
            if reason:
                reasons[name] = reason
            else:
                eligible.append(name)
        if not eligible:
            return Refusal("; ".join(f"{name}: {why}" for name, why in sorted(reasons.items())) or "no collectors")
        loads = self.loads(now)
        rate = self._predict(org)
        if want in eligible:
            decision = Decision(want, "wanted after a move")
        else:
            shares = self._org_loads(org, now)
            best = min(eligible, key=lambda name: (loads[name] + shares[name], name))
            decision = Decision(best, f"least load: {loads[best]:,.0f} B/s of {len(eligible)} eligible")
        self._promises[key] = _Promise(decision.collector, org, rate, now)
        return decision

    def loads(self, now: float) -> dict[str, float]:
        """bytes/s of each collector: reported, or average when unknown, plus what is reserved."""
        known = [c.report.bytes_per_s for c in self._collectors.values() if c.report and now - c.reported_at < STALE_S]
        average = sum(known) / len(known) if known else 0.0
        loads = {
            name: c.report.bytes_per_s if c.report is not None and now - c.reported_at < STALE_S else average
            for name, c in self._collectors.items()
        }
        for promise in self._promises.values():
            if promise.collector in loads:
                loads[promise.collector] += self._left(promise, now)
        return loads

    def _org_loads(self, org: str, now: float) -> dict[str, float]:
        shares: dict[str, float] = defaultdict(float)
        for promise in self._promises.values():
            if promise.org == org:
                shares[promise.collector] += promise.rate
        return shares

    def _left(self, promise: _Promise, now: float) -> float:
        return promise.rate * max(0.0, 1 - (now - promise.at) / FADE_S)

    def _predict(self, org: str) -> float:
        rates = sorted(promise.rate for promise in self._promises.values() if promise.org == org)
        return max(rates[len(rates) // 2] if rates else DEFAULT_RATE, 1.0)

    def _unfit(self, collector: _Collector, now: float) -> str:
        if now < collector.failed_until:
            return "failed just now"
        report = collector.report
        if report is None:
            return ""
        if now - collector.reported_at > STALE_S:
            return f"no report for {now - collector.reported_at:.0f} s"
        if report.lag_s > MAX_LAG_S:
            return f"its loop is {report.lag_s:.1f} s late"
        if report.held_bytes > MAX_FILL * report.budget_bytes:
            return "its budget is nearly full"
        return ""
