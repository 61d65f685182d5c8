"""What the demo shows: a row a process, a line an org, and how the load was shared before, during and after a death."""

from __future__ import annotations

import time
from typing import Any

from attrs import define, field
from rich.table import Table

from tools.loadgen import Ledger

PHASES = {"before": "until a collector died", "during": "until it was back", "after": "from then on"}


@define
class Shares:
    """Bytes into each collector, by phase: before one is killed, until it is back, and from then on."""

    phase: str = "before"
    taken: dict[str, dict[str, int]] = field(factory=lambda: {phase: {} for phase in PHASES})
    _before: dict[str, int] = field(factory=dict)

    def read(self, statuses: dict[str, dict[str, Any]]) -> None:
        """Add what came since the last reading; a process that was started again counts from 0."""
        for name, status in statuses.items():
            if not name.startswith("collector"):
                continue
            taken = self.taken[self.phase]
            taken.setdefault(name, 0)
            if "error" in status:
                continue
            total = _bytes_in(name, status)
            before = self._before.get(name, 0)
            taken[name] += total - before if total >= before else total
            self._before[name] = total

    def lines(self) -> list[str]:
        """A line a phase that there was."""
        found = []
        for phase, taken in self.taken.items():
            total = sum(taken.values())
            if total:
                shares = ", ".join(f"{name} {count / total:.0%}" for name, count in sorted(taken.items()))
                found.append(f"share of bytes {PHASES[phase]}: {shares}")
        return found


@define
class View:
    """The picture of one moment after another; `read` takes the next."""

    ledger: Ledger
    meters: int
    news: str = "load begins"
    shares: Shares = field(factory=Shares)
    _statuses: dict[str, dict[str, Any]] = field(factory=dict)
    _rates: dict[str, float] = field(factory=dict)
    _totals: dict[str, int] = field(factory=dict)
    _at: float = 0.0

    def read(self, statuses: dict[str, dict[str, Any]]) -> None:
        """Take the processes' statuses of now."""
        statuses = dict(sorted(statuses.items()))  # which is also the way of the data
        now = time.monotonic()
        passed, self._at = now - self._at, now
        self.shares.read(statuses)
        self._statuses, self._rates = statuses, {}
        for name, status in statuses.items():
            if "error" not in status:
                self._rate(name, _bytes_in(name, status), passed)
        for org, total in self._org_totals().items():
            self._rate(f"org {org}", total, passed)

    def _rate(self, key: str, total: int, passed: float) -> None:
        before = self._totals.get(key, total)
        self._rates[key] = max(0, total - before) / passed
        self._totals[key] = total

    def _org_totals(self) -> dict[str, int]:
        return {org: sum(streams.values()) for org, streams in self.ledger.acknowledged.items()}

    def table(self) -> Table:
        """One row a process: rate, load, what is held, its ratio out/in and what that should be; orgs below."""
        table = Table(title="sapflow", min_width=78)
        for name in ("process", "MB/s in", "CPU", "RSS MiB", "held MiB", "out/in", "expected"):
            table.add_column(name, justify="left" if name == "process" else "right")
        for name, status in self._statuses.items():
            if "error" in status:
                table.add_row(name, "down", style="red")
                continue
            gauges, ratio = status["gauges"], status["ratio"]
            held = gauges.get("held_bytes", gauges.get("unacknowledged_bytes", 0))
            table.add_row(
                name,
                self._taken(name, status).removesuffix(" MB/s"),
                f"{gauges['cpu']:.0%}",
                f"{gauges['rss_bytes'] / 2**20:.0f}",
                f"{held / 2**20:.2f}",
                _figure(ratio["measured"]),
                _figure(ratio["expected"]),
            )
        table.caption = f"{self._sent()}\n{self._orgs()}\n{self.news}"
        return table

    def line(self, seconds: float) -> str:
        """The same in one line, for a log."""
        rates = ", ".join(
            f"{name} {'down' if 'error' in status else self._taken(name, status)}"
            for name, status in self._statuses.items()
        )
        return f"{seconds:4.0f} s  {self._sent()}; {rates}; {self._orgs()}; {self.news}"

    def _taken(self, name: str, status: dict[str, Any]) -> str:
        """A balancer on its collectors' host gives them its links with their sockets, and sees no bytes of them."""
        handed = status.get("counts", {}).get("link_door", {}).get("handed", 0)
        return f"{handed:,} links" if handed else f"{self._rates[name] / 1e6:.2f} MB/s"

    def _sent(self) -> str:
        ledger = self.ledger
        backlog = ledger.sent_records - ledger.acknowledged_records
        return f"{self.meters} meters: {ledger.sent_records:,} records sent, {backlog:,} not yet durable"

    def _orgs(self) -> str:
        rates = ", ".join(f"{org} {self._rates.get(f'org {org}', 0):.0f}" for org in sorted(self._org_totals()))
        return f"batches made durable a second: {rates or 'none yet'}"


def _bytes_in(name: str, status: dict[str, Any]) -> int:
    section = "link_door" if name == "balancer" else "link"
    return int(status["flow"][section]["in"]["bytes"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
